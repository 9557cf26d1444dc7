"""The results on disk, and how numbers of several seeds are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rows import DECLARED, Row

RESULTS = Path(__file__).resolve().parent / "results"
NOT_RUN = "not run"
Result = dict[str, Any]


def read(table: str, row: Row) -> list[Result]:
    """Returns the results of a row, one for each seed that has run."""
    found = []
    for seed in row.seeds:
        path = RESULTS / table / f"{row.name}-seed{seed}.json"
        if path.is_file():
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def named(table: str, name: str) -> tuple[Row, list[Result]]:
    """Returns a row by its name, and its results."""
    row = next(row for row in DECLARED[table] if row.name == name)
    return row, read(table, row)


def average(results: Sequence[Result], of: Callable[[Result], float | None]) -> float | None:
    """Returns the mean of a number over the seeds that have it, None where none has."""
    values = [value for value in map(of, results) if value is not None]
    return mean(values) if values else None


def percentages(results: Sequence[Result], of: Callable[[Result], float | None]) -> str:
    """Returns a share in percent: the mean over the seeds ± their standard deviation where there are several."""
    values = [100 * value for value in map(of, results) if value is not None]
    if not values:
        return NOT_RUN if not results else "–"
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def number(results: Sequence[Result], key: str) -> str:
    """Returns a count, the mean over the seeds, with thousands separated."""
    value = average(results, lambda result: result.get(key))
    return NOT_RUN if value is None else f"{value:,.0f}"


def minutes(results: Sequence[Result], key: str = "train_cpu_s") -> str:
    """Returns processor minutes, the mean over the seeds."""
    value = average(results, lambda result: result.get(key))
    return NOT_RUN if value is None else f"{value / 60:.1f}"


def share(key: str) -> Callable[[Result], float | None]:
    """Returns the function that takes a share from a result."""
    return lambda result: result.get(key)


def first(samples: int) -> Callable[[Result], float | None]:
    """Returns the function that takes the certified share of the first samples from a result of at least so many."""

    def of(result: Result) -> float:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(result["certified_samples"]), dtype=np.uint8))
        return float(bits[: min(samples, result["samples"])].mean())

    return of


def column(result: Result, name: str) -> list[float]:
    """Returns a column of the training's history."""
    return [float(value) for value in result["curve"][name].split()]


def whole_numbers(text: str) -> list[int]:
    """Returns the numbers of a line."""
    return [int(value) for value in text.split()]


def over_tracks(result: Result, draws: int = 10_000) -> tuple[float, float] | None:
    """Returns the ends of a 95 % interval of the certified share, None where samples have no tracks.

    Frames of one track show one sign, so that tracks are drawn, with replacement, and not frames: the cluster bootstrap, percentiles
    2.5 and 97.5 of the share of certified frames among those of the tracks drawn.
    """
    if "tracks" not in result:
        return None
    samples = np.array(whole_numbers(result["tracks"]["samples"]))
    sure = np.array(whole_numbers(result["tracks"]["certified"]))
    picked = np.random.default_rng(0).integers(0, len(samples), (draws, len(samples)))
    shares = sure[picked].sum(1) / samples[picked].sum(1)
    low, high = np.percentile(shares, (2.5, 97.5))
    return float(low), float(high)


def settled(result: Result) -> list[bool]:
    """Returns for each epoch whether its network could have been the result: last phase, full radius, final masks."""
    return [value > 0 for value in column(result, "ready")]


def seconds_to(result: Result, level: float) -> float | None:
    """Returns the processor seconds until a network that could be the result certifies `level` of the validation split; None: never."""
    spent = 0.0
    for seconds, certified, ready in zip(column(result, "cpu"), column(result, "certified"), settled(result), strict=True):
        spent += seconds
        if ready and certified >= level:
            return spent
    return None


def best_settled(result: Result) -> float:
    """Returns the greatest certified share of the validation split among the networks that could be the result."""
    return max(c for c, ready in zip(column(result, "certified"), settled(result), strict=True) if ready)
