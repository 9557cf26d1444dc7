"""What a notebook shows of a result: tables of HTML in which every value is escaped, without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

MOST_ROWS = 200
# As in the report: control characters reach no browser as what they are.
_SHOWN = 400


def cell(value: object) -> str:
    """Returns a value as escaped text: shares and times with at most six digits, yes and no, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = "".join(sign if sign.isprintable() or sign == " " else f"\\x{ord(sign):02x}" for sign in text)
    return escape(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def table(title: object, head: Sequence[str], rows: Iterable[Sequence[object]], note: object = "") -> str:
    """Returns a table with a caption; of more than 200 rows the first ones, and how many there are."""
    listed = list(rows)
    more = f"{len(listed) - MOST_ROWS} more rows" if len(listed) > MOST_ROWS else ""
    header = "".join(f'<th scope="col">{cell(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in listed[:MOST_ROWS])
    foot = "".join(f"<p>{cell(text)}</p>" for text in (more, note) if text)
    return f"<table><caption>{cell(title)}</caption><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>{foot}"


def pairs(title: object, values: Iterable[tuple[str, object]], note: object = "") -> str:
    """Returns a table of names and values."""
    return table(title, ("", ""), values, note)
