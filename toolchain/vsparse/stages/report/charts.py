"""Charts as inline SVG: no scripts, colours by CSS class so that light, dark and print each have their own, text escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from vsparse.artifact.curve import CurvePoint
from vsparse.artifact.history import Epoch
from vsparse.artifact.latency import LatencyFile
from vsparse.artifact.live import LiveRecord
from vsparse.artifact.outcome import NetworkOutcome

WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 16, 46


def tag(name: str, content: Markup | str = "", **attributes: object) -> Markup:
    """Returns one SVG element; `kind` stands for the class attribute, underscores for hyphens, numbers get two decimals."""
    parts = []
    for key, value in attributes.items():
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(f' {"class" if key == "kind" else key.replace("_", "-")}="{escape(shown)}"')
    return Markup(f"<{name}{''.join(parts)}>{escape(content)}</{name}>")  # every part is escaped above


def join(parts: Sequence[Markup]) -> Markup:
    """Returns the parts one after another."""
    return Markup("").join(parts)


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "middle") -> Markup:
    """Returns a line of text."""
    return tag("text", content, x=x, y=y, text_anchor=anchor, kind=kind or "label")


def picture(content: Sequence[Markup], label: str, width: int = WIDTH, height: int = HEIGHT, kind: str = "chart") -> Markup:
    """Returns an SVG image with `label` as its accessible name."""
    inside = tag("title", label) + join(content)
    return tag("svg", inside, viewBox=f"0 0 {width} {height}", role="img", kind=kind, aria_label=label)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Returns round numbers from low to high, about `wanted` of them."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [offset * step for offset in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Frame:
    """A plot area that maps data to the SVG's units."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    height: int = HEIGHT

    def x(self, value: float) -> float:
        """Horizontal position of a value."""
        return LEFT + (value - self.x_low) / ((self.x_high - self.x_low) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Vertical position of a value."""
        return self.height - BOTTOM - (value - self.y_low) / ((self.y_high - self.y_low) or 1.0) * (self.height - TOP - BOTTOM)

    def axes(self, x_title: str, percent: bool) -> list[Markup]:
        """Grid lines, tick labels and the title of the horizontal axis."""
        parts = []
        for value in ticks(self.y_low, self.y_high, 4):
            parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=self.y(value), y2=self.y(value), kind="grid"))
            parts.append(text(LEFT - 7, self.y(value) + 4, f"{value * 100:.0f} %" if percent else f"{value:g}", anchor="end"))
        for value in ticks(self.x_low, self.x_high, 5):
            parts.append(tag("line", x1=self.x(value), x2=self.x(value), y1=self.height - BOTTOM, y2=self.height - BOTTOM + 5, kind="axis"))
            parts.append(text(self.x(value), self.height - BOTTOM + 19, f"{round(value, 10):g}"))
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=self.height - BOTTOM, y2=self.height - BOTTOM, kind="axis"))
        parts.append(text((LEFT + WIDTH - RIGHT) / 2, self.height - 8, x_title, "label title"))
        return parts

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> Markup:
        """A polyline, or a dot where there is one point only."""
        if len(points) == 1:
            return tag("circle", cx=self.x(points[0][0]), cy=self.y(points[0][1]), r=3.5, kind=f"dot {kind}")
        return tag("polyline", points=" ".join(f"{self.x(x):.2f},{self.y(y):.2f}" for x, y in points), kind=f"line {kind}")


def curve_chart(sparse: Sequence[CurvePoint], dense: Sequence[CurvePoint], at: float | None) -> Markup:
    """Certified (solid) and, under our attack, robust (dashed) accuracy against the radius; the truth lies in the band between."""
    points = [*sparse, *dense]
    frame = Frame(0.0, max([point.epsilon_value for point in points] + [at or 0.0]) or 1.0, 0.0, 1.0)
    parts = frame.axes("ε, the largest change of any input value", percent=True)
    for name, series in (("dense", dense), ("sparse", sparse)):
        lower = [(point.epsilon_value, point.certified_accuracy) for point in series]
        upper = [(point.epsilon_value, point.robust_accuracy) for point in series]
        if len(upper) > 1 and len(lower) > 1:
            outline = [*upper, *reversed(lower)]
            parts.append(tag("polygon", points=" ".join(f"{frame.x(x):.2f},{frame.y(y):.2f}" for x, y in outline), kind=f"band {name}"))
        if upper:
            parts.append(frame.line(upper, f"{name} dashed"))
        if lower:
            parts.append(frame.line(lower, name))
            parts += [tag("circle", cx=frame.x(x), cy=frame.y(y), r=2.6, kind=f"dot {name}") for x, y in lower]
    if at:
        parts.append(tag("line", x1=frame.x(at), x2=frame.x(at), y1=TOP, y2=HEIGHT - BOTTOM, kind="mark"))
        near_edge = frame.x(at) > WIDTH - 130
        parts.append(
            text(
                frame.x(at) + (-6 if near_edge else 6),
                HEIGHT - BOTTOM - 7,
                f"ε = {at:g} of this build",
                anchor="end" if near_edge else "start",
            )
        )
    return picture(parts, "Certified and robust accuracy against ε, sparse and dense; the table below holds the numbers")


def live_chart(live: LiveRecord, offline: Sequence[CurvePoint], certified: float | None) -> Markup:
    """What the device certifies by itself (solid; in int8 dashed) and what was proved offline (dashed) against the radius, there a dot."""
    at = live.at_epsilon.device_epsilon
    largest = max([at, *(point.device_epsilon for point in live.curve)]) or 1.0
    frame = Frame(0.0, largest, 0.0, 1.0)
    parts = frame.axes("ε, the largest change of any input value", percent=True)
    beyond = [(point.epsilon_value, point.certified_accuracy) for point in offline if point.epsilon_value <= largest]
    if beyond:
        parts.append(frame.line(beyond, "dense dashed"))
    points = sorted((point.device_epsilon, point.accuracy) for point in live.curve)
    if points:
        parts.append(frame.line(points, "sparse"))
        parts += [tag("circle", cx=frame.x(x), cy=frame.y(y), r=2.6, kind="dot sparse") for x, y in points]
    if live.int8 is not None and live.int8.curve:
        parts.append(frame.line(sorted((point.device_epsilon, point.accuracy) for point in live.int8.curve), "sparse dashed"))
    if certified is not None:
        parts.append(tag("circle", cx=frame.x(at), cy=frame.y(certified), r=4.5, kind="dot dense"))
    parts.append(tag("line", x1=frame.x(at), x2=frame.x(at), y1=TOP, y2=HEIGHT - BOTTOM, kind="mark"))
    return picture(parts, "Share of test images that the device certifies by itself against ε, and what was proved offline")


def outcome_bar(outcome: NetworkOutcome, name: str) -> Markup:
    """One bar of all samples: certified, unknown, falsified, misclassified."""
    wrong = outcome.samples - outcome.correct
    pieces = (("certified", outcome.certified), ("unknown", outcome.unknown), ("falsified", outcome.falsified), ("wrong", wrong))
    label = f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in pieces)
    parts, offset = [], 0.0
    for kind, count in pieces:
        width = 1000 * count / outcome.samples
        parts.append(tag("rect", x=offset, y=0, width=width, height=22, kind=f"part-{kind}"))
        offset += width
    return tag(
        "svg",
        tag("title", label) + join(parts),
        viewBox="0 0 1000 22",
        preserveAspectRatio="none",
        role="img",
        kind="bar tall",
        aria_label=label,
    )


def nested_bar(values: Sequence[tuple[str, float]], label: str) -> Markup:
    """One bar of overlaid fractions, the largest first, each with its CSS class."""
    parts = [tag("rect", x=0, y=0, width=1000, height=12, kind="part-track")]
    parts += [tag("rect", x=0, y=0, width=1000 * min(max(part, 0.0), 1.0), height=12, kind=kind) for kind, part in values]
    return tag(
        "svg",
        tag("title", label) + join(parts),
        viewBox="0 0 1000 12",
        preserveAspectRatio="none",
        role="img",
        kind="bar",
        aria_label=label,
    )


def before_after_bar(before: int, after: int, largest: int, label: str) -> Markup:
    """Two thin bars, before above after, on one scale for all rows."""
    wide, thin = (max(1000 * value / max(largest, 1), 4.0 if value else 0.0) for value in (before, after))
    parts = [
        tag("rect", x=0, y=0, width=wide, height=6, kind="part-dense"),
        tag("rect", x=0, y=8, width=thin, height=6, kind="part-sparse"),
    ]
    return tag(
        "svg",
        tag("title", label) + join(parts),
        viewBox="0 0 1000 14",
        preserveAspectRatio="none",
        role="img",
        kind="bar",
        aria_label=label,
    )


def latency_chart(measured: LatencyFile) -> Markup:
    """Histograms of the raw samples, dense above and packed below, on one time axis, with p50, p90 and p99 marked."""
    pairs = [(name, item) for name, item in (("dense", measured.dense), ("sparse", measured.packed)) if item is not None]
    high = max(item.p99 for _, item in pairs) * 1.08 or 1.0
    row, bins = 104, 60
    height = TOP + row * len(pairs) + BOTTOM
    frame = Frame(0.0, high, 0.0, 1.0, height)
    parts = []
    for value in ticks(0.0, high, 5):
        parts.append(tag("line", x1=frame.x(value), x2=frame.x(value), y1=TOP, y2=height - BOTTOM, kind="grid"))
        parts.append(text(frame.x(value), height - BOTTOM + 19, f"{round(value, 10):g}"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, height - 8, "milliseconds for one run", "label title"))
    for offset, (name, item) in enumerate(pairs):
        base = TOP + row * (offset + 1)
        counts = [0] * bins
        for sample in item.samples_ms:
            if sample < high:
                counts[int(sample / high * bins)] += 1
        width = (WIDTH - LEFT - RIGHT) / bins
        for number, count in enumerate(counts):
            if count:
                # Square root: a few slow runs stay visible beside a tall peak.
                tall = (row - 34) * math.sqrt(count / max(counts))
                parts.append(tag("rect", x=LEFT + number * width, y=base - tall, width=width * 0.92, height=tall, kind=f"part-{name}"))
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, kind="axis"))
        parts.append(text(LEFT - 7, base - 4, "packed" if name == "sparse" else "dense", anchor="end"))
        for value in (item.p50, item.p90, item.p99):
            parts.append(tag("line", x1=frame.x(value), x2=frame.x(value), y1=base - row + 20, y2=base, kind="mark"))
        parts += _percentile_labels(frame, item.p50, item.p90, item.p99, base - row + 16)
    return picture(parts, "Distribution of latency, dense above packed; the table beside it holds the percentiles", WIDTH, height)


def _percentile_labels(frame: Frame, p50: float, p90: float, p99: float, y: float) -> list[Markup]:
    """Labels p50, p90 and p99, pushed right so that they do not overlap."""
    parts, free = [], 0.0
    for value, title in ((p50, "p50"), (p90, "p90"), (p99, "p99")):
        x = max(frame.x(value), free)
        free = x + 30
        parts.append(text(min(x, WIDTH - RIGHT), y, title, "label small"))
    return parts


def history_chart(sparse: Sequence[Epoch], dense: Sequence[Epoch], fields: Sequence[tuple[str, str]], percent: bool, label: str) -> Markup:
    """Lines over epochs: each field with its line style, sparse and dense in their colours; empty where nothing is recorded."""
    lines = []
    for name, epochs in (("dense", dense), ("sparse", sparse)):
        for field, style in fields:
            points = [(float(item.epoch), float(getattr(item, field))) for item in epochs]
            if points:
                lines.append((points, f"{name} {style}"))
    if not lines:
        return Markup("")
    everything = [point for points, _ in lines for point in points]
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    low, high = (0.0, 1.0) if percent else (min(0.0, min(ys)), max(ys) * 1.05 or 1.0)
    frame = Frame(min(xs), max(xs), low, high, 230)
    return picture(frame.axes("epoch", percent) + [frame.line(points, kind) for points, kind in lines], label, WIDTH, 230)
