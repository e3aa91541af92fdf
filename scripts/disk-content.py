#!/usr/bin/env python3
"""Fills a folder with files of one kind, for scripts/make-disk.sh. The same seed and the same machine give the same files.

    scripts/disk-content.py packed|database FOLDER BYTES

packed      what does not shrink: this machine's archives, packages, wheels and pictures (two fifths), layers of containers
            (gzip over its programs, two fifths), and bytes as encryption leaves them (a fifth)
database    SQLite databases with rows of orders, customers and measurements and with indexes over them (two thirds), and
            logs as text (a third)

The last line on stdout is the number of bytes that were written.
"""

import datetime
import gzip
import itertools
import json
import os
import random
import shutil
import sqlite3
import sys
import tarfile
import uuid
from multiprocessing import Pool
from pathlib import Path

SEED = 20_261_128
MIB = 1 << 20
# One database, log or layer. Several are made at a time.
PIECE = 64 * MIB
PACKED_SUFFIXES = (".crate", ".deb", ".whl", ".gz", ".tgz", ".xz", ".bz2", ".zst", ".zip", ".jar", ".png", ".jpg", ".woff2", ".mp4")
PACKED_ROOTS = ("~/.cargo/registry/cache", "/var/cache/apt/archives", "~/.cache/pip", "~/.npm", "/usr", "/opt", "~/.pyenv")
LAYER_ROOTS = ("/usr/lib", "/usr/bin", "/usr/share", "~/.pyenv/versions", "~/.rustup/toolchains")
SEVERITIES = ("INFO",) * 12 + ("DEBUG",) * 5 + ("WARN",) * 2 + ("ERROR",)
FIRST = "Ada Alan Barbara Claude Donald Edsger Frances Grace Hedy John Katherine Linus Margaret Niklaus Radia Tim".split()
LAST = "Allen Backus Borg Dijkstra Hamilton Hopper Johnson Kay Knuth Lamport Liskov Lovelace Perlman Ritchie Turing".split()
WORDS = "cable chassis controller cooler drive fan frame gasket hinge lamp monitor mount panel pump relay sensor shelf valve".split()


def files_under(roots, keeps):
    """Readable files in the order of their paths, hard links once."""
    seen = set()
    for root in roots:
        for folder, subfolders, names in os.walk(os.path.expanduser(root)):
            subfolders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                try:
                    status = os.lstat(path)
                except OSError:
                    continue
                key = (status.st_dev, status.st_ino)
                is_file = (status.st_mode & 0o170000) == 0o100000
                if is_file and key not in seen and status.st_size and keeps(name) and os.access(path, os.R_OK):
                    seen.add(key)
                    yield path, status.st_size


def archives(folder, budget):
    """Copies the machine's compressed files until `budget` bytes are there. Returns the bytes copied."""
    folder.mkdir()
    done = 0
    for number, (path, size) in enumerate(files_under(PACKED_ROOTS, lambda name: name.endswith(PACKED_SUFFIXES))):
        if done + size > budget:
            continue
        try:
            shutil.copyfile(path, folder / f"{number:06}-{os.path.basename(path)}")
        except OSError:
            continue
        done += size
    return done


def layer(job):
    path, files = job
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as zipped:
        with tarfile.open(fileobj=zipped, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for file in files:
                try:
                    tar.add(file, recursive=False)
                except OSError:
                    continue
    return os.path.getsize(path)


def layers(folder, budget):
    """Makes layers of containers of the machine's own programs. Returns their bytes."""
    folder.mkdir()

    # Files of one layer, before they are compressed to about a third; many layers even on a small disk.
    wanted = min(3 * PIECE, budget // 8)

    def jobs():
        files, size = [], 0
        for path, length in files_under(LAYER_ROOTS, lambda name: not name.endswith(PACKED_SUFFIXES)):
            files.append(path)
            size += length
            if size >= wanted:
                yield files
                files, size = [], 0
        yield files

    done = 0
    named = ((folder / f"layer-{number:04}.tar.gz", files) for number, files in enumerate(jobs()))
    with Pool() as pool:
        # A few at a time, so that no more is made than there is room for.
        while done < budget:
            batch = list(itertools.islice(named, os.cpu_count() or 1))
            if not batch:
                break
            done += sum(pool.map(layer, batch))
    return done


def encrypted(job):
    path, seed, size = job
    source = random.Random(seed)
    with open(path, "wb") as file:
        for start in range(0, size, MIB):
            file.write(source.randbytes(min(MIB, size - start)))
    return size


def database(job):
    path, seed, size = job
    source = random.Random(seed)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA page_size = 4096")
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.executescript(
        """CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, email TEXT, token TEXT, joined INTEGER);
        CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, product TEXT, price REAL, at TEXT, note TEXT);
        CREATE TABLE measurement (sensor INTEGER, at INTEGER, value REAL, PRIMARY KEY (sensor, at)) WITHOUT ROWID;
        CREATE INDEX orders_by_customer ON orders (customer, at);
        CREATE INDEX orders_by_product ON orders (product);
        CREATE UNIQUE INDEX customer_by_email ON customer (email);"""
    )
    row = 0
    at = 1_700_000_000
    while path.stat().st_size < size:
        customers, orders, measurements = [], [], []
        for _ in range(4000):
            row += 1
            at += source.randrange(60)
            first, last = source.choice(FIRST), source.choice(LAST)
            token = str(uuid.UUID(int=source.getrandbits(128)))
            customers.append((row, f"{first} {last}", f"{first}.{last}.{row}@example.com".lower(), token, at))
            for _ in range(3):
                product = f"{source.choice(WORDS)}-{source.randrange(5000):05}"
                note = json.dumps({"quantity": source.randrange(1, 20), "ship": source.choice(WORDS), "gift": source.random() < 0.1})
                moment = datetime.datetime.fromtimestamp(at, datetime.timezone.utc).isoformat()
                orders.append((source.randrange(1, row + 1), product, round(source.uniform(1, 900), 2), moment, note))
            measurements.extend((source.randrange(500), at * 8 + step, source.gauss(20, 3)) for step in range(4))
        connection.executemany("INSERT INTO customer VALUES (?, ?, ?, ?, ?)", customers)
        connection.executemany("INSERT INTO orders (customer, product, price, at, note) VALUES (?, ?, ?, ?, ?)", orders)
        connection.executemany("INSERT OR IGNORE INTO measurement VALUES (?, ?, ?)", measurements)
        connection.commit()
    connection.close()
    return path.stat().st_size


def log(job):
    path, seed, size = job
    source = random.Random(seed)
    at = 1_700_000_000.0
    with open(path, "w", encoding="ascii") as file:
        while file.tell() < size:
            lines = []
            for _ in range(2000):
                at += source.expovariate(40)
                moment = datetime.datetime.fromtimestamp(at, datetime.timezone.utc).isoformat(timespec="milliseconds")
                request, address = f"{source.getrandbits(64):016x}", f"10.{source.randrange(4)}.{source.randrange(256)}.{source.randrange(256)}"
                lines.append(
                    f"{moment} {source.choice(SEVERITIES)} {source.choice(WORDS)}[{source.randrange(300, 340)}]: request={request} "
                    f"peer={address} path=/api/v1/{source.choice(WORDS)}/{source.randrange(100_000)} status={source.choice((200, 200, 200, 204, 404, 500))} "
                    f"took_ms={source.expovariate(0.05):.1f}\n"
                )
            file.write("".join(lines))
    return path.stat().st_size


def pieces(make, folder, suffix, budget, first_seed):
    """Makes files of one piece each, on all cores. Returns their bytes."""
    folder.mkdir()
    jobs = []
    for number, start in enumerate(range(0, budget, PIECE)):
        jobs.append((folder / f"{number:04}{suffix}", first_seed + number, min(PIECE, budget - start)))
    with Pool() as pool:
        return sum(pool.imap_unordered(make, jobs))


def packed(folder, budget):
    done = archives(folder / "archives", budget * 2 // 5)
    done += layers(folder / "layers", budget * 4 // 5 - done)
    return done + pieces(encrypted, folder / "encrypted", ".bin", max(budget - done, 0), SEED)


def rows_and_logs(folder, budget):
    done = pieces(database, folder / "db", ".sqlite", budget * 2 // 3, SEED)
    return done + pieces(log, folder / "log", ".log", max(budget - done, 0), SEED + 100_000)


KINDS = {"packed": packed, "database": rows_and_logs}


def main():
    words = sys.argv[1:]
    if words[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if len(words) != 3 or words[0] not in KINDS or not words[2].isdigit():
        print(__doc__, file=sys.stderr)
        return 2
    print(KINDS[words[0]](Path(words[1]), int(words[2])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
