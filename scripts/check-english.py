#!/usr/bin/env python3
"""Counts how far the comments and names of the Rust code keep to House English (CONTRIBUTING.md).

    scripts/check-english.py            fails if a figure is over its limit, and prints the figures
    scripts/check-english.py --list     prints every comment and line that counts against a limit
    scripts/check-english.py PATH...    looks at these files and folders alone (with --list, too)
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# In hundredths of all doc comments.
MOST_SHORT = 8.0
MOST_CLAUSES = 2.0
SHORT = 3
COLUMNS = 110

# A comment that begins like this names no thing and says of nothing what it does: it is half a sentence.
CLAUSE = re.compile(
    r"^(what|whatever|where|whether|who|whom|whose|which|how|when|why|that|with what|from what|by what|to what|of what|on what"
    r"|in what|for what|as what|until when|since when|than|those|they|it|them|their|its)\b(?!')",
    re.IGNORECASE,
)
# An actor has a name: caller, worker, user, process, server.
NOBODY = re.compile(r"\b(somebody|nobody|whoever|everybody|anybody|someone|anyone|no one)\b", re.IGNORECASE)
# Names that only their author understood, as types.
PRIVATE = (
    "Told Grounds Ground Here Site Means Terms Share Words Hold Held Then Last Word Sight Watched Onlooker Good Heard"
    " Happening Surveyed Since Line Call Beside Bodies Leftover Left Place Shelf Use Whole Marked Copying Behind World Deed"
    " Happened Life Things Yard Thing Left Found"
).split()
DEFINED = re.compile(r"^\s*(?:pub(?:\([^)]*\))? )?(?:struct|enum|trait|type) (\w+)", re.MULTILINE)


def rust_files(paths):
    listed = subprocess.run(["git", "ls-files", "--", *(paths or ["."])], cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.splitlines() if name.endswith(".rs") and (ROOT / name).exists()]


def markdown_files():
    listed = subprocess.run(["git", "ls-files", "--", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def doc_comments(text):
    """(line, words as one text) of each run of `///` or `//!` lines."""
    begin, words = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r"\s*//[/!](?!/) ?(.*)", line)
        if found:
            begin = begin or number
            words.append(found[1])
        elif begin:
            yield begin, " ".join(words).strip()
            begin, words = 0, []


def comments(text):
    """(line, words) of every comment line, docs or not."""
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r"\s*//[/!]?\s?(.*)", line)
        if found:
            yield number, found[1]


def is_wide(line):
    """True for a comment that is too wide: rustfmt breaks code, and leaves comments as they are."""
    return len(line) > COLUMNS and re.match(r"\s*//", line) and "://" not in line


def wide_in_markdown(text):
    """Tables, code and links can't be broken."""
    fenced = False
    # Tables and lines that benches/compare.py writes.
    written = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("<!-- compare: "):
            written = line.endswith("begin -->")
        if written:
            continue
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if len(line) > COLUMNS and not fenced and not line.startswith(("|", "    ", "![")) and "](" not in line and "://" not in line:
            yield number


def main():
    words = sys.argv[1:]
    if words[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    listing = "--list" in words
    paths = [word for word in words if word != "--list"]
    found = {kind: [] for kind in ("short", "clauses", "unnamed actors", "private names", "wide lines")}
    total = 0
    for path in rust_files(paths):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        for line, comment in doc_comments(text):
            total += 1
            if len(comment.split()) <= SHORT:
                found["short"].append((name, line, comment))
            if CLAUSE.match(comment):
                found["clauses"].append((name, line, comment))
        for line, comment in comments(text):
            if NOBODY.search(comment):
                found["unnamed actors"].append((name, line, comment))
        for match in DEFINED.finditer(text):
            if match[1] in PRIVATE:
                found["private names"].append((name, text.count("\n", 0, match.start(1)) + 1, match[1]))
        for line, content in enumerate(text.splitlines(), 1):
            if is_wide(content):
                found["wide lines"].append((name, line, content.strip()[:80]))
    if not paths:
        for path in markdown_files():
            for line in wide_in_markdown(path.read_text(encoding="utf-8")):
                found["wide lines"].append((path.relative_to(ROOT), line, ""))
    most = {"short": MOST_SHORT, "clauses": MOST_CLAUSES}
    status = 0
    for kind, places in found.items():
        if kind in most:
            share = 100 * len(places) / max(total, 1)
            is_over = share > most[kind]
            figure = f"{len(places)} of {total} doc comments, {share:.1f} % (at most {most[kind]:.0f} %)"
        else:
            is_over = bool(places)
            figure = f"{len(places)} (none)"
        print(f"{'OVER' if is_over else 'ok  '}  {kind}: {figure}")
        status |= is_over
        if listing:
            for name, line, content in places:
                print(f"      {name}:{line}: {content[:110]}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
