#!/usr/bin/env python3
"""Lists the licences of all that snapferry is built from, by what the crates themselves say.

    scripts/licences.py               writes docs/licences.md
    scripts/licences.py --check       fails when that is not what Cargo.lock gives
    scripts/licences.py --texts FILE  writes the licences' texts, as they lie in the crates, for whoever passes the program on
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "docs/licences.md"
CARGO = os.environ.get("CARGO", "cargo")
TARGET = "x86_64-unknown-linux-gnu"
# Crates that bring the source of a C library along, whose licence need not be the crate's.
BUNDLED = {
    "libdeflate-sys": "libdeflate, MIT",
    "zstd-sys": "zstd, BSD-3-Clause OR GPL-2.0",
    "ring": "parts of BoringSSL and fiat-crypto, as its LICENSE says",
}
# Sources of others in packages of this workspace, with the folder of their licence.
COPIED = {
    "ISA-L 2.31.0 (igzip's match finder and writer of tokens, in assembler), BSD-3-Clause": "crates/isal/asm",
}
# The packages of this workspace.
OWN = re.compile(r"^snapferry(-\w+)?$")
TEXT = re.compile(r"^(un)?licen[sc]e|^copying|^notice|^copyright", re.IGNORECASE)
# A crate's own folder, and those of the sources that it brings along.
DEPTH = 3


def cargo(*words):
    return subprocess.run([CARGO, *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def tree(edges):
    """The crates behind those edges: (name, version) to licence."""
    lines = cargo("tree", "--locked", "-p", "snapferry", "--target", TARGET, "--edges", edges, "--prefix", "none", "--format", "{p}|{l}").splitlines()
    found = {}
    # With all edges, headings such as "[dev-dependencies]" stand between.
    for line in (line for line in lines if "|" in line):
        package, licence = line.removesuffix(" (*)").rsplit("|", 1)
        name, version = package.split()[:2]
        # Before 2018, crates wrote "A/B" for "A OR B".
        found[name, version.removeprefix("v")] = re.sub(r"\s*/\s*", " OR ", licence)
    found = {crate: licence for crate, licence in found.items() if not OWN.match(crate[0])}
    missing = [name for (name, _), licence in found.items() if not licence]
    if missing:
        sys.exit(f"licences.py: no licence is told by {', '.join(missing)}: read it, and list it by hand")
    return found


def table(crates):
    by_licence = {}
    for (name, version), licence in sorted(crates.items()):
        by_licence.setdefault(licence, []).append(f"{name} {version}")
    rows = [f"| {licence} | {', '.join(names)} |" for licence, names in sorted(by_licence.items())]
    return "\n".join(["| licence | crates |", "|---|---|", *rows])


def listed():
    program = tree("normal,build")
    tests = {crate: licence for crate, licence in tree("all").items() if crate not in program}
    bundled = [f"- `{name}` brings {what}" for name, what in sorted(BUNDLED.items()) if any(name == crate for crate, _ in program)]
    copied = [f"- `{folder}`: {what}" for what, folder in sorted(COPIED.items())]
    return f"""# Licences

snapferry itself is under the Apache License 2.0 ([LICENSE](../LICENSE)). What follows is made by
`scripts/licences.py` from `Cargo.lock` and what each crate says of itself, and `make lint` looks whether it
still is what that makes. `deny.toml` says which licences are taken in; `make lint` holds every crate to it
where cargo-deny is installed, as it is in CI. The packages of a release carry the texts
(`third-party-licences.txt`).

## In the program

{len(program)} crates, for Linux, with the features that are on by default; those that only help to build it included.

{table(program)}

Sources in C that come with them:

{chr(10).join(bundled)}

Sources of others in folders of snapferry's own, changed where a README there says so:

{chr(10).join(copied)}

## In tests and benches only

{len(tests)} crates.

{table(tests)}
"""


def texts(target):
    folders = {
        (package["name"], package["version"]): Path(package["manifest_path"]).parent
        for package in json.loads(cargo("metadata", "--locked", "--format-version", "1"))["packages"]
    }
    by_text = {}
    without = []
    for crate, licence in sorted(tree("normal,build").items()):
        folder = folders[crate]
        found = [path for path in sorted(folder.rglob("*")) if TEXT.match(path.name) and path.is_file()]
        found = [path for path in found if len(path.relative_to(folder).parts) <= DEPTH and path.suffix not in (".rs", ".py", ".c", ".h")]
        if not found:
            without.append(f"{crate[0]} {crate[1]}: {licence}")
        for path in found:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
            key = hashlib.sha256(" ".join(text.split()).encode()).digest()
            by_text.setdefault(key, (text, []))[1].append(f"{crate[0]} {crate[1]} ({path.relative_to(folder)})")
    for what, folder in sorted(COPIED.items()):
        text = (ROOT / folder / "LICENSE").read_text(encoding="utf-8").strip()
        key = hashlib.sha256(" ".join(text.split()).encode()).digest()
        by_text.setdefault(key, (text, []))[1].append(what)
    parts = ["The licences of what snapferry is built from, as they lie in its parts."]
    parts += [f"{'=' * 100}\n{chr(10).join(crates)}\n{'=' * 100}\n\n{text}" for text, crates in by_text.values()]
    if without:
        parts.append(f"{'=' * 100}\nWithout a text of their own:\n{chr(10).join(without)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main():
    match sys.argv[1:]:
        case []:
            LIST.write_text(listed(), encoding="utf-8")
        case ["--check"]:
            if not LIST.exists() or LIST.read_text(encoding="utf-8") != listed():
                print("licences.py: docs/licences.md is not what Cargo.lock gives: run scripts/licences.py", file=sys.stderr)
                return 1
        case ["--texts", target]:
            texts(Path(target))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
