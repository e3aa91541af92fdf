#!/usr/bin/env python3
"""Draws docs/architecture.svg: where a server's disk goes, and who says so.

    scripts/architecture.py            draws it
    scripts/architecture.py --check    fails when the picture is not what this script draws
"""

import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs/architecture.svg"
WIDTH, HEIGHT = 1000, 500

# Regions: title, x, y, width, height.
REGIONS = [
    ("us-south: where the servers run", 16, 16, 596, 468),
    ("us-east: where they would be recovered", 636, 16, 348, 468),
]
# Frames: the same, for what holds boxes and is no region. The first ones lie behind.
FRAMES = [
    ("", 52, 196, 536, 132),
    ("", 44, 188, 536, 132),
    ("conversion server: snapferry worker, or snapferry replicate", 36, 180, 536, 132),
]
# Boxes by name: (first line, second line), x, y, width, height, kind.
BOXES = {
    "server": (("web01", "goes on running"), 36, 60, 130, 56, "cloud"),
    "snapshot": (("snapshot", "kept, tagged"), 236, 60, 130, 56, "cloud"),
    "volume": (("volume", "for minutes"), 442, 60, 130, 56, "cloud"),
    "read": (("read", "O_DIRECT"), 442, 226, 112, 56, "ours"),
    "compress": (("compress", "all cores"), 310, 226, 112, 56, "ours"),
    "assemble": (("assemble", "qcow2 layout"), 178, 226, 112, 56, "ours"),
    "upload": (("upload", "parts in flight"), 46, 226, 112, 56, "ours"),
    "shell": (("snapferry enqueue", "schedule, status, jobs"), 36, 402, 180, 56, "ours"),
    "redis": (("Redis", "jobs, leases, schedules"), 392, 402, 180, 56, "other"),
    "bucket": (("bucket", "image and manifest"), 660, 402, 140, 56, "cloud"),
    "library": (("image library", "web01-latest"), 660, 60, 140, 56, "cloud"),
    "recovered": (("web01, again", "if it has to be"), 846, 60, 122, 56, "cloud"),
}
# Arrows: points from first to last, what is said, where, and which end of the words is there.
ARROWS = [
    ([(166, 88), (236, 88)], "snapshot", (201, 80), "middle"),
    ([(366, 88), (442, 88)], "restore", (404, 80), "middle"),
    ([(507, 116), (507, 226)], "attach, prove; delete soon after", (499, 146), "end"),
    ([(442, 254), (422, 254)], "", (0, 0), "middle"),
    ([(310, 254), (290, 254)], "", (0, 0), "middle"),
    ([(178, 254), (158, 254)], "", (0, 0), "middle"),
    ([(102, 282), (102, 366), (700, 366), (700, 402)], "parts, each with its checksum; read back", (300, 358), "middle"),
    ([(730, 402), (730, 116)], "import; compare SHA-256", (738, 262), "start"),
    ([(800, 88), (846, 88)], "", (0, 0), "middle"),
    ([(216, 430), (392, 430)], "jobs", (304, 422), "middle"),
    ([(482, 402), (482, 328)], "claim, beat; ask before each change", (474, 392), "end"),
]
NOTES = [
    (846, 136, "terraform/recover,"),
    (846, 152, "snapferry provision"),
]

# Whoever shows the picture says whether it is night; who doesn't know takes the first colours.
STYLE = """
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .small { font-size: 11px; fill: #59636e }
.region { fill: none; stroke: #8c959f; stroke-dasharray: 6 4 } .frame { fill: #f6f8fa; stroke: #8c959f }
.cloud { fill: #ddf4ff; stroke: #0969da } .ours { fill: #dafbe1; stroke: #1a7f37 } .other { fill: #fff8c5; stroke: #9a6700 }
.arrow { fill: none; stroke: #59636e; stroke-width: 1.5 } .tip { fill: #59636e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 }
  .region { stroke: #6e7681 } .frame { fill: #151b23; stroke: #6e7681 }
  .cloud { fill: #0c2d4d; stroke: #4493f8 } .ours { fill: #0f2d19; stroke: #3fb950 } .other { fill: #34270a; stroke: #d29922 }
  .arrow { stroke: #9198a1 } .tip { fill: #9198a1 }
}
"""


def text_at(x, y, words, kind="", anchor="start"):
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def rectangle(x, y, width, height, kind):
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="{kind}"/>'


def tip(before, at):
    """The point of an arrow, a triangle that looks where the last line goes."""
    (x0, y0), (x, y) = before, at
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    corners = [(x, y), (x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx), (x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx)]
    return '<polygon class="tip" points="' + " ".join(f"{a},{b}" for a, b in corners) + '"/>'


def drawn():
    parts = []
    for title, x, y, width, height in REGIONS:
        parts += [rectangle(x, y, width, height, "region"), text_at(x + 20, y + 26, title, "title")]
    for title, x, y, width, height in FRAMES:
        parts.append(rectangle(x, y, width, height, "frame"))
        if title:
            parts.append(text_at(x + 14, y + 26, title, "title"))
    for points, words, (x, y), anchor in ARROWS:
        parts.append('<polyline class="arrow" points="' + " ".join(f"{a},{b}" for a, b in points) + '"/>')
        parts.append(tip(points[-2], points[-1]))
        if words:
            parts.append(text_at(x, y, words, "small", anchor))
    for (first, second), x, y, width, height, kind in BOXES.values():
        middle = x + width // 2
        parts += [rectangle(x, y, width, height, kind), text_at(middle, y + 25, first, "title", "middle"), text_at(middle, y + 43, second, "small", "middle")]
    parts += [text_at(x, y, words, "small") for x, y, words in NOTES]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="From a running server through a conversion server and a bucket to an image in another region">'
    return "\n".join([head, "<!-- made by scripts/architecture.py -->", f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    picture = drawn()
    if sys.argv[1:]:
        if not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != picture:
            print(f"architecture.py: {PICTURE.relative_to(ROOT)} is not what this script draws: run scripts/architecture.py", file=sys.stderr)
            return 1
        return 0
    PICTURE.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
