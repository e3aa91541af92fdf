#!/usr/bin/env python3
"""Checks what monitoring/ ships: alerts and dashboard.

    scripts/check-monitoring.py

promtool (Debian's package prometheus) parses the alerts, runs their tests, and parses every query of the dashboard. Each alert has a test in
which it fires. The dashboard's panels have titles and descriptions of their own, and don't overlap. Without promtool this is skipped, and
fails if CI is true.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "monitoring"
RULES, TESTS, BOARD = (FOLDER / name for name in ("snapferry.rules.yml", "tests.yml", "grafana.json"))
# Grafana's own variables in queries, and values of their kind.
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*", "$server": ".*"}
# Columns of a dashboard.
WIDTH = 24
# Seconds for one run of promtool.
LONGEST = 300

problems = []


def complain(text):
    problems.append(text)


def promtool(*words):
    ran = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=LONGEST, check=False)
    if ran.returncode != 0:
        complain(f"promtool {' '.join(map(str, words))}:\n{ran.stdout}{ran.stderr}")


def check_alerts():
    rules, tests = RULES.read_text(encoding="utf-8"), TESTS.read_text(encoding="utf-8")
    promtool("check", "rules", str(RULES))
    promtool("test", "rules", str(TESTS))
    # An alert that is only expected to be silent could be any.
    fires = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", tests))
    for alert in re.findall(r"alert: (\w+)", rules):
        if alert not in fires:
            complain(f"{TESTS.name}: no test in which {alert} fires")


def check_board():
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    queries, taken, ids = [], {}, set()
    for panel in board["panels"]:
        title, place = panel["title"], panel["gridPos"]
        if panel["id"] in ids:
            complain(f"{BOARD.name}: {title}: another panel has its id")
        ids.add(panel["id"])
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if x >= WIDTH or taken.setdefault((x, y), title) != title:
                    complain(f"{BOARD.name}: {title} overlaps {taken.get((x, y), 'the edge')}")
        if panel["type"] == "row":
            continue
        if not panel.get("description"):
            complain(f"{BOARD.name}: {title} has no description")
        queries += [(title, target["expr"]) for target in panel["targets"]]
    lines = ["groups:", "  - name: dashboard", "    rules:"]
    for number, (title, query) in enumerate(queries):
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        if "$" in query:
            complain(f"{BOARD.name}: {title}: {query}: a variable that this check does not know")
        # A string of JSON is one of YAML.
        lines += [f"      - record: dashboard:query:{number}", f"        expr: {json.dumps(query)}"]
    with tempfile.NamedTemporaryFile("w", suffix=".yml", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        promtool("check", "rules", file.name)


def main():
    if not shutil.which("promtool"):
        print("SKIPPED: check-monitoring: there is no promtool (Debian's package prometheus)", file=sys.stderr)
        sys.exit(1 if os.environ.get("CI") == "true" else 0)
    check_alerts()
    check_board()
    for problem in problems:
        print(f"check-monitoring: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


main()
