"""Where the settings of a shipped recipe come from: the comment beside each key of its file, or beside the table that holds it."""

from __future__ import annotations

import re

# What stands before a comment: strings of one line, in which a number sign is one, and whatever is none.
_BEFORE = r"""(?:[^"'#]|"(?:\\.|[^"\\])*"|'[^']*')*"""
_TABLE = re.compile(r"\s*\[([A-Za-z0-9_.-]+)\]\s*(?:#\s*(.*))?$")
_KEY = re.compile(rf"\s*([A-Za-z0-9_-]+)\s*={_BEFORE}(?:#\s*(.*))?$")


def key_sources(text: str) -> dict[str, str]:
    """Returns the comments beside the keys of a recipe's text, by dotted key (`train.loss.alpha`), in the file's order.

    A key without one has that of its table's line, and is left out where there is none either. Keys whose value spans lines, quoted keys
    and arrays of tables have no source: shipped recipes set none of them.
    """
    found: dict[str, str] = {}
    table = of_table = ""
    for line in text.splitlines():
        if at := _TABLE.match(line):
            table, of_table = f"{at[1]}.", (at[2] or "").strip()
        elif (at := _KEY.match(line)) and (told := (at[2] or "").strip() or of_table):
            found[table + at[1]] = told
    return found
