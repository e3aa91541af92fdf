#!/usr/bin/env python3
"""Lets a night pass on a disk image: copies the image, and changes files on the copy's ext4 file system, as a server does.

    scripts/make-night.py NIGHT IMAGE OUT [--seed NUMBER]

NIGHT
    evening     no night: adds to a disk of scripts/make-disk.sh what the nights change, a database with its write-ahead log
                (a fifth of the disk) and logs. The other nights begin with such a disk
    idle        4000 files are read, some small ones are written anew and synced, a journal grows
    logs        a thirtieth of the disk is appended to logs, and three logs are compressed and begun anew
    packages    files of packages are written new and renamed over the old ones, a twentieth of the disk
    database    1 % of the database's pages of 8 KiB are changed at random places, and its write-ahead log is written over
IMAGE           a disk image: ext4 in the whole of it, or in a partition that begins at 1 MiB. It is not changed
OUT             the copy, which shares unchanged extents with IMAGE where the file system can. One that was made of the
                same image, night and seed is used again
--seed NUMBER   of everything that is drawn at random (1)

It needs root, since it mounts the copy through a loop device, and room for the copy. The kernel chooses where new bytes lie
and when they are written, so two copies with one seed have the same files, but may differ in their blocks. The last line on
stdout is a JSON object: what was written and how many files.
"""

import argparse
import contextlib
import gzip
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

MIB = 1 << 20
# A change in what this script writes makes copies of older ones unusable for a comparison.
RECIPE = 1
PARTITION_START = MIB
# ext4's superblock: https://www.kernel.org/doc/html/latest/filesystems/ext4/globals.html
SUPERBLOCK, SUPERBLOCK_LEN, MAGIC_AT, MAGIC = 1024, 1024, 0x38, 0xEF53
PAGE = 8192
LOGS, WALS = 20, 4
DATABASE, LOG_FOLDER = "var/lib/db", "var/log/app"


class Refused(Exception):
    """What the user has to change."""


def run(*argv):
    done = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(f"{' '.join(map(str, argv))}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def file_system(image):
    """Offset and length in bytes of the ext4 file system in an image."""
    for start in (PARTITION_START, 0):
        with open(image, "rb") as file:
            file.seek(start + SUPERBLOCK)
            block = file.read(SUPERBLOCK_LEN)
        if len(block) == SUPERBLOCK_LEN and struct.unpack_from("<H", block, MAGIC_AT)[0] == MAGIC:
            blocks = struct.unpack_from("<I", block, 0x4)[0] | struct.unpack_from("<I", block, 0x150)[0] << 32
            return start, blocks * (1024 << struct.unpack_from("<I", block, 0x18)[0])
    raise Refused(f"{image}: no ext4 file system at its start or at 1 MiB; scripts/make-disk.sh makes such an image")


@contextlib.contextmanager
def mounted(image):
    """The image's file system as a folder. Access times are kept as a server keeps them (relatime)."""
    start, length = file_system(image)
    loop = run("losetup", "--find", "--show", "--offset", start, "--sizelimit", length, image)
    try:
        with tempfile.TemporaryDirectory(prefix="night-") as folder:
            run("mount", "-t", "ext4", "-o", "relatime,noinit_itable", loop, folder)
            try:
                yield Path(folder)
            finally:
                run("umount", folder)
    finally:
        run("losetup", "--detach", loop)


class Night:
    """The files of one disk, what was drawn so far, and what was written."""

    def __init__(self, root, size, seed):
        self.root, self.size, self.draw = root, size, random.Random(seed)
        self.written, self.files = 0, 0
        self.text = b"".join(
            b"%08d row value status=%d user=%d took=%d ms|" % (row, row % 7, row * 7919 % 100_003, row * 31 % 977) for row in range(20_000)
        )

    def sync(self):
        run("sync", "--file-system", self.root)

    def under(self, folder):
        """Regular files in the order of their paths."""
        found = []
        for at, folders, names in os.walk(self.root / folder):
            folders.sort()
            found += [path for name in sorted(names) if not (path := Path(at, name)).is_symlink() and path.is_file()]
        return found

    def put(self, path, content, mode="wb", sync=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, mode) as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        self.written += len(content)
        self.files += 1

    def lines(self, least, most):
        length = min(self.draw.randrange(least, most), len(self.text) - 1)
        begin = self.draw.randrange(len(self.text) - length)
        return self.text[begin : begin + length]

    def rewrite(self, path, content, sync):
        """As careful programs do: a new file, then its rename over the old one."""
        new = path.with_name(path.name + ".new")
        self.put(new, content, sync=sync)
        new.rename(path)

    def evening(self):
        pages = self.size // 5 // PAGE
        heap = self.root / DATABASE / "heap"
        for first in range(0, pages, 64):
            count = min(64, pages - first)
            # Three eighths of a page do not shrink, as keys, hashes and packed values don't.
            rows = (self.draw.randbytes(3072) + self.lines(PAGE - 3072, PAGE - 3071) for _ in range(count))
            self.put(heap, b"".join(rows), "ab")
        for number in range(WALS):
            self.put(self.root / DATABASE / f"wal{number}", self.draw.randbytes(self.wal_len()))
        share = self.size // 150 // LOGS
        for number in range(LOGS):
            wanted = self.draw.randrange(share // 2, share * 3 // 2)
            while wanted > 0:
                lines = self.lines(60_000, 600_000)[:wanted]
                self.put(self.log(number), lines, "ab")
                wanted -= len(lines)

    def wal_len(self):
        return max(MIB, self.size // 640 // MIB * MIB)

    def log(self, number):
        return self.root / LOG_FOLDER / f"{number}.log"

    def idle(self):
        files = self.under("")
        for path in self.draw.sample(files, min(4000, len(files))):
            with open(path, "rb") as file:
                file.read(65_536)
        for number in range(30):
            self.put(self.root / LOG_FOLDER / "journal", self.lines(20_000, 300_000), "ab", sync=True)
            self.rewrite(self.root / "var/lib" / f"state{number % 7}", self.draw.randbytes(self.draw.randrange(300, 20_000)), sync=True)

    def logs(self):
        wanted = self.size // 30
        while wanted > 0:
            lines = self.lines(2000, 100_000)
            self.put(self.log(self.draw.randrange(LOGS)), lines, "ab")
            wanted -= len(lines)
            if self.draw.random() < 0.01:
                self.sync()
        for number in (3, 7, 11):
            old = self.log(number)
            # Without a time in its head, the same log gives the same bytes.
            self.put(old.with_name(old.name + ".1.gz"), gzip.compress(old.read_bytes(), 1, mtime=0))
            old.unlink()
            self.put(old, self.lines(200, 2000))

    def packages(self):
        folders = {}
        for path in self.under("usr"):
            folders.setdefault(path.parent, []).append(path)
        names = list(folders)
        self.draw.shuffle(names)
        for folder in names:
            for path in folders[folder]:
                if path.stat().st_size > 40 * MIB:
                    continue
                # A new version differs in a byte of each 2000, all over the file.
                content = bytearray(path.read_bytes())
                for _ in range(max(1, len(content) // 2000) if content else 0):
                    content[self.draw.randrange(len(content))] = self.draw.randrange(256)
                self.rewrite(path, content, sync=False)
                if self.files % 50 == 0:
                    self.sync()
                if self.written >= self.size // 20:
                    return
        raise Refused("the image has too few files under usr for a night of packages; scripts/make-disk.sh makes one that has")

    def database(self):
        heap = self.root / DATABASE / "heap"
        pages = heap.stat().st_size // PAGE
        with open(heap, "r+b", buffering=0) as file:
            for count in range(pages // 100):
                at = self.draw.randrange(pages) * PAGE
                page = bytearray(os.pread(file.fileno(), PAGE, at))
                row = self.draw.randrange(PAGE - 108)
                page[:8], page[row : row + 100] = self.draw.randbytes(8), self.draw.randbytes(100)
                self.written += os.pwrite(file.fileno(), page, at)
                if count % 500 == 0:
                    os.fsync(file.fileno())
            os.fsync(file.fileno())
        for number in range(WALS):
            path = self.root / DATABASE / f"wal{number}"
            self.put(path, self.draw.randbytes(path.stat().st_size), "r+b", sync=True)


NIGHTS = ("evening", "idle", "logs", "packages", "database")


def source_of(image):
    """Text that changes when the image does."""
    recipe = Path(f"{image}.recipe")
    status = image.stat()
    return f"{recipe.read_text().strip() if recipe.exists() else image} size={status.st_size} changed={status.st_mtime_ns}"


def make(night, image, out, seed):
    if os.geteuid() != 0:
        raise Refused("the copy is mounted, which needs root")
    if not image.is_file():
        raise Refused(f"{image}: no such file; scripts/make-disk.sh makes one")
    recipe = Path(f"{out}.recipe")
    made_as = f"night={night} recipe={RECIPE} seed={seed} of {source_of(image)}"
    if out.exists() and recipe.exists():
        stamp = json.loads(recipe.read_text())
        if stamp["made_as"] == made_as:
            return stamp["result"]
    # Without its stamp an interrupted copy is never used again.
    recipe.unlink(missing_ok=True)
    making = Path(f"{out}.making")
    try:
        run("cp", "--reflink=auto", "--sparse=always", image, making)
        with mounted(making) as root:
            changes = Night(root, making.stat().st_size, seed)
            if night != "evening" and not (root / DATABASE / "heap").exists():
                raise Refused(f"{image}: no {DATABASE}/heap; {Path(sys.argv[0]).name} evening adds what the nights change")
            getattr(changes, night)()
            changes.sync()
        making.rename(out)
    finally:
        making.unlink(missing_ok=True)
    result = {"night": night, "files": changes.files, "bytes": changes.written, "image": str(out)}
    recipe.write_text(json.dumps({"made_as": made_as, "result": result}))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("night", choices=NIGHTS)
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for tool in ("cp", "losetup", "mount", "umount", "sync"):
        if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            raise Refused(f"{tool} is missing: scripts/install-system.sh --demo installs it")
    print(json.dumps(make(options.night, options.image, options.out, options.seed)))


if __name__ == "__main__":
    try:
        main()
    except (Refused, OSError) as err:
        sys.exit(f"make-night.py: {err}")
