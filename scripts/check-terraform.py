#!/usr/bin/env python3
"""Checks the Terraform files.

    target/terraform/bin/python scripts/check-terraform.py [FOLDER]

`make check-terraform` makes that Python, by scripts/terraform-venv.sh, and runs this.

Every resource, data source and nested block is held to schema/ibm-*.json: unknown, deprecated, read-only and missing arguments. Every
variable, local value, module output and attribute that is referred to has to be there, and everything that is declared has to be used and
described; modules get what they ask for, and no more; a root that only passes its variables on has the module's. READMEs have the inputs
and outputs, roots a lock file. Form as far as layout.py says. Where there is a terraform or a tofu, it does besides
what it can without the real provider: fmt, validate and test.

Not checked: what only the provider or the cloud knows (values that are allowed, quotas, rights). Whether the schema, which was written
down by hand, is right, scripts/check-terraform-provider.sh finds out, where the real provider can be had.
"""

import argparse
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "terraform"))

import arguments  # noqa: E402 (the path has to be there first)
import hcl2  # noqa: E402
import layout  # noqa: E402
import locks  # noqa: E402
import names  # noqa: E402
import programs  # noqa: E402
import readme  # noqa: E402
import wrappers  # noqa: E402
from schema import Schema  # noqa: E402
from tree import Folder, find_folders  # noqa: E402


def parse(path):
    with path.open(encoding="utf-8") as text:
        return hcl2.load(text)


def check_files(root, schema):
    """Yields all that is wrong, without any Terraform."""
    for path in sorted([*root.rglob("*.tf"), *root.rglob("*.tftest.hcl")]):
        if ".terraform" not in path.parts:
            for number, problem in layout.check_layout(path.read_text(encoding="utf-8")):
                yield f"{path.relative_to(root)}:{number}: {problem}"
    folders = {path: Folder.parse(path) for path in find_folders(root)}
    for path, folder in folders.items():
        problems = [*folder.mistakes]
        problems += arguments.check_arguments(folder, schema)
        problems += names.check_declarations(folder)
        problems += names.check_versions(folder, is_root="modules" not in path.relative_to(root).parts)
        problems += names.check_modules(folder, folders)
        problems += names.check_references(folder, folders, schema)
        problems += readme.check_readme(folder)
        problems += wrappers.check_wrapper(folder, folders)
        if folder.providers:
            problems += locks.check_lock(path, parse, schema, schema.version)
        yield from (f"{path.relative_to(root)}: {problem}" for problem in problems)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=HERE.parent / "terraform", help="what to check (terraform)")
    parser.add_argument("--schema", type=pathlib.Path, default=HERE.parent / "terraform" / "schema" / "ibm-2.5.0.json")
    parser.add_argument("--without-terraform", action="store_true", help="leave out what a terraform or tofu would say")
    given = parser.parse_args()

    root = given.folder.resolve()
    schema = Schema.load(given.schema)
    problems = list(check_files(root, schema))
    program = None if given.without_terraform else programs.find()
    if program:
        problems += programs.check_with(program, root, find_folders(root), schema)
    elif not given.without_terraform:
        skipped = "terraform's own fmt, validate and test: there is neither a terraform nor a tofu"
        print(f"SKIPPED: {skipped}", file=sys.stderr)
        if listed := os.environ.get("SNAPFERRY_SKIPPED"):
            with open(listed, "a", encoding="utf-8") as out:
                out.write(f"{skipped}\n")
    for problem in problems:
        print(f"check-terraform: {problem}", file=sys.stderr)
    if problems:
        return 1
    print(f"{len(find_folders(root))} folders are in order{', says ' + program + ' too' if program else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
