"""Turns sweep.json into sweep.html: one page with its styles and charts inside, without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from vsparse.stages.report import wording
from vsparse.sweep import charts

AXIS_WORDS = {
    "certified": "certified accuracy",
    "clean": "clean accuracy",
    "macs": "multiply-accumulates",
    "bytes": "bytes",
    "seconds": "training time",
}


def _source(name: str) -> str | None:
    # The style sheet is the report's.
    resource = files("vsparse.stages.report" if name == "style.css" else "vsparse.sweep") / name
    return resource.read_text(encoding="utf-8") if resource.is_file() else None


def _percent(value: float | None) -> str:
    # Always one decimal, so that the numbers of a column stand under each other.
    return "–" if value is None else f"{100 * value:.1f} %"


def ordered(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the rows as people read them: the front by certified accuracy, the other finished ones, those stopped early, the failed."""
    rank = {"finished": 1, "stopped": 2, "failed": 3}
    return sorted(
        rows, key=lambda row: (0 if row["pareto"] else rank[row["status"]], -row["rung"], -(row["mean"]["certified_accuracy"] or 0.0))
    )


def html(content: Mapping[str, Any]) -> str:
    """Returns the page of a sweep from what its sweep.json holds; the same content gives the same bytes, every value escaped."""
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(wording.FILTERS)
    environment.filters["percent"] = _percent
    return (
        environment.get_template("page.html").render(
            sweep=content, rows=ordered(list(content["configurations"])), charts=charts, axis_words=AXIS_WORDS
        )
        + "\n"
    )
