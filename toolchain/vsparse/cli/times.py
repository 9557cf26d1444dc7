"""Times on stdout: their noise, their layers, and two profiles against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsparse.artifact.choice import milliseconds
from vsparse.artifact.device import DeviceModel, DeviceResults, DeviceRuntime, LayerTime
from vsparse.artifact.latency import Latency
from vsparse.artifact.noise import Noise, told_once
from vsparse.cli.options import print_json, stdout

if TYPE_CHECKING:
    from vsparse.stages.profile.difference import ProfileComparison


def show_comparison(found: ProfileComparison, json: bool) -> None:
    """Prints the ratio of the medians of two profiles, form by form, in words, and what else differs between them."""
    if json:
        print_json(found.as_dict())
        return
    table, out = Table("form", "A: p50 ms", "B: p50 ms", "A / B", "95 % interval of A / B"), stdout()
    for row in found.rows:
        table.add_row(plain_text(row.name), f"{row.one_ms:.6f}", f"{row.other_ms:.6f}", f"{row.ratio:.3f}", row.sentence())
    out.print(table)
    for note in found.notes:
        out.print(plain_text(note), soft_wrap=True)


def shown_ranks(latency: Latency) -> tuple[str, ...]:
    """Percentiles, the largest and the jitter of a latency in ms, the shortest with as many digits as tell something."""
    values = (latency.p50, latency.p90, latency.p99, latency.largest, latency.jitter)
    return tuple(map(milliseconds, values))


def show_noise(found: Sequence[tuple[str, Noise | None]], out: Console) -> None:
    """Prints why times are noisy, each reason once; nothing of times that are not, or of which that was not examined."""
    for text in told_once(found):
        out.print(f"[yellow]noisy[/yellow]: {plain_text(text)}", soft_wrap=True)


def within_turns(found: Mapping[str, Latency]) -> str:
    """Returns the interval of packed over dense by their neighbouring turns, in words; empty where they took none, or too few."""
    if not {"packed", "dense"} <= found.keys():
        return ""
    from vsparse.stages.profile.difference import paired_ratio

    ratio = paired_ratio("packed", found["packed"], found["dense"])
    return "" if ratio is None else f"; in neighbouring turns {ratio.low:.3f}–{ratio.high:.3f}, 95 %"


def show_layer_times(name: str, rows: Sequence[LayerTime], out: Console) -> None:
    """Prints what each layer of a form takes."""
    table = Table("layer", "operator", "mean ms", "median ms", "part", title=plain_text(name))
    for row in rows:
        times = ("–" if value is None else f"{value:.6f}" for value in (row.average_ms, row.median_ms))
        table.add_row(plain_text(row.name), plain_text(row.operator), *times, "" if row.percentage is None else f"{row.percentage:.1f} %")
    out.print(table)


def told_runtime(one: DeviceModel, found: DeviceResults) -> str:
    """The name of the runtime that executed a form."""
    return str((one.runtime or found.runtime or DeviceRuntime()).name)


def plain_text(text: object) -> str:
    """Returns text of a device for the terminal: no markup, no control characters, not endless."""
    return escape("".join(c if c.isprintable() else " " for c in str(text)[:1000]))
