"""Figures of documents that name where they come from; `python tests/docs/figures.py` compares them, `--write` writes them anew.

A figure is a number in Markdown with a comment behind it (and behind its unit), which readers do not see:

    93.0 %<!-- forms/results-digits.json: 100 * doc.forms.sparse.certified / doc.forms.sparse.samples -->

The file lies in benchmarks/; a name with `*` or `?` stands for all files that match, in order. `doc` is its content, or the list of
their contents. An attribute or a string in brackets is a key, and of a list that of every element; further there are numbers,
`+ - * /`, and the functions of `FUNCTIONS`. A figure agrees where the value, rounded to as many decimals, is the number.
"""

from __future__ import annotations

import ast
import json
import operator
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "benchmarks"
DOCUMENTS = ("README.md", "docs/results.md")

NUMBER = r"[-−+]?\d[\d,]*(?:\.\d+)?(?:·10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?"
FIGURE = re.compile(rf"({NUMBER})([^\d<|]{{0,30}})<!--\s*([\w./*?-]+\.json):\s*(.+?)\s*-->", re.S)
EXPONENT = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return [item for part in value for item in (_flat(part) if isinstance(part, dict | list) else [part])]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "values": lambda value: [item for part in (value if isinstance(value, list) else [value]) for item in part.values()],
    "sum": lambda value: sum(_flat(value)),
    "mean": lambda value: statistics.fmean(_flat(value)),
    "std": lambda value: statistics.stdev(_flat(value)),
    "least": lambda value: min(_flat(value)),
    "most": lambda value: max(_flat(value)),
    "len": len,
    "items": lambda value: len(_flat(value)),
    "count": lambda value, wanted: _flat(value).count(wanted),
}
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Figure:
    """A number of a document: as printed, from `start` to `end`, and the file and expression that it comes from."""

    document: str
    line: int
    start: int
    end: int
    printed: str
    file: str
    expression: str

    @property
    def decimals(self) -> int:
        """How many decimals are printed."""
        return len(self.printed.split("·")[0].partition(".")[2])

    @property
    def power(self) -> int:
        """The exponent k of a number that is printed as a·10^k; 0 where there is none."""
        return int(self.printed.partition("·10")[2].translate(EXPONENT) or 0)

    def as_printed(self) -> str:
        """Returns what the data say, printed as the figure is."""
        text = f"{value(self.file, self.expression) / 10**self.power:,.{self.decimals}f}"
        text = text if "," in self.printed or abs(float(text.replace(",", ""))) >= 10_000 else text.replace(",", "")
        text = "−" + text[1:] if text.startswith("-") else "+" + text if self.printed.startswith("+") else text
        return text + ("" if "·" not in self.printed else "·" + self.printed.partition("·")[2])

    def agrees(self) -> bool:
        """Returns whether the number is what the data say, rounded to its decimals."""
        number = float(self.printed.split("·")[0].replace(",", "").translate(EXPONENT))
        return abs(value(self.file, self.expression) / 10**self.power - number) <= 0.5 * 10**-self.decimals * (1 + 1e-6)


def figures(document: str, text: str) -> list[Figure]:
    """Returns every figure of a document that names its data."""
    return [
        Figure(document, text.count("\n", 0, m.start()) + 1, m.start(1), m.end(1), m[1], m[3], " ".join(m[4].split()))
        for m in FIGURE.finditer(text)
    ]


@cache
def content(file: str) -> Any:
    """Returns the content of a data file, or of all that match, in the order of their names. FileNotFoundError where there is none."""
    if not re.search(r"[*?]", file):
        return json.loads((DATA / file).read_text(encoding="utf-8"))
    found = sorted(DATA.glob(file))
    if not found:
        raise FileNotFoundError(f"no file matches benchmarks/{file}")
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]


def value(file: str, expression: str) -> float:
    """Returns the number that an expression gives. ValueError where it is no expression of this small language, or gives no number."""
    result = _evaluate(ast.parse(expression, mode="eval").body, content(file))
    if isinstance(result, bool) or not isinstance(result, int | float):
        raise ValueError(f"{expression} is no number: {str(result)[:80]}")
    return float(result)


def _evaluate(node: ast.expr, doc: Any) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() | None):
            return node.value
        case ast.Name(id="doc"):
            return doc
        case ast.Attribute():
            return _key(_evaluate(node.value, doc), node.attr)
        case ast.Subscript():
            index = _evaluate(node.slice, doc)
            held = _evaluate(node.value, doc)
            return held[index] if isinstance(index, int) else _key(held, index)
        case ast.BinOp() if type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](_evaluate(node.left, doc), _evaluate(node.right, doc))
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_evaluate(argument, doc) for argument in node.args))
    raise ValueError(f"{ast.unparse(node)} is not understood")


def _key(held: Any, key: str) -> Any:
    return [item[key] for item in held] if isinstance(held, list) else held[key]


def main() -> int:
    """Compares the figures of all documents with their data; with `--write`, mends those that differ."""
    wrong = 0
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for figure in reversed(figures(document, text)):
            if not figure.agrees():
                wrong += 1
                print(f"{document}, line {figure.line}: {figure.printed}, and the data say {figure.as_printed()} ({figure.expression})")
                text = text[: figure.start] + figure.as_printed() + text[figure.end :]
        if "--write" in sys.argv:
            (ROOT / document).write_text(text, encoding="utf-8")
    return 1 if wrong and "--write" not in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
