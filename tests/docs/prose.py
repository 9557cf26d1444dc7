"""Lines of prose in Markdown: at most 100 columns; `python tests/docs/prose.py` says which are longer, `--write` wraps them anew.

Tables, headings, code (fenced or indented), pictures and what scripts write stay as they are, and so does a line that is one long word.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 100
ITEM = re.compile(r"(\s*)((?:[-*+]|\d+\.)\s+)?")
# What makes a line begin something else, where a word of a paragraph must not come to stand.
BEGINS = re.compile(r"([-+*>]|\d+\.|#+)([ \0]|$)|\||```|---")
TIE = "\0"
# From here to `<!-- end -->` a script writes.
WRITTEN = re.compile(r"<!-- (table|plot) [\w-]+ -->")


def documents() -> list[Path]:
    """Returns the documents whose prose is wrapped."""
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    more = (*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md")))
    return [path for path in (*(ROOT / name for name in names), *more) if path.exists()]


def kinds(text: str) -> Iterator[tuple[str, str]]:
    """Yields each line with what it is: `prose`, `item` (prose that begins an item of a list), `blank` or `kept`."""
    fenced, written, inside, before = False, False, 0, "blank"
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip())
        if written or WRITTEN.match(line):
            kind, written = "kept", not line.startswith("<!-- end")
        elif line.lstrip().startswith("```"):
            kind, fenced = "kept", not fenced
        elif fenced:
            kind = "kept"
        elif not line.strip():
            kind = "blank"
        elif indent >= inside + 4 and before in ("blank", "code"):
            kind = "code"
        elif line.lstrip().startswith(("|", "#", "![")):
            kind, inside = "kept", inside if indent else 0
        else:
            match = ITEM.match(line)
            kind = "item" if match and match[2] else "prose"
            # Text of an item goes on where the item's own text begins; what begins further left ends the list.
            inside = match.end() if match and match[2] else 0 if indent == 0 and before == "blank" else inside
        before = kind if kind != "blank" or before != "code" else "code"
        yield ("kept" if kind == "code" else kind), line


def wrapped(text: str) -> str:
    """Returns a document with its prose wrapped."""
    out: list[str] = []
    lines = list(kinds(text))
    paragraphs: list[list[str]] = []
    for kind, line in lines:
        if kind == "prose" and paragraphs and paragraphs[-1][0] == "prose":
            paragraphs[-1].append(line)
        elif kind in ("prose", "item"):
            paragraphs.append(["prose", line])
        else:
            paragraphs.append([kind, line])
    for kind, *rows in paragraphs:
        out += _filled(rows) if kind == "prose" else rows
    return "\n".join(out)


def _filled(rows: list[str]) -> list[str]:
    match = ITEM.match(rows[0])
    assert match is not None  # both of its parts may be empty
    first, hang = match[0], match[1] + " " * len(match[2] or "")
    words = " ".join([rows[0][match.end() :], *(row.strip() for row in rows[1:])])
    while True:
        filled = textwrap.wrap(words, COLUMNS, initial_indent=first, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)
        bad = next((i for i in range(1, len(filled)) if BEGINS.match(filled[i].strip()) and " " in filled[i - 1].strip()), None)
        if bad is None:
            return [row.replace(TIE, " ") for row in filled]
        # The word before goes along, tied to the one that would begin the line.
        ahead = sum(len(row.split()) for row in filled[:bad]) - len(first.split())
        parts = words.split()
        words = " ".join([*parts[: ahead - 1], parts[ahead - 1] + TIE + parts[ahead], *parts[ahead + 1 :]])


def too_long(text: str) -> list[int]:
    """Returns the numbers of the lines of prose that are longer than they may be, from 1."""
    return [
        number
        for number, (kind, line) in enumerate(kinds(text), 1)
        if kind in ("prose", "item") and len(line) > COLUMNS and len(line.split()) > 1 + line.lstrip().startswith(("-", "*"))
    ]


def main() -> int:
    """Says which lines are too long, or wraps all documents."""
    found = 0
    for path in documents():
        text = path.read_text(encoding="utf-8")
        if "--write" in sys.argv:
            path.write_text(wrapped(text), encoding="utf-8")
        else:
            for key, group in groupby(too_long(text)):
                found += len(list(group))
                print(f"{path.relative_to(ROOT)}, line {key}: longer than {COLUMNS} columns")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
