#!/usr/bin/env python3
"""Draws the measured times of benches/README.md as docs/bench.svg.

    benches/chart.py            draws it
    benches/chart.py --check    fails when the picture is not what the figures would give

The figures are those between the markers that benches/compare.py writes, never any of its own; rows that are not there are left out.
"""

import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "benches/README.md"
PICTURE = ROOT / "docs/bench.svg"
BEGIN, END = "<!-- compare: begin -->", "<!-- compare: end -->"

QEMU, OURS = "qemu", "ours"
# A group's title, and its bars: the row, how it is called, whose it is.
GROUPS = [
    ("Into a file, deflate", [
        ("qemu/deflate", "qemu-img convert -c", QEMU),
        ("qemu/deflate-W", "qemu-img convert -c -W -m 16", QEMU),
        ("file/deflate/small", "snapferry, small", OURS),
        ("file/deflate/balanced", "snapferry, balanced", OURS),
        ("file/deflate/fast", "snapferry, fast", OURS),
    ]),
    ("Into a file, zstd", [
        ("qemu/zstd-W", "qemu-img convert -c -W -m 16", QEMU),
        ("file/zstd/small", "snapferry, small", OURS),
        ("file/zstd/balanced", "snapferry, balanced", OURS),
        ("file/zstd/fast", "snapferry, fast", OURS),
    ]),
    ("Into a bucket, deflate", [
        ("bucket/s3fs", "qemu-img convert -c onto s3fs", QEMU),
        ("bucket/snapferry", "snapferry, fast", OURS),
    ]),
]

# Pixels.
WIDTH, LEFT, RIGHT, BAR, STEP, TITLE, TOP = 860, 250, 190, 16, 24, 34, 62

# Whoever shows the picture says whether it is night; who doesn't know takes the first colours.
STYLE = """
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .head { font-size: 16px; font-weight: 600 } .small { font-size: 11px; fill: #59636e }
.qemu { fill: #8c959f } .ours { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .qemu { fill: #6e7681 } .ours { fill: #4493f8 }
}
"""


class Unreadable(Exception):
    """benches/README.md has another form than this script reads."""


def measured():
    """The report's first line, that of its disk, and by row: (seconds, MB stored)."""
    text = README.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise Unreadable(f"no {BEGIN} and {END}")
    lines = [line for line in text.split(BEGIN, 1)[1].split(END, 1)[0].splitlines() if line]
    tables = [number for number, line in enumerate(lines) if line.startswith("| row |")]
    if not tables or len(lines) < 2:
        raise Unreadable("no table of rows")
    names = [cell.strip() for cell in lines[tables[0]].strip("|").split("|")]
    seconds, stored = names.index("seconds"), names.index("stored MB")
    rows = {}
    for line in lines[tables[0] + 2:]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) <= max(seconds, stored):
            break
        rows[cells[0]] = (float(cells[seconds]), float(cells[stored]) if cells[stored] else None)
    return lines[0], lines[1], rows


def text_at(x, y, words, kind="", anchor="start"):
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def drawn():
    run, disk, rows = measured()
    groups = [(title, [bar for bar in bars if bar[0] in rows]) for title, bars in GROUPS]
    groups = [(title, bars) for title, bars in groups if bars]
    if not groups:
        raise Unreadable("none of the rows that are drawn")
    longest = max(rows[row][0] for _, bars in groups for row, _, _ in bars)
    scale = (WIDTH - LEFT - RIGHT) / longest

    # Without the version of everything: that is in the table's own document.
    date, _, machine = run.partition(", revision ")
    machine = machine.partition(". ")[2].partition(", Linux")[0]
    parts = [
        text_at(20, 26, "Seconds for one disk, shorter is better", "head"),
        text_at(20, 46, f"{date}, {machine}. {disk.split(';')[0]}".replace(", a loop device", "") + ". All rows: benches/README.md", "small"),
    ]
    y = TOP
    for title, bars in groups:
        parts.append(text_at(20, y + 18, title, "title"))
        y += TITLE
        for row, words, whose in bars:
            seconds, stored = rows[row]
            size = f", {stored / 1000:.2f} GB" if stored else ""
            parts.append(text_at(LEFT - 10, y + 13, words, "", "end"))
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{max(seconds * scale, 1):.1f}" height="{BAR}" rx="2" class="{whose}"/>')
            parts.append(text_at(LEFT + seconds * scale + 8, y + 13, f"{seconds:.1f} s{size}"))
            y += STEP
        y += 8
    height = y + 6
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="Seconds for one disk, by program and level">'
    return "\n".join([head, "<!-- made by benches/chart.py -->", f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        picture = drawn()
    except (Unreadable, ValueError) as error:
        print(f"chart.py: {README.relative_to(ROOT)}: {error}", file=sys.stderr)
        return 1
    if sys.argv[1:]:
        if not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != picture:
            print(f"chart.py: {PICTURE.relative_to(ROOT)} is not what {README.relative_to(ROOT)} gives: run benches/chart.py", file=sys.stderr)
            return 1
        return 0
    PICTURE.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
