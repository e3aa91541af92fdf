"""Rows of nights: what an incremental run of snapferry and a second backup by restic cost, beside a full run.

compare.py has the disks, the store and the measuring, and runs the rows. Each row stands for itself, in any order: the night is
made anew from one evening's disk, and both programs find in the store what the evening's run has left, and nothing else.
"""

import contextlib
import hashlib
import io
import shutil
import subprocess
import urllib.parse
import xml.etree.ElementTree

from compare import (
    BUCKET,
    GIB,
    HOME,
    MIB,
    ROOT,
    Absent,
    Disk,
    Failed,
    measure,
    quiet,
    settle,
    tool,
)

# Most bytes sent, in hundredths of the image, on the disk of 10 GiB. Random pages of a database are reported, not promised.
SENT = {"unchanged": 0.5, "idle": 3, "logs": 6, "packages": 25}
NIGHTS = ("unchanged", "idle", "logs", "packages", "database")
# Bounds of section "targets": wall time of an unchanged disk beside reading it, its CPU time beside a full run's, and the wall time
# of any incremental run beside a full one.
READING, CPU_SHARE, FULL = 1.1, 0.25, 1.03
# A segment is 16 MiB: on a small disk a few changed ones are many hundredths, so the bounds of bytes sent don't fit it.
SMALLEST_FOR_SENT = 10 * GIB
FILL = 0.56
EVENING_KEY = "evening.qcow2"
REPOSITORY = "restic"
RESTIC_FILE = "disk.raw"


def is_row(name):
    return name.startswith("night")


class Hashing:
    """A file that only counts and hashes what is written."""

    def __init__(self):
        self.sum, self.length = hashlib.sha256(), 0

    def write(self, piece):
        self.sum.update(piece)
        self.length += len(piece)

    def tell(self):
        return self.length


class Nights:
    """The evening's disk, its image and its repository, which the rows begin with."""

    def __init__(self, bench):
        self.bench = bench
        self.evening = None
        self.evening_image = None
        self.repository = None

    def rows(self):
        yield "night/device", lambda: self.bench.device_alone(disk=self.evening)
        yield "night/evening", self.first_image
        for night in NIGHTS:
            yield f"night/{night}", lambda n=night: self.image_of(n)
        yield "night-restic/evening", self.first_backup
        for night in NIGHTS:
            yield f"night-restic/{night}", lambda n=night: self.backup_of(n)

    # --- disks ---

    def prepare(self, gib):
        """Makes the evening's disk: a server's, with a database and logs."""
        evening = HOME / f"night-evening-{gib}G.img"
        stamp = evening.with_name(evening.name + ".scripts")
        scripts = hashlib.sha256(b"".join((ROOT / "scripts" / name).read_bytes() for name in ("make-disk.sh", "make-night.py"))).hexdigest()
        if not (evening.exists() and stamp.exists() and stamp.read_text() == scripts):
            stamp.unlink(missing_ok=True)
            image = HOME / "night.img"
            try:
                subprocess.run([ROOT / "scripts" / "make-disk.sh", image, f"{gib}G", "--fill", str(int(gib * GIB * FILL))],
                               check=True, stdout=subprocess.DEVNULL)
                make_night("evening", image, evening)
            finally:
                remove_disk(image)
            stamp.write_text(scripts)
        self.evening = Disk(evening, gib * GIB)
        return self.evening

    @contextlib.contextmanager
    def disk_of(self, night):
        """The disk after the night, attached. It goes at the end, since each is as large as the evening's."""
        if night == "unchanged":
            yield self.evening
            return
        image = HOME / "night.img"
        make_night(night, self.evening.image, image)
        disk = Disk(image, self.evening.size)
        disk.attach()
        try:
            # Once, unmeasured, as for every disk.
            disk.warm()
            settle()
            yield disk
        finally:
            disk.detach()
            remove_disk(image)

    # --- snapferry ---

    def convert(self, disk, key, *words):
        server = self.bench.server
        run = self.bench.snapferry("--device", disk.path, "--bucket", BUCKET, "--key", key, "--endpoint", server.endpoint, "--region",
                                   server.region, *words, env=server.env)
        run.size = run.told["bytes_stored"]
        return run

    def remove_image(self, key):
        self.bench.server.remove(key, key + ".manifest")

    def first_image(self):
        """A full run of the evening's disk into the bucket: the base of all nights."""
        self.needs_server()
        if self.evening_image:
            self.remove_image(EVENING_KEY)
        self.evening_image = None
        self.evening_image = self.convert(self.evening, EVENING_KEY)
        return self.evening_image

    def needs_server(self):
        self.bench.needs_server()
        if self.evening is None:
            raise Absent("the nights' disks are mounted, which needs root")

    def image_of(self, night):
        """An incremental run, and a full run of the same disk; a row with different objects fails."""
        self.needs_server()
        if not self.evening_image:
            self.first_image()
        with self.disk_of(night) as disk:
            try:
                settle()
                run = self.convert(disk, "night.qcow2", "--base", EVENING_KEY)
                if not run.told["base"]:
                    raise Failed(f"the base was not used ({run.told['full_because']}): all of the disk was sent")
                settle()
                run.full = self.convert(disk, "night-full.qcow2")
                # In this order, so that few images are there at a time.
                full = Hashing()
                self.bench.server.fetch("night-full.qcow2", full)
                self.remove_image("night-full.qcow2")
                fetched = self.bench.cleared(HOME / "fetched.qcow2")
                self.bench.server.fetch("night.qcow2", fetched)
                with open(fetched, "rb") as file:
                    incremental = hashlib.file_digest(file, "sha256").hexdigest()
                if incremental != full.sum.hexdigest():
                    raise Failed(f"the objects differ: SHA-256 {incremental} by the incremental run, {full.sum.hexdigest()} by the full one")
                self.bench.verify(f"night/{night}", fetched, disk)
                return run
            finally:
                self.bench.cleared(HOME / "fetched.qcow2")
                for key in ("night.qcow2", "night-full.qcow2"):
                    self.remove_image(key)

    # --- restic ---

    def restic(self, *words, disk=None):
        server = self.bench.server
        env = server.env | {
            "RESTIC_REPOSITORY": f"s3:{server.endpoint}/{BUCKET}/{REPOSITORY}",
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(HOME / "restic-cache"),
            "RESTIC_PROGRESS_FPS": "0",
        }
        return measure([tool("restic"), "-o", f"s3.region={server.region}", *words], env, disk.path if disk else None)[0]

    def backup(self, disk):
        """`restic backup --stdin`: a device that restic is given by path is kept as a node, without its content.

        Bytes sent are the growth of the repository, as the store lists it."""
        before = sum(self.objects().values())
        run = self.restic("backup", "--quiet", "--stdin", "--stdin-filename", RESTIC_FILE, disk=disk)
        run.size = sum(self.objects().values()) - before
        return run

    def first_backup(self):
        self.needs_server()
        self.forget_repository()
        self.restic("init", "--quiet")
        settle()
        run = self.backup(self.evening)
        self.repository = self.objects()
        return run

    def backup_of(self, night):
        """The second backup, into a repository with the evening's alone."""
        self.needs_server()
        tool("restic")
        if not self.repository:
            self.first_backup()
        with self.disk_of(night) as disk:
            try:
                settle()
                return self.backup(disk)
            finally:
                # A repository is a set of files that restic only adds to: without the new ones it is the evening's again.
                self.bench.server.remove(*(self.objects().keys() - self.repository.keys()))

    def forget_repository(self):
        self.repository = None
        self.bench.server.remove(*self.objects())
        shutil.rmtree(HOME / "restic-cache", ignore_errors=True)

    def objects(self):
        """Keys and sizes of the repository's objects."""
        found, token = {}, None
        while True:
            query = {"list-type": "2", "prefix": f"{REPOSITORY}/"} | ({"continuation-token": token} if token else {})
            # SigV4 wants the parameters in the order of their names.
            text = urllib.parse.urlencode(sorted(query.items()), quote_via=urllib.parse.quote, safe="")
            listing = io.BytesIO()
            status = self.bench.server.request("GET", f"/{BUCKET}", listing, text)
            if status != 200:
                raise Failed(f"listing bucket {BUCKET}: the server answered {status}")
            tree = xml.etree.ElementTree.fromstring(listing.getvalue())
            space = tree.tag.partition("}")[0] + "}" if tree.tag.startswith("{") else ""
            for entry in tree.iter(f"{space}Contents"):
                found[entry.findtext(f"{space}Key")] = int(entry.findtext(f"{space}Size"))
            if tree.findtext(f"{space}IsTruncated") != "true":
                return found
            token = tree.findtext(f"{space}NextContinuationToken")

    def clean_up(self):
        if self.evening:
            self.evening.detach()
        remove_disk(HOME / "night.img")
        shutil.rmtree(HOME / "restic-cache", ignore_errors=True)


def make_night(night, image, out):
    quiet([ROOT / "scripts" / "make-night.py", night, image, out])


def remove_disk(image):
    for path in (image, image.with_name(image.name + ".recipe")):
        path.unlink(missing_ok=True)


# --- the report ---------------------------------------------------------------------------------------------------------


def targets(shown, nights):
    """Each bound of the nights as (what, measured, bound, whether it is met), for the rows that were measured."""

    def at_most(what, value, bound, unit="", digits=2):
        found.append((what, f"{value:.{digits}f}{unit}", f"at most {bound:g}{unit}", value <= bound))

    found, device = [], shown.get("night/device")
    for night in NIGHTS:
        run = shown.get(f"night/{night}")
        if not run:
            continue
        if night == "unchanged":
            if device:
                at_most("unchanged disk: wall time over the device alone", run.seconds / device.seconds, READING)
            at_most("unchanged disk: CPU time beside a full run's", run.cpu / run.full.cpu, CPU_SHARE)
        if night in SENT and nights.evening.size >= SMALLEST_FOR_SENT:
            at_most(f"night {night}: bytes sent of the image", sent(run), SENT[night], " %")
        at_most(f"night {night}: wall time beside a full run", run.seconds / run.full.seconds, FULL, "x")
        at_most(f"night {night}: peak memory, by the plan's formula", run.rss / MIB, run.told["plan"]["peak_memory"] // MIB, " MiB", 0)
    return found


def sent(run):
    """Bytes sent, in hundredths of the image."""
    return run.told["bytes_sent"] * 100 / run.told["bytes_stored"]


def lines(shown, nights):
    """Markdown lines about all nights that were measured."""
    if not any(is_row(name) for name in shown):
        return []
    disk, device = nights.evening, shown.get("night/device")
    found = [
        "",
        f"Nights: a server's disk with a database and logs, {disk.size // GIB} GiB, {disk.used / GIB:.2f} GiB of it in use, and what "
        "`scripts/make-night.py` makes of it. The store runs on the same machine and its cores, and copies there."
        + (" \"Full\" is a run without `--base` of the same disk; the objects of both have the same SHA-256."
           if any(f"night/{night}" in shown for night in NIGHTS) else "")
        + (" restic reads the device from its standard input, since it keeps a device that is given by path without its content; what it "
           "sent is the growth of its repository. It makes no image: for an import the whole disk must be restored and converted."
           if any(name.startswith("night-restic/") for name in shown) else ""),
        "",
        "| night | seconds | full | CPU s | full | peak MiB | sent MB | of the image | fetched first MB | copied MB | segments unchanged "
        "| restic: seconds | CPU s | peak MiB | sent MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for night in ("evening", *NIGHTS):
        run, theirs = shown.get(f"night/{night}"), shown.get(f"night-restic/{night}")
        if not (run or theirs):
            continue
        cells = [""] * 10
        if run and night == "evening":
            cells[1], cells[3], cells[4] = f"{run.seconds:.2f}", f"{run.cpu:.2f}", f"{run.rss / MIB:.0f}"
            cells[5], cells[6] = f"{run.told['bytes_sent'] / 1e6:.1f}", "100 %"
        elif run:
            base = run.told["base"]
            cells = [
                f"{run.seconds:.2f}", f"{run.full.seconds:.2f}", f"{run.cpu:.2f}", f"{run.full.cpu:.2f}", f"{run.rss / MIB:.0f}",
                f"{run.told['bytes_sent'] / 1e6:.1f}", f"{sent(run):.2f} %", f"{base['bytes_fetched'] / 1e6:.1f}",
                f"{base['bytes_copied'] / 1e6:.1f}", f"{base['segments_unchanged']} of {base['segments']}",
            ]
        cells += [f"{theirs.seconds:.2f}", f"{theirs.cpu:.2f}", f"{theirs.rss / MIB:.0f}", f"{theirs.size / 1e6:.1f}"] if theirs else [""] * 4
        found.append(f"| {night} | {' | '.join(cells)} |")
    if disk.size < SMALLEST_FOR_SENT:
        found += ["", "The bounds of bytes sent belong to a disk of 10 GiB: on a smaller one a few changed segments are many hundredths."]
    bounds = targets(shown, nights)
    if bounds:
        found += ["", "| target of the nights | measured | asked | |", "|---|--:|--:|---|"]
        found += [f"| {what} | {value} | {bound} | {'met' if met else '**missed**'} |" for what, value, bound, met in bounds]
    if device:
        found += ["", f"Reading the device alone takes {device.seconds:.2f} s."]
    return found
