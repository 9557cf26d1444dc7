"""Scatter charts of a sweep as inline SVG in the report's style: one dot a configuration, the steps of the front, the spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from vsparse.stages.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Frame, picture, tag, text, ticks
from vsparse.stages.report.wording import seconds, size

# Beyond this ratio of the largest to the smallest, a linear axis would press the small ones together.
LOG_RATIO = 8
TITLES = {
    "macs": "multiply-accumulates for one sample",
    "bytes": "bytes of weights (float32)",
    "clean_accuracy": "clean accuracy, validation split",
    "train_seconds": "training time",
}
Rows = Sequence[Mapping[str, Any]]


def amount(value: float, name: str) -> str:
    """Returns a tick's number with the unit of its axis."""
    if name == "clean_accuracy":
        return f"{100 * value:g} %"
    if name == "train_seconds":
        return seconds(value)
    if name == "bytes":
        return size(round(value))
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g}"


def scatter(rows: Rows, name: str) -> Markup:
    """Returns certified accuracy against one field of the rows' means; empty where fewer than two rows were measured."""
    shown = [row for row in rows if row["mean"]["certified_accuracy"] is not None]
    if len(shown) < 2:
        return Markup("")
    xs = [float(row["mean"][name]) for row in shown]
    log = name != "clean_accuracy" and min(xs) > 0 and max(xs) / min(xs) >= LOG_RATIO
    scale = math.log10 if log else float
    ys = [float(row["mean"]["certified_accuracy"]) for row in shown]
    frame = Frame(*_range([scale(x) for x in xs]), *_range(ys, 1.0))
    parts = _axes(frame, name, log)
    parts += _steps(frame, [row for row in shown if row["status"] == "finished"], name, scale)
    # Those on the front last, so that nothing covers them.
    for row in sorted(shown, key=lambda row: (row["pareto"], row["status"] == "finished")):
        parts.append(_dot(frame, row, name, scale))
    parts += _labels(frame, [row for row in shown if row["pareto"]], name, scale)
    return picture(parts, f"Certified accuracy against {TITLES[name]}; the table holds the numbers")


def _range(values: Sequence[float], ceiling: float = math.inf) -> tuple[float, float]:
    """Returns the ends of an axis with some room around its values."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or max(abs(high) * 0.1, 0.01)
    return (0.0 if 0 <= low < room else low - room), min(high + room, max(ceiling, high))


def _axes(frame: Frame, name: str, log: bool) -> list[Markup]:
    parts = [text(2, TOP - 5, "certified accuracy", "label small title", "start")]
    for value in ticks(frame.y_low, frame.y_high, 5):
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=frame.y(value), y2=frame.y(value), kind="grid"))
        parts.append(text(LEFT - 7, frame.y(value) + 4, f"{round(100 * value, 6):g} %", anchor="end"))
    base = HEIGHT - BOTTOM
    positions = _powers(frame.x_low, frame.x_high) if log else [(value, value) for value in ticks(frame.x_low, frame.x_high, 5)]
    for scale, value in positions:
        parts.append(tag("line", x1=frame.x(scale), x2=frame.x(scale), y1=base, y2=base + 5, kind="axis"))
        parts.append(text(frame.x(scale), base + 19, amount(round(value, 10), name)))
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, kind="axis"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, TITLES[name] + (" (logarithmic)" if log else ""), "label title"))
    return parts


def _powers(low: float, high: float) -> list[tuple[float, float]]:
    """Returns logarithmic ticks as (position, value): 1, 2 and 5 times powers of ten, powers alone where that is many."""
    factors = (1, 2, 5) if high - low < 2 else (1,)
    values = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    return [(math.log10(value), value) for value in values if low <= math.log10(value) <= high]


def _steps(frame: Frame, rows: Rows, name: str, scale: Any) -> list[Markup]:
    """The front of these two axes alone, as steps: what certified accuracy can be had at each cost (not drawn against clean accuracy)."""
    if name == "clean_accuracy":
        return []
    best = -math.inf
    points: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: (row["mean"][name], -row["mean"]["certified_accuracy"])):
        x, y = scale(row["mean"][name]), row["mean"]["certified_accuracy"]
        if y > best:
            points += [(x, best), (x, y)] if points else [(x, y)]
            best = y
    return [frame.line(points, "sparse dashed")] if len(points) > 1 else []


def _dot(frame: Frame, row: Mapping[str, Any], name: str, scale: Any) -> Markup:
    x, y = frame.x(scale(row["mean"][name])), frame.y(row["mean"]["certified_accuracy"])
    kind = "dot sparse" if row["pareto"] else "dot dense" if row["status"] == "finished" else "part-unknown"
    parts = [tag("title", f"{row['id']}: {', '.join(row['set']) or 'the recipe as it is'}")]
    spread = row["spread"]["certified_accuracy"]
    if spread:
        ends = [frame.y(row["mean"]["certified_accuracy"] + sign * spread) for sign in (-1, 1)]
        parts.append(tag("line", x1=x, x2=x, y1=min(ends[0], HEIGHT - BOTTOM), y2=max(ends[1], TOP), kind="axis"))
    parts.append(tag("circle", cx=x, cy=y, r=5.0 if row["pareto"] else 3.5, kind=kind))
    return tag("g", Markup("").join(parts))


def _labels(frame: Frame, rows: Rows, name: str, scale: Any) -> list[Markup]:
    """Writes the ids beside the dots, and leaves out those that would cover another."""
    taken: list[tuple[float, float]] = []
    parts = []
    for row in sorted(rows, key=lambda row: -row["mean"]["certified_accuracy"]):
        x, y = frame.x(scale(row["mean"][name])), frame.y(row["mean"]["certified_accuracy"])
        # Above or below, right or left of its dot: the first spot that is free and inside the picture.
        for dx, dy in ((8, -7), (-8, -7), (8, 16), (-8, 16)):
            spot = (x + dx, y + dy)
            inside = LEFT < spot[0] + (30 if dx > 0 else -30) < WIDTH and spot[1] > TOP + 4
            if inside and all(abs(spot[0] - other[0]) > 30 or abs(spot[1] - other[1]) > 13 for other in taken):
                taken.append(spot)
                parts.append(text(*spot, str(row["id"]), "label small title", "start" if dx > 0 else "end"))
                break
    return parts
