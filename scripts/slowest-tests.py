#!/usr/bin/env python3
"""Prints how long the whole suite took, and its ten slowest tests, from the JUnit report that cargo-nextest writes.

    scripts/slowest-tests.py [REPORT]      by default target/nextest/default/junit.xml
"""

import sys
import xml.etree.ElementTree
from pathlib import Path

REPORT = Path(__file__).resolve().parent.parent / "target" / "nextest" / "default" / "junit.xml"
LISTED = 10


def main():
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return 0 if len(sys.argv) == 2 else 2
    path = Path(sys.argv[1]) if len(sys.argv) == 2 else REPORT
    try:
        suites = xml.etree.ElementTree.parse(path).getroot()
    except (OSError, xml.etree.ElementTree.ParseError) as error:
        print(f"slowest-tests.py: {path}: {error}", file=sys.stderr)
        return 1
    cases = [(float(case.get("time", 0)), case.get("name")) for case in suites.iter("testcase")]
    print(f"{len(cases)} tests in {float(suites.get('time', 0)):.0f} s; the slowest:")
    for seconds, name in sorted(cases, reverse=True)[:LISTED]:
        print(f"{seconds:8.1f} s  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
