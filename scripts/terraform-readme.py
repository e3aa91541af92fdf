#!/usr/bin/env python3
"""Writes the tables of inputs and outputs into the READMEs of the Terraform folders.

    target/terraform/bin/python scripts/terraform-readme.py
    target/terraform/bin/python scripts/terraform-readme.py --compare PROGRAM

The tables stand between two marks, everything else in a README is left alone. scripts/check-terraform.py refuses a README whose tables
are not those of its folder. --compare holds them to what terraform-docs, at PROGRAM, reads in the same files, and writes nothing.
"""

import argparse
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "terraform"))

import readme  # noqa: E402 (the path has to be there first)
from tree import Folder, find_folders  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=HERE.parent / "terraform", help="the folders (terraform)")
    parser.add_argument("--compare", metavar="PROGRAM", help="terraform-docs, to compare with")
    given = parser.parse_args()

    root = given.folder.resolve()
    problems = []
    for path in find_folders(root):
        folder = Folder.parse(path)
        if given.compare:
            told = subprocess.run([given.compare, "json", str(path)], check=True, capture_output=True, text=True).stdout
            problems += [f"{path.relative_to(root)}: {problem}" for problem in readme.compare(folder, json.loads(told))]
            continue
        file = path / "README.md"
        text = file.read_text(encoding="utf-8") if file.exists() else f"# {path.name}\n"
        file.write_text(readme.with_tables(text, folder), encoding="utf-8")
    for problem in problems:
        print(f"terraform-readme: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
