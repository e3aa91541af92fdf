#!/usr/bin/env python3
"""Records a replication as a terminal shows it, as docs/terminal.svg: the real program, in a real terminal, on the simulated cloud.

    scripts/record.py DISK     DISK: a raw disk for the server, as scripts/make-disk.sh makes one

Needs target/release/snapferry, tmux, and root for loop devices (files do without). Time in the picture is the time that it took,
but for waits for the cloud, of which the first second is shown.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/snapferry"
SIMULATOR = PROGRAM.with_name("snapferry-sim")
PICTURE = ROOT / "docs/terminal.svg"
TYPED = "snapferry replicate web01 --to us-east --bucket images"
COLUMNS, ROWS = 160, 18
# Of a character, in pixels.
WIDTH, HEIGHT = 8.4, 18
MARGIN = 14
# Between two looks at the terminal, and the wait before it begins anew, in seconds.
LOOK, REST = 0.1, 4.0
# What the program shows while it waits for the cloud, and how much of such a wait is played, in seconds.
WAIT, PLAYED = "waiting for ", 1.0
# How long anything may take, in seconds.
PATIENCE = 300
BACKGROUND, PLAIN = "#11151c", "#d7dce4"
COLOURS = {30: "#555b66", 31: "#e06c75", 32: "#7ec97e", 33: "#d9b35f", 34: "#6aa5e8", 35: "#c586c0", 36: "#5fb8c2", 37: PLAIN}
SGR = re.compile(r"\x1b\[([0-9;]*)m")


def tmux(*words, **more):
    return subprocess.run(["tmux", "-L", f"record-{os.getpid()}", "-f", "/dev/null", *words], check=True, capture_output=True, text=True, **more).stdout


def exports(path):
    """What the simulated cloud says to export, once it has said all of it."""
    begun = time.monotonic()
    while time.monotonic() - begun < PATIENCE:
        text = path.read_text()
        found = dict(re.findall(r"^export ([A-Z0-9_]+)=(.*)$", text, re.MULTILINE))
        if "# serving" in text and text.endswith("\n"):
            return {name: value.strip("'\"") for name, value in found.items()}
        time.sleep(LOOK)
    sys.exit("record.py: the simulated cloud does not begin")


def screens(environment):
    """What the terminal showed, each with the second from which on it did."""
    # An empty environment but for this: a prompt without anybody's names.
    words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), "bash", "--norc", "--noprofile"]
    tmux("new-session", "-d", "-x", str(COLUMNS), "-y", str(ROWS), *words)
    try:
        time.sleep(1)
        tmux("send-keys", TYPED)
        shown, begun, running = [], time.monotonic(), False
        tmux("send-keys", "Enter")
        while time.monotonic() - begun < PATIENCE:
            screen = tmux("capture-pane", "-p", "-e").rstrip("\n")
            if not shown or shown[-1][1] != screen:
                shown.append((time.monotonic() - begun, screen))
            busy = tmux("display-message", "-p", "#{pane_current_command}").strip() != "bash"
            if running and not busy:
                return shown + [(time.monotonic() - begun, tmux("capture-pane", "-p", "-e").rstrip("\n"))]
            running = running or busy
            time.sleep(LOOK)
        sys.exit("record.py: it does not end")
    finally:
        tmux("kill-server")


def shortened(shown):
    """The same without most of what passes in waits."""
    kept, cut, wait_began = [], 0.0, None
    for at, (second, screen) in enumerate(shown):
        ends = shown[at + 1][0] if at + 1 < len(shown) else second
        waits = WAIT in screen.rsplit("\n", 1)[-1]
        wait_began = (second if wait_began is None else wait_began) if waits else None
        if waits and second - wait_began > PLAYED:
            cut += ends - second
        else:
            kept.append((second - cut, screen))
    return kept


def runs(line):
    """A line's pieces of one colour each: column, text, colour, bold."""
    colour, bold, column = PLAIN, False, 0
    pieces = SGR.split(line)
    for at, piece in enumerate(pieces):
        if at % 2:
            for code in (int(code or 0) for code in piece.split(";")):
                if code == 0:
                    colour, bold = PLAIN, False
                elif code == 1:
                    bold = True
                elif code == 2:
                    colour = COLOURS[30]
                elif code == 39:
                    colour = PLAIN
                elif code in COLOURS or code - 60 in COLOURS:
                    colour = COLOURS.get(code) or COLOURS[code - 60]
        elif piece:
            if piece.strip():
                yield column, piece, colour, bold
            column += len(piece)


def drawn_line(line):
    texts = []
    for column, text, colour, bold in runs(line):
        weight = ' font-weight="bold"' if bold else ""
        length = f'textLength="{len(text) * WIDTH:g}" lengthAdjust="spacingAndGlyphs"'
        texts.append(f'<text x="{column * WIDTH:g}" fill="{colour}"{weight} {length} xml:space="preserve">{escape(text)}</text>')
    return "".join(texts)


def picture(shown):
    lines, frames = {}, []
    for at, (_, screen) in enumerate(shown):
        uses = []
        for row, line in enumerate(screen.split("\n")[:ROWS]):
            if drawn := drawn_line(line):
                number = lines.setdefault(drawn, len(lines))
                uses.append(f'<use href="#l{number}" y="{at * ROWS * HEIGHT + row * HEIGHT + HEIGHT - 4}"/>')
        frames.append("".join(uses))
    whole = shown[-1][0] + REST
    steps = [f"{second / whole:.2%} {{ transform: translateY({-at * ROWS * HEIGHT}px) }}" for at, (second, _) in enumerate(shown)]
    width, height = COLUMNS * WIDTH, ROWS * HEIGHT
    last = -(len(shown) - 1) * ROWS * HEIGHT
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 2 * MARGIN:g} {height + 2 * MARGIN:g}" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14">
<title>snapferry replicates a server, in a terminal</title>
<style>
.film {{ transform: translateY({last}px); animation: play {whole:.1f}s step-end infinite }}
@media (prefers-reduced-motion: reduce) {{ .film {{ animation: none }} }}
@keyframes play {{ {" ".join(steps)} }}
</style>
<defs>{chr(10).join(f'<g id="l{number}">{drawn}</g>' for drawn, number in lines.items())}</defs>
<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>
<svg x="{MARGIN}" y="{MARGIN}" width="{width:g}" height="{height}" overflow="hidden"><g class="film">
{chr(10).join(frames)}
</g></svg>
</svg>
"""


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    for needed in [PROGRAM, SIMULATOR, Path(sys.argv[1])]:
        if not needed.exists():
            sys.exit(f"record.py: there is no {needed}")
    if not shutil.which("tmux"):
        sys.exit("record.py: there is no tmux")
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as work:
        told = Path(work) / "told"
        words = ["region", "--dir", f"{work}/cloud", "--disk", sys.argv[1], "--bucket", "images", "--delay-ms", "400"]
        with told.open("w") as out, subprocess.Popen([SIMULATOR, *words], stdout=out) as cloud:
            try:
                environment = {
                    **exports(told),
                    "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
                    "PS1": "$ ",
                    "TERM": "xterm-256color",
                    "LANG": "C.UTF-8",
                    "SNAPFERRY_STATE_FOLDER": f"{work}/state",
                }
                shown = screens(environment)
            finally:
                cloud.terminate()
    PICTURE.write_text(picture(shortened(shown)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
