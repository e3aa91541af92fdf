#!/usr/bin/env python3
"""Preprocessor of mdBook, see book.toml: links that lead out of docs/ lead to the repository, and those to a README.md to its page.

In the repository `../terraform/README.md` is a file beside docs/; in the site there is none. The repository's address is
`output.html.git-repository-url` in book.toml, or that of the hosted workflow that builds the book. Without an address only the link's
text stays. mdBook makes index.html of a README.md, and leaves the links to it as they are.
"""

import json
import os
import posixpath
import re
import sys

LINK = re.compile(r"\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")


def repository(config):
    """Address of the repository's files at the built commit, or None."""
    base = ((config.get("output") or {}).get("html") or {}).get("git-repository-url")
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    if not base and server and name:
        base = f"{server}/{name}"
    return f"{base.rstrip('/')}/blob/{os.environ.get('GITHUB_SHA', 'main')}" if base else None


def led_out(text, folder, base):
    """The text of a page in `folder`, below docs/, with its links."""

    def replaced(found):
        target = found["target"]
        if "://" in target or target.startswith("#"):
            return found[0]
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if path == "docs" or path.startswith("docs/"):
            return found[0].replace("README.md", "index.md")
        return f"[{found['text']}]({base}/{path})" if base else found["text"]

    return LINK.sub(replaced, text)


def walk(items, base):
    for item in items:
        chapter = item.get("Chapter") if isinstance(item, dict) else None
        if chapter:
            folder = posixpath.dirname(chapter.get("path") or "")
            chapter["content"] = led_out(chapter["content"], folder, base)
            walk(chapter["sub_items"], base)


def main():
    if sys.argv[1:2] == ["supports"]:
        return 0
    context, book = json.load(sys.stdin)
    # mdBook called the list of chapters `sections` before 0.5.
    walk(book["items"] if "items" in book else book["sections"], repository(context["config"]))
    json.dump(book, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
