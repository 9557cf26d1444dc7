"""Draws docs/architecture.md's picture from the imports: `python docs/draw_architecture.py` writes it, `--check` says whether it is true.

Each row of the page's table is a node. An arrow stands where a module of one row imports one of another; an arrow that a longer path
implies is left out (transitive reduction), so that what is left can be read.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Container, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "toolchain"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by docs/draw_architecture.py -->\n", "<!-- end of what is drawn -->\n"
# The package itself offers api.py's functions, and its __main__ starts the command line; `stages` holds no code of its own.
ENTRANCES = {"vsparse", "vsparse.__main__", "vsparse.stages"}


def modules(*packages: str) -> dict[str, Path]:
    """Returns the files of packages by dotted name."""
    found = {}
    for path in sorted(path for package in packages for path in (SOURCE / package).rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: Container[str]) -> set[str]:
    """Returns the modules among `known` that a file imports: of `from a import b` a.b where that is a module, and a otherwise."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively, which hides from where"
            full = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in known else str(node.module) for name in full}
    return {name for name in found if name in known}


def rows(text: str) -> list[list[str]]:
    """Returns the rows of the page's table, from the top, as lists of dotted names."""
    found = []
    for line in text.splitlines():
        if line.startswith("| `"):
            names = re.findall(r"`([a-z_/.]+)`", line.split("|")[1])
            found.append(["vsparse." + name.rstrip("/").removesuffix(".py").replace("/", ".") for name in names])
    return found


def row_of(name: str, table: list[list[str]]) -> int | None:
    """Returns the number of the row that lists a module or the nearest package above it."""
    while name:
        for number, row in enumerate(table):
            if name in row:
                return number
        name = name.rpartition(".")[0]
    return None


def arrows(table: list[list[str]]) -> dict[int, set[int]]:
    """Returns, for each row, the rows that its modules import."""
    known = modules("vsparse")
    found: dict[int, set[int]] = {number: set() for number in range(len(table))}
    for name, path in known.items():
        own = row_of(name, table)
        for other in imports(path, known) - ENTRANCES:
            row = row_of(other, table)
            if own is not None and row is not None and row != own:
                found[own].add(row)
    return found


def reduced(found: dict[int, set[int]]) -> Iterator[tuple[int, int]]:
    """Yields the arrows that no longer path implies."""
    below: dict[int, set[int]] = {}
    for row in sorted(found, reverse=True):  # arrows point down, so that what is below is known
        below[row] = found[row].union(*(below[other] for other in found[row]))
        yield from ((row, other) for other in sorted(found[row]) if not any(other in below[third] for third in found[row] - {other}))


def drawn(text: str) -> str:
    """Returns the page with its picture drawn anew."""
    table = rows(text)
    lines = ["```mermaid", "flowchart TD"]
    for number, row in enumerate(table):
        title = ", ".join(name.removeprefix("vsparse.").replace(".", "/") for name in row)
        lines.append(f'    r{number}["{title if len(title) < 60 else title[:56].rpartition(",")[0] + ", …"}"]')
    lines += [f"    r{row} --> r{other}" for row, other in sorted(reduced(arrows(table)))]
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n".join([*lines, "```", ""]) + END + rest.partition(END)[2]


def main(arguments: list[str]) -> int:
    text = PAGE.read_text(encoding="utf-8")
    new = drawn(text)
    if "--check" in arguments:
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
