#!/usr/bin/env python3
"""Measures snapferry beside qemu-img, on one disk, in one run, and says which targets are met.

The disk is made (or used again) by scripts/make-disk.sh: real files on ext4, 10 GiB of which 8 are used, behind a read-only
loop device when root. --disk chooses its kind: server, programs, packed or database. Only the report on the server's disk
goes into benches/README.md. Every row runs in every round, rounds alternate their direction, and before each row everything is
written back and the page cache dropped (root only; otherwise it is warm for all alike, and the report says so). Wall time, CPU time
and peak memory are the process's own, as the kernel counts them. Images that snapferry made are checked by `qemu-img check` each time and
held against the disk by `qemu-img compare` once for each row, outside of the measured time.

`make bench` builds what is measured and runs this; the report goes between the markers in benches/README.md, and everything
that was measured to target/bench/last.json. A partial run (--quick, --rows) only prints, unless --write is given.

Rows, for --rows (shell patterns, separated by commas):
    qemu/deflate  qemu/deflate-W  qemu/zstd-W       qemu-img convert -c; with -W -m 16; the same with zstd
    file/CODEC/LEVEL                                snapferry convert --output
    alone/device  alone/codecs                      examples read_device and codec_alone: what the pipeline is made of
    bucket/snapferry  bucket/s3fs                   into one S3 server: convert --bucket; qemu-img -c onto an s3fs mount
    rss/SIZE/file  rss/SIZE/bucket                  peak memory for disks of 1 and 64 GiB
    qemu/restore/CODEC  qemu/restore-direct/CODEC   qemu-img convert -O raw of an image that snapferry made; the same with -t none
    restore/CODEC  restore-direct/CODEC             snapferry restore --output, through the page cache and past it
    qemu/restore-device/CODEC  restore-device/CODEC the same onto a loop device: qemu-img convert -n -t none; snapferry restore --device
    verify/CODEC  verify/bucket                     snapferry verify of a file, and of an object in the embedded store
    verify-apart/file  verify-apart/bucket          the same on all cores but one, which the store has for itself
    compare/device                                  snapferry verify --against
    check/250G                                      snapferry check of an image whose 250 GB are all mapped
    night/device  night/evening                     a server's disk with a database and logs: read alone; a full run into the bucket
    night/NIGHT                                     that disk unchanged, or after a night that scripts/make-night.py makes (idle, logs, packages,
                                                    database): convert --base, and a full run, whose object must have the same SHA-256
    night-restic/evening  night-restic/NIGHT        restic backing up the same devices into the same store

The rows of nights need root and, on 10 GiB, 30 GB of room; `--rows 'night*'` runs them alone.
"""

import argparse
import contextlib
import dataclasses
import datetime
import fnmatch
import hashlib
import hmac
import http.client
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "target" / "bench"
README = ROOT / "benches" / "README.md"
BEGIN, END = "<!-- compare: begin -->", "<!-- compare: end -->"
BUCKET = "bench"
SNAPFERRY = ROOT / "target" / "release" / "snapferry"
SIMULATOR = SNAPFERRY.with_name("snapferry-sim")
EXAMPLES = ROOT / "target" / "release" / "examples"
CODECS, LEVELS = ("deflate", "zstd"), ("fast", "balanced", "small")
DEFAULT = ("deflate", "fast")
KINDS = ("server", "programs", "packed", "database")
MIB, GIB = 1 << 20, 1 << 30
# A slow server, a full disk or a hung mount must not stop the bench for ever.
ROW_LIMIT_S = 3600
START_LIMIT_S = 30


class Failed(Exception):
    """A row that can't be measured."""


class Absent(Exception):
    """A row that this machine or tree has nothing for."""


@dataclasses.dataclass
class Run:
    """One measured process."""

    seconds: float
    cpu: float
    rss: int
    size: int | None = None
    told: dict | None = None
    # Of the cores' time while it ran, by anybody: what nobody used, and what the machine's owner gave to others.
    idle: float = 0.0
    stolen: float = 0.0
    # A full run of the same disk, beside an incremental one.
    full: "Run | None" = None


def say(text):
    print(text, file=sys.stderr, flush=True)


def settle():
    """Nothing of the last row is still being written or kept in memory."""
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3")


def watch(process, ended, peak):
    """Keeps the process's largest peak memory in `peak`, and ends the process when it takes too long."""
    deadline = time.monotonic() + ROW_LIMIT_S
    while not ended.wait(0.02):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # VmHWM only grows. Not ru_maxrss: that begins with the memory of whoever started the process, which is this script.
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak.append(int(status.split("VmHWM:")[1].split()[0]) * 1024)
            del peak[:-1]
        if time.monotonic() > deadline:
            process.kill()


def core_times():
    """Seconds of all cores so far: (idle or waiting for a disk, stolen)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    tick = os.sysconf("SC_CLK_TCK")
    return (fields[3] + fields[4]) / tick, fields[7] / tick


def measure(argv, env=None, stdin=os.devnull):
    """Runs a command to its end, with the file `stdin` to read. Its talk goes to a file that is shown when it fails."""
    argv = [str(word) for word in argv]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(stdin or os.devnull, "rb") as given:
        begin, before = time.monotonic(), core_times()
        process = subprocess.Popen(argv, stdin=given, stdout=out, stderr=err, env={**os.environ, **(env or {})})
        ended, peak = threading.Event(), []
        watcher = threading.Thread(target=watch, args=(process, ended, peak))
        watcher.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
            seconds = time.monotonic() - begin
            idle, stolen = (now - then for now, then in zip(core_times(), before))
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            ended.set()
            watcher.join()
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            raise Failed(f"{' '.join(argv)}: exit code {process.returncode}: {err.read()[-2000:].decode(errors='replace')}")
        peak = peak[-1] if peak else used.ru_maxrss * 1024
        return Run(seconds, used.ru_utime + used.ru_stime, peak, idle=idle, stolen=stolen), out.read().decode()


def split_cores():
    """All cores but the last, and the last, as taskset lists them: for a program, and for the store that it reads from."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Absent("the machine has one core")
    return ",".join(map(str, cores[:-1])), str(cores[-1])


def tool(name):
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not found:
        raise Absent(f"{name} is not installed (scripts/install-system.sh --bench)")
    return found


def quiet(argv):
    done = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, argv))}: exit code {done.returncode}: {(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


# --- the S3 server ----------------------------------------------------------------------------------------------------


class Server:
    """An S3 server on loopback that both sides upload to: snapferry's own, or Swift."""

    def __init__(self, kind):
        self.kind = kind
        self.folder = Path(tempfile.mkdtemp(prefix="server-", dir=HOME))
        self.port = None
        if kind == "sim":
            self.region, self.key, self.secret = "us-south", "snapferry", "snapferry-secret"
        else:
            self.region, self.key, self.secret = "us-east-1", "test:tester", "testing123"
        self.process = None

    @property
    def env(self):
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}

    def start(self):
        if self.kind == "sim":
            if not SNAPFERRY.exists():
                raise Absent(f"{SNAPFERRY} is not built (make build)")
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
            log = open(self.folder / "log", "wb")
            store = self.folder / "store"
            store.mkdir()
            self.process = subprocess.Popen(
                [SIMULATOR, "store", "--dir", store, "--port", str(self.port)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self.env},
            )
        else:
            script = ROOT / "scripts" / "swift-s3.sh"
            if not script.exists():
                raise Absent(f"{script} is missing")
            self.port = int(quiet([script, "start", self.folder]).strip().rpartition(":")[2].rstrip("/"))
        self.endpoint = f"http://127.0.0.1:{self.port}"
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                break
            if time.monotonic() > deadline or (self.process and self.process.poll() is not None):
                raise Failed(f"the {self.kind} server did not come up")
            time.sleep(0.05)
        status = self.request("PUT", f"/{BUCKET}")
        if status not in (200, 409):
            raise Failed(f"creating bucket {BUCKET}: the server answered {status}")

    def stop(self):
        if self.kind == "sim" and self.process:
            self.process.terminate()
            try:
                self.process.wait(START_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        elif self.kind == "swift":
            with contextlib.suppress(Failed):
                quiet([ROOT / "scripts" / "swift-s3.sh", "stop", self.folder])
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def on_cores(self, cores):
        """Keeps the embedded store's threads on these cores meanwhile, or where they are."""
        if cores is None:
            yield
            return
        every = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        pin = [tool("taskset"), "--all-tasks", "--cpu-list", "--pid"]
        quiet([*pin, cores, str(self.process.pid)])
        try:
            yield
        finally:
            quiet([*pin, every, str(self.process.pid)])

    def request(self, method, path, into=None, query=""):
        """One request with an empty body, signed with SigV4. The answer's body goes to `into`: a path, or an open file."""
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        host, empty = f"127.0.0.1:{self.port}", hashlib.sha256(b"").hexdigest()
        headers = {"host": host, "x-amz-content-sha256": empty, "x-amz-date": stamp}
        names = ";".join(sorted(headers))
        canonical = "\n".join([method, path, query, *(f"{name}:{headers[name]}" for name in sorted(headers)), "", names, empty])
        scope = f"{day}/{self.region}/s3/aws4_request"
        to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = b"AWS4" + self.secret.encode()
        for word in (day, self.region, "s3", "aws4_request"):
            key = hmac.digest(key, word.encode(), "sha256")
        signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={names}, Signature={signature}"
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            line.request(method, f"{path}?{query}" if query else path, headers=headers)
            answer = line.getresponse()
            if into and answer.status == 200:
                with contextlib.nullcontext(into) if hasattr(into, "write") else open(into, "wb") as file:
                    shutil.copyfileobj(answer, file, MIB)
                    received = file.tell()
                # Without a length the body comes in chunks, and http.client reports a missing end itself.
                length = answer.getheader("content-length")
                if length is not None and received != int(length):
                    raise Failed(f"GET {path} ended early")
            else:
                answer.read()
            return answer.status
        finally:
            line.close()

    def fetch(self, key, into):
        status = self.request("GET", f"/{BUCKET}/{key}", into)
        if status != 200:
            raise Failed(f"GET {key}: the server answered {status}")

    def remove(self, *keys):
        for key in keys:
            self.request("DELETE", f"/{BUCKET}/{key}")


@contextlib.contextmanager
def s3fs(server):
    """The server's bucket as a folder. What is copied there is kept in a temporary file first, as s3fs does."""
    with tempfile.TemporaryDirectory(dir=HOME) as folder:
        folder = Path(folder)
        at, passwords, temporary = folder / "mnt", folder / "passwd", folder / "tmp"
        at.mkdir()
        temporary.mkdir()
        passwords.touch(mode=0o600)
        # The bucket's name in front, since the access key may hold a colon itself.
        passwords.write_text(f"{BUCKET}:{server.key}:{server.secret}\n" if ":" not in server.key else f"{server.key}:{server.secret}\n")
        env = dict(os.environ)
        options = ["-o", f"url={server.endpoint}", "-o", "use_path_request_style", "-o", f"endpoint={server.region}",
                   "-o", f"tmpdir={temporary}"]
        if ":" in server.key:
            env.update(server.env, AWSACCESSKEYID=server.key, AWSSECRETACCESSKEY=server.secret)
        else:
            options += ["-o", f"passwd_file={passwords}"]
        process = subprocess.Popen([tool("s3fs"), BUCKET, at, "-f", *options], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
        try:
            deadline = time.monotonic() + START_LIMIT_S
            while not os.path.ismount(at):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise Failed("s3fs did not mount the bucket")
                time.sleep(0.05)
            yield at
        finally:
            if os.path.ismount(at):
                quiet([tool("fusermount"), "-u", at])
            try:
                process.wait(START_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# --- disks ------------------------------------------------------------------------------------------------------------


class Disk:
    """Something to convert: a loop device when root, a file otherwise."""

    def __init__(self, image, size):
        self.image, self.size, self.path, self.loop = image, size, image, False

    @property
    def used(self):
        return self.image.stat().st_blocks * 512

    def attach(self):
        if os.geteuid() != 0 or self.loop:
            return
        losetup = [tool("losetup"), "--find", "--show", "--read-only"]
        try:
            path = quiet([*losetup, "--direct-io=on", self.image])
        except Failed:
            path = quiet([*losetup, self.image])
        self.path, self.loop = Path(path.strip()), True

    def warm(self):
        """Once, unmeasured: the storage below this machine has caches of its own, which nobody here can drop. They are warm for all."""
        with open(self.image, "rb") as whole:
            while whole.read(8 * MIB):
                pass

    def detach(self):
        if self.loop:
            quiet([tool("losetup"), "--detach", self.path])
            self.path, self.loop = self.image, False


@contextlib.contextmanager
def empty_device(size):
    """A loop device over a new sparse file."""
    if os.geteuid() != 0:
        raise Absent("loop devices need root")
    image = HOME / "restored.raw"
    image.unlink(missing_ok=True)
    with open(image, "wb") as file:
        file.truncate(size)
    losetup = [tool("losetup"), "--find", "--show"]
    try:
        path = quiet([*losetup, "--direct-io=on", image])
    except Failed:
        path = quiet([*losetup, image])
    try:
        yield Path(path.strip())
    finally:
        quiet([tool("losetup"), "--detach", path.strip()])
        image.unlink()


def made_disk(gib, kind):
    HOME.mkdir(parents=True, exist_ok=True)
    image = HOME / (f"disk-{gib}G.img" if kind == KINDS[0] else f"disk-{kind}-{gib}G.img")
    subprocess.run([ROOT / "scripts" / "make-disk.sh", image, f"{gib}G", "--kind", kind], check=True, stdout=subprocess.DEVNULL)
    return Disk(image, gib * GIB)


def spread_disk(source, gib):
    """The same bytes as `source` has, in pieces of 16 MiB, evenly over a larger and otherwise empty disk."""
    image = HOME / f"disk-{gib}G-of-{source.image.stem}.img"
    if not (image.exists() and image.stat().st_mtime >= source.image.stat().st_mtime):
        say(f"spreading {source.image.name} over {gib} GiB")
        piece, partial = 16 * MIB, image.with_suffix(".making")
        step = gib * GIB // (source.size // piece) // MIB * MIB
        with open(source.image, "rb") as old, open(partial, "wb") as new:
            new.truncate(gib * GIB)
            for number in range(source.size // piece):
                old.seek(number * piece)
                buffer = old.read(piece)
                if buffer.count(0) != len(buffer):
                    new.seek(number * step)
                    new.write(buffer)
        partial.rename(image)
    return Disk(image, gib * GIB)


# --- rows -------------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, options):
        self.options = options
        self.disk = None
        self.one = None
        self.large = None
        self.server = None
        self.no_server = None
        self.nights = nights.Nights(self)
        self.compared = set()
        self.images = set()
        self.codec_cpu, self.hash_cpu = {}, []

    def cleared(self, path):
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".manifest").unlink(missing_ok=True)
        return path

    def verify(self, name, image, disk):
        """Outside of the measured time: each image is sound; the first of each row is the disk."""
        quiet([tool("qemu-img"), "check", "-q", image])
        if self.options.compare and name not in self.compared:
            quiet([tool("qemu-img"), "compare", "-q", "-f", "raw", "-F", "qcow2", disk.path, image])
            self.compared.add(name)

    def snapferry(self, *words, env=None):
        if not SNAPFERRY.exists():
            raise Absent(f"{SNAPFERRY} is not built (make build)")
        run, out = measure([SNAPFERRY, "convert", "--json", *words], env)
        try:
            run.told = json.loads(out.strip().splitlines()[-1])
        except (IndexError, ValueError) as err:
            raise Failed(f"convert --json printed no JSON: {out[-200:]!r}") from err
        return run

    def qemu(self, *words):
        image = self.cleared(HOME / "qemu.qcow2")
        run, _ = measure([tool("qemu-img"), "convert", "-c", "-f", "raw", "-O", "qcow2", *words, self.disk.path, image])
        run.size = image.stat().st_size
        image.unlink()
        return run

    def to_file(self, name, disk, codec, level):
        image = self.cleared(HOME / "snapferry.qcow2")
        run = self.snapferry("--device", disk.path, "--output", image, "--codec", codec, "--level", level)
        run.size = image.stat().st_size
        self.verify(name, image, disk)
        self.cleared(image)
        return run

    def needs_server(self):
        if self.no_server:
            raise self.no_server

    def to_bucket(self, name, disk):
        self.needs_server()
        codec, level = DEFAULT
        server, key = self.server, "snapferry.qcow2"
        run = self.snapferry("--device", disk.path, "--bucket", BUCKET, "--key", key, "--endpoint", server.endpoint,
                             "--region", server.region, "--codec", codec, "--level", level, env=server.env)
        image = self.cleared(HOME / "fetched.qcow2")
        server.fetch(key, image)
        run.size = image.stat().st_size
        self.verify(name, image, disk)
        image.unlink()
        server.remove(key, key + ".manifest")
        return run

    def onto_s3fs(self):
        self.needs_server()
        with s3fs(self.server) as folder:
            image = folder / "qemu.qcow2"
            run, _ = measure([tool("qemu-img"), "convert", "-c", "-f", "raw", "-O", "qcow2", self.disk.path, image])
            run.size = image.stat().st_size
        self.server.remove("qemu.qcow2")
        return run

    def example(self, name, *options, disk=None):
        path = EXAMPLES / name
        if not path.exists():
            raise Absent(f"{path} is not built (cargo build --release --workspace --examples)")
        run, out = measure([path, (disk or self.disk).path, *options])
        lines = [json.loads(line) for line in out.splitlines() if line.strip()]
        return run, [entry for line in lines for entry in (line if isinstance(line, list) else [line])]

    def device_alone(self, engine="pread", depth="6", disk=None):
        run, told = self.example("read_device", engine, depth, disk=disk)
        return Run(told[0]["seconds"], told[0]["cpu_seconds"], run.rss, told=told[0], idle=run.idle, stolen=run.stolen)

    def codecs_alone(self):
        # Level small is left out: it takes minutes, and what surrounds the codec weighs less the slower that is.
        run, told = self.example("codec_alone", *(word for codec in CODECS for level in ("fast", "balanced") for word in (codec, level)))
        for entry in told:
            if "hash" in entry:
                self.hash_cpu.append(entry["cpu_seconds"])
            else:
                self.codec_cpu.setdefault((entry["codec"], entry["level"]), []).append(entry["cpu_seconds"])
        return run

    def image_of(self, codec):
        """An image of the disk, made once: what the rows of the read side read."""
        image = HOME / f"read-{codec}.qcow2"
        if codec not in self.images:
            self.cleared(image)
            self.snapferry("--device", self.disk.path, "--output", image, "--codec", codec)
            self.images.add(codec)
            settle()
        return image

    def qemu_restore(self, codec, *words):
        image, raw = self.image_of(codec), HOME / "restored.raw"
        raw.unlink(missing_ok=True)
        run, _ = measure([tool("qemu-img"), "convert", "-f", "qcow2", "-O", "raw", *words, image, raw])
        raw.unlink()
        return run

    def restore(self, codec, *words):
        image, raw = self.image_of(codec), HOME / "restored.raw"
        raw.unlink(missing_ok=True)
        run, _ = measure([SNAPFERRY, "restore", image, "--output", raw, "--quiet", *words])
        if self.options.compare and codec not in self.compared:
            quiet([tool("qemu-img"), "compare", "-q", "-f", "raw", "-F", "raw", self.disk.path, raw])
            self.compared.add(codec)
        raw.unlink()
        return run

    def qemu_restore_device(self, codec):
        image = self.image_of(codec)
        with empty_device(self.disk.size) as device:
            return measure([tool("qemu-img"), "convert", "-n", "-f", "qcow2", "-O", "raw", "-t", "none", image, device])[0]

    def restore_device(self, codec):
        image = self.image_of(codec)
        with empty_device(self.disk.size) as device:
            run, _ = measure([SNAPFERRY, "restore", image, "--device", device, "--quiet"])
            name = f"device/{codec}"
            if self.options.compare and name not in self.compared:
                quiet([tool("qemu-img"), "compare", "-q", "-f", "raw", "-F", "raw", self.disk.path, device])
                self.compared.add(name)
            return run

    def read_back(self, *words, env=None, cores=None):
        run, _ = measure([*([tool("taskset"), "-c", cores] if cores else []), SNAPFERRY, *words, "--quiet"], env)
        return run

    def verify_file_apart(self):
        image = self.image_of(DEFAULT[0])
        return self.read_back("verify", image, cores=split_cores()[0])

    def verify_object(self, cores=None):
        self.needs_server()
        if self.server.kind != "sim":
            raise Absent("only the embedded store is as fast as the decoder")
        codec, key = DEFAULT[0], "read.qcow2"
        server = self.server
        where = ["--bucket", BUCKET, "--key", key, "--endpoint", server.endpoint, "--region", server.region]
        self.snapferry("--device", self.disk.path, *where, "--codec", codec, env=server.env)
        settle()
        with server.on_cores(cores[1] if cores else None):
            run = self.read_back("verify", *where, env=server.env, cores=cores[0] if cores else None)
        server.remove(key, key + ".manifest")
        return run

    def check_large(self):
        """Metadata alone: every cluster of 250 GB has its entry, and a place in a sparse file."""
        image = HOME / "mapped-250G.qcow2"
        image.unlink(missing_ok=True)
        quiet([tool("qemu-img"), "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, "250G"])
        run = self.read_back("check", image)
        image.unlink()
        return run

    def read_rows(self):
        for codec in CODECS:
            yield f"qemu/restore/{codec}", lambda c=codec: self.qemu_restore(c)
            yield f"restore/{codec}", lambda c=codec: self.restore(c, "--page-cache")
            yield f"qemu/restore-direct/{codec}", lambda c=codec: self.qemu_restore(c, "-t", "none")
            yield f"restore-direct/{codec}", lambda c=codec: self.restore(c)
            yield f"qemu/restore-device/{codec}", lambda c=codec: self.qemu_restore_device(c)
            yield f"restore-device/{codec}", lambda c=codec: self.restore_device(c)
            yield f"verify/{codec}", lambda c=codec: self.read_back("verify", self.image_of(c))
        yield "verify/bucket", self.verify_object
        yield "verify-apart/file", self.verify_file_apart
        yield "verify-apart/bucket", lambda: self.verify_object(split_cores())
        yield "compare/device", lambda: self.read_back("verify", self.image_of(DEFAULT[0]), "--against", self.disk.path)
        yield "check/250G", self.check_large

    def rows(self):
        yield "qemu/deflate", lambda: self.qemu()
        yield "alone/device", self.device_alone
        # What the choice of the reader stands on: one request at a time, and the same depth by io_uring.
        yield "alone/device-pread-1", lambda: self.device_alone("pread", "1")
        yield "alone/device-uring-6", lambda: self.device_alone("uring", "6")
        for codec in CODECS:
            for level in LEVELS:
                name = f"file/{codec}/{level}"
                yield name, lambda n=name, c=codec, l=level: self.to_file(n, self.disk, c, l)
            best = "deflate-W" if codec == "deflate" else "zstd-W"
            how = ["-W", "-m", "16"] + (["-o", "compression_type=zstd"] if codec == "zstd" else [])
            yield f"qemu/{best}", lambda w=how: self.qemu(*w)
        yield "alone/codecs", self.codecs_alone
        yield "bucket/snapferry", lambda: self.to_bucket("bucket/snapferry", self.disk)
        yield "bucket/s3fs", self.onto_s3fs
        for size in ("1G", "64G"):
            pick = (lambda: self.one) if size == "1G" else (lambda: self.large)
            yield f"rss/{size}/file", lambda p=pick, s=size: self.to_file(f"rss/{s}/file", p(), *DEFAULT)
            yield f"rss/{size}/bucket", lambda p=pick, s=size: self.to_bucket(f"rss/{s}/bucket", p())
        yield from self.read_rows()
        yield from self.nights.rows()
        if self.options.all:
            for codec in CODECS:
                name = f"file/{codec}/smallest"
                yield name, lambda n=name, c=codec: self.to_file(n, self.one, c, "smallest")

    def prepare(self, names):
        """Only the disks and the server that the chosen rows need."""
        wants_one = any(name.startswith("rss/1G") or name.endswith("/smallest") for name in names)
        wants_large = any(name.startswith("rss/64G") for name in names)
        kind, gib = self.options.disk, 1 if self.options.quick else 10
        if any(nights.is_row(name) for name in names) and os.geteuid() == 0:
            self.disk = self.nights.prepare(gib)
            self.disk.attach()
            self.disk.warm()
        if not all(nights.is_row(name) for name in names) or not self.disk:
            self.disk = made_disk(gib, kind)
        if wants_one:
            self.one = self.disk if self.options.quick else made_disk(1, kind)
        if wants_large:
            self.large = spread_disk(self.disk, 64)
        for disk in {disk for disk in (self.disk, self.one, self.large) if disk}:
            disk.attach()
            disk.warm()
        if any("bucket" in name or nights.is_row(name) for name in names):
            self.server = Server(self.options.server)
            try:
                self.server.start()
            except (Absent, Failed) as err:
                self.no_server = err

    def clean_up(self):
        if self.server:
            self.server.stop()
        self.nights.clean_up()
        for disk in {disk for disk in (self.disk, self.one, self.large) if disk}:
            disk.detach()
        for left in ("qemu.qcow2", "snapferry.qcow2", "fetched.qcow2", "restored.raw", *(f"read-{codec}.qcow2" for codec in CODECS)):
            self.cleared(HOME / left)


# --- the report -------------------------------------------------------------------------------------------------------


def middle(runs):
    """The run that the report shows: medians of what varies, the most of memory."""
    return Run(
        statistics.median(run.seconds for run in runs),
        statistics.median(run.cpu for run in runs),
        max(run.rss for run in runs),
        runs[0].size,
        runs[0].told,
        statistics.median(run.idle for run in runs),
        statistics.median(run.stolen for run in runs),
        middle([run.full for run in runs]) if runs[0].full else None,
    )


# What is asked of deflate `fast` beside `qemu-img convert -c -W -m 16`: speed at least, size at most. QEMU's match finder
# goes deeper, which pays most on programs.
FAST = {"server": (10, 1.0), "programs": (8.5, 1.01), "packed": (8.5, 1.0), "database": (8.5, 1.0)}


def targets(shown, kind, codec_cpu, hash_cpu, cores):
    """Each target as (what, measured, bound, text of the bound), for the rows that were measured."""

    def at_least(what, value, bound, unit="x"):
        found.append((what, f"{value:.2f}{unit}", f"at least {bound:g}{unit}", value >= bound))

    def at_most(what, value, bound, unit="", digits=3):
        found.append((what, f"{value:.{digits}f}{unit}", f"at most {bound:g}{unit}", value <= bound))

    found = []
    plain, best = shown.get("qemu/deflate"), shown.get("qemu/deflate-W")
    zstd = shown.get("qemu/zstd-W")
    # The other levels' figures are of the disk that they were chosen on.
    deflate = [("fast", *FAST[kind])] + ([("balanced", 5.5, 0.96), ("small", 3, 0.89)] if kind == "server" else [])
    for level, faster, smaller in deflate:
        ours = shown.get(f"file/deflate/{level}")
        if ours and best:
            at_least(f"deflate {level}: speed beside `qemu-img convert -c -W -m 16`", best.seconds / ours.seconds, faster)
        if ours and plain and level == "fast" and kind == "server":
            at_least("deflate fast: speed beside `qemu-img convert -c`", plain.seconds / ours.seconds, 18)
        sizes = [run.size for run in (plain, best) if run]
        if ours and sizes:
            at_most(f"deflate {level}: size beside qemu-img's", ours.size / min(sizes), smaller)
    for level, faster, smaller in (("fast", 4, 1.03), ("balanced", 2.8, 1.0)):
        ours = shown.get(f"file/zstd/{level}")
        if ours and zstd:
            at_least(f"zstd {level}: speed beside `qemu-img -c -W -m 16` with zstd", zstd.seconds / ours.seconds, faster)
            at_most(f"zstd {level}: size beside qemu-img's", ours.size / zstd.size, smaller)
    device = shown.get("alone/device")
    if device:
        for (codec, level), spent in codec_cpu.items():
            ours = shown.get(f"file/{codec}/{level}")
            if ours and level in LEVELS:
                parts = statistics.median(spent) + device.cpu
                bound = f"max(device alone, (codec + reader CPU) / {cores})"
                at_most(f"{codec} {level}: wall time over {bound}", ours.seconds / max(device.seconds, parts / cores), 1.15)
                if hash_cpu:
                    floor = max(device.seconds, (parts + statistics.median(hash_cpu)) / cores)
                    at_most(f"{codec} {level}: the same with the hash of the disk beside the codec", ours.seconds / floor, 1.15)
        for codec in CODECS if kind == "packed" else ():
            for level in LEVELS:
                if ours := shown.get(f"file/{codec}/{level}"):
                    at_least(f"{codec} {level}: speed beside the device alone", device.seconds / ours.seconds, 0.9)
    bucket, mount, file = shown.get("bucket/snapferry"), shown.get("bucket/s3fs"), shown.get("/".join(("file", *DEFAULT)))
    if bucket and mount:
        at_least("into a bucket: speed beside `qemu-img convert -c` onto s3fs", mount.seconds / bucket.seconds, 10)
    if bucket and file:
        at_most("upload: CPU per GiB stored", (bucket.cpu - file.cpu) / (bucket.size / GIB), 1, " s", 2)
    for codec, faster in (("deflate", 3), ("zstd", 2)):
        for how, words in (("restore", "page cache"), ("restore-direct", "O_DIRECT"), ("restore-device", "a device")):
            ours, theirs = shown.get(f"{how}/{codec}"), shown.get(f"qemu/{how}/{codec}")
            if ours and theirs:
                at_least(f"restore of {codec}, {words}: speed beside `qemu-img convert -O raw`", theirs.seconds / ours.seconds, faster)
    local = shown.get("verify/deflate")
    for pair, words in ((("verify/deflate", "verify/bucket"), ""), (("verify-apart/file", "verify-apart/bucket"), " on a core of its own")):
        ours, stored = (shown.get(name) for name in pair)
        if ours and stored:
            at_least(f"verify from the embedded store{words}: speed beside verify of a file", ours.seconds / stored.seconds, 0.9)
    against = shown.get("compare/device")
    if against and device and local:
        floor = max(device.seconds, local.seconds)
        at_most("compare of image and device: wall time over max(device alone, decoding alone)", against.seconds / floor, 1.15, "", 2)
    if check := shown.get("check/250G"):
        at_most("check of the metadata of 250 GB", check.seconds, 1, " s", 2)
    for where, bound in (("file", 256), ("bucket", 512)):
        for size in ("1G", "64G"):
            ours = shown.get(f"rss/{size}/{where}")
            if ours:
                at_most(f"peak memory, {size[:-1]} GiB disk to a {where}", ours.rss / MIB, bound, " MiB", 0)
        if (small := shown.get(f"rss/1G/{where}")) and (large := shown.get(f"rss/64G/{where}")):
            at_most(f"peak memory to a {where}: 64 GiB disk beside 1 GiB", large.rss / small.rss, 1.1, "", 2)
    return found


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def revision():
    done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def report(bench, shown, absent, failed, rounds, cores):
    disk = bench.disk
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    caches = "page cache dropped before each row" if os.geteuid() == 0 else "not root: page cache warm for all rows alike"
    lines = [
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}, revision {revision()}. {cpu_model()}, {cores} cores, "
        f"{memory / GIB:.0f} GiB memory, Linux {platform.release()}; {quiet([tool('qemu-img'), '--version']).splitlines()[0]}.",
        "",
        f"Disk: {bench.options.disk}, {disk.size // GIB} GiB, {disk.used / GIB:.2f} GiB of it in use, {'a loop device' if disk.loop else 'a file'}; {caches}; "
        f"{rounds} round{'s' if rounds > 1 else ''}, medians"
        + (f"; S3 server: {'snapferry-sim store' if bench.server.kind == 'sim' else 'Swift s3api'} on the same machine."
           if bench.server and not bench.no_server else "."),
        "",
        "| row | seconds | MiB/s read | CPU s | idle, stolen s | peak MiB | stored MB | beside `qemu -c` | beside `-W -m 16` of the codec | size beside it |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    plain = shown.get("qemu/deflate")
    for name, run in shown.items():
        if nights.is_row(name):
            continue
        read = bench.large if name.startswith("rss/64G") else bench.one if name.startswith("rss/1G") or name.endswith("/smallest") else disk
        same_disk = read is disk and run.size and not name.startswith("check")
        best = shown.get("qemu/zstd-W" if "zstd" in name else "qemu/deflate-W") if same_disk else None
        lines.append(
            f"| {name} | {run.seconds:.2f} | {'' if name in ('alone/codecs', 'check/250G') else f'{read.size / MIB / run.seconds:.0f}'} | {run.cpu:.2f} | "
            f"{run.idle:.1f}, {run.stolen:.1f} | {run.rss / MIB:.0f} | {f'{run.size / 1e6:.1f}' if run.size else ''} | "
            f"{f'{plain.seconds / run.seconds:.2f}x' if plain and same_disk else ''} | "
            f"{f'{best.seconds / run.seconds:.2f}x' if best else ''} | {f'{run.size / best.size:.4f}' if best else ''} |"
        )
    if bench.codec_cpu:
        lines += ["", "| codec alone | CPU s for the disk |", "|---|--:|"]
        lines += [f"| {codec} {level} | {statistics.median(spent):.2f} |" for (codec, level), spent in bench.codec_cpu.items()]
        if bench.hash_cpu:
            lines.append(f"| hash of the disk (BLAKE3) | {statistics.median(bench.hash_cpu):.2f} |")
    found = targets(shown, bench.options.disk, bench.codec_cpu, bench.hash_cpu, cores)
    if found:
        lines += ["", "| target | measured | asked | |", "|---|--:|--:|---|"]
        lines += [f"| {what} | {value} | {bound} | {'met' if met else '**missed**'} |" for what, value, bound, met in found]
    lines += nights.lines(shown, bench.nights)
    for word, why in (("Not measured", absent), ("Failed", failed)):
        if why:
            lines += ["", f"{word}:", ""] + [f"- {name}: {reason.splitlines()[0]}" for name, reason in why.items()]
    return "\n".join(lines)


def write_readme(text):
    old = README.read_text()
    head, found_begin, rest = old.partition(BEGIN)
    _, found_end, tail = rest.partition(END)
    if not (found_begin and found_end):
        raise SystemExit(f"{README} has lost its markers {BEGIN} and {END}")
    README.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a disk of 1 GiB instead of 10")
    parser.add_argument("--disk", choices=KINDS, default=KINDS[0], help="what the disk holds (server)")
    parser.add_argument("--all", action="store_true", help="level smallest too, on 1 GiB")
    parser.add_argument("--rows", default="*", metavar="PATTERNS", help="only these rows")
    parser.add_argument("--rounds", type=int, default=2, help="how often each row runs (2)")
    parser.add_argument("--server", choices=("sim", "swift"), default="sim", help="where buckets are (sim)")
    parser.add_argument("--no-compare", dest="compare", action="store_false", help="leave out `qemu-img compare`, minutes in all")
    parser.add_argument("--write", action="store_true", help="rewrite benches/README.md after a partial run too")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 at least")
    HOME.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    patterns = options.rows.split(",")
    rows = [(name, run) for name, run in bench.rows() if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if not rows:
        parser.error(f"no row is called {options.rows}")
    cores = len(os.sched_getaffinity(0))
    measured, absent, failed = {}, {}, {}
    # Whoever ends the bench wants loop devices and servers ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        bench.prepare([name for name, _ in rows])
        for number in range(options.rounds):
            for name, run in rows if number % 2 == 0 else reversed(rows):
                if name in absent or name in failed:
                    continue
                settle()
                try:
                    result = run()
                except Absent as err:
                    absent[name] = str(err)
                    say(f"{name}: not measured: {err}")
                except Failed as err:
                    failed[name] = str(err)
                    measured.pop(name, None)
                    say(f"{name}: failed: {err}")
                else:
                    measured.setdefault(name, []).append(result)
                    size = f", {result.size / 1e6:.1f} MB" if result.size else ""
                    say(f"round {number + 1}: {name}: {result.seconds:.2f} s, {result.cpu:.2f} s CPU, {result.rss / MIB:.0f} MiB{size}")
        shown = {name: middle(measured[name]) for name, _ in rows if name in measured}
        text = report(bench, shown, absent, failed, options.rounds, cores)
    finally:
        bench.clean_up()
    print(text)
    (HOME / "last.json").write_text(json.dumps(
        {name: [dataclasses.asdict(run) for run in runs] for name, runs in measured.items()}
        | {"codec_cpu": {"/".join(key): spent for key, spent in bench.codec_cpu.items()}}, indent=1))
    whole = not (options.quick or options.disk != KINDS[0] or options.rows != "*" or absent or failed)
    if whole or options.write:
        write_readme(text)
        say(f"written to {README}")
    else:
        say("a partial run: benches/README.md stays as it is")
    return 1 if failed else 0


# nights.py takes the disks, the store and the measuring from here, under the name of this file.
sys.modules.setdefault("compare", sys.modules[__name__])
import nights  # noqa: E402

if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Absent, Failed) as err:
        sys.exit(f"compare.py: {err}")
    except KeyboardInterrupt:
        sys.exit(130)
