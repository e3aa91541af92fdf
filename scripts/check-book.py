#!/usr/bin/env python3
"""Checks a book that mdBook has made: each link within it leads to a page, and to a place on that page.

    scripts/check-book.py FOLDER
"""

import html.parser
import pathlib
import sys
import urllib.parse


class Page(html.parser.HTMLParser):
    """Links and ids of a page."""

    def __init__(self):
        super().__init__()
        self.links, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.add(value)
            elif (tag, name) in (("a", "href"), ("img", "src")) and value:
                self.links.append(value)


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    pages = {}
    for path in root.rglob("*.html"):
        # These contain every page's text once more, with links as from where the text came.
        if path.name not in ("print.html", "toc.html", "404.html"):
            pages[path] = Page()
            pages[path].feed(path.read_text(encoding="utf-8"))
    dead, tried = [], 0
    for path, page in pages.items():
        for link in page.links:
            target = urllib.parse.urlsplit(link)
            if target.scheme or target.netloc:
                continue
            tried += 1
            to = (path.parent / urllib.parse.unquote(target.path)).resolve() if target.path else path
            to = to / "index.html" if to.is_dir() else to
            if not to.exists() or (target.fragment and to in pages and urllib.parse.unquote(target.fragment) not in pages[to].ids):
                dead.append(f"{path.relative_to(root)}: {link}")
    for one in dead:
        print(f"check-book: {one}: leads nowhere", file=sys.stderr)
    if not dead and tried < 100:
        print(f"check-book: {tried} links in {root}: that is no book of these documents", file=sys.stderr)
        return 1
    print(f"{len(pages)} pages, {tried} links", file=sys.stderr)
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
