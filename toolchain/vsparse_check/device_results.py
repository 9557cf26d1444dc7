"""results.json of a device: whose numbers they are, which of them count, what runs add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from vsparse_check.comparison import Content
from vsparse_check.files import read_json
from vsparse_check.layout import PRECISIONS
from vsparse_check.refusal import NotConfirmed, need, reading

RESULTS, FOLDER = "profile/device/results.json", "device/manifest.json"
# The role of each form in the results of a device: of an ONNX file as in the folder, of C source
# its own name. The file that certifies its own input is no form of the table.
ROLES = {
    "sparse": "packed",
    "sequential": "sequential",
    "dense": "dense",
    **{name: name for name in PRECISIONS},
    "int8-c": "int8-c",
}
CERTIFYING = "certifying"
ON_DEVICE = "gates on the device"
NOT_CERTIFIED, EMULATED = "not certified on this device", "emulated"
# Gates that say whether a certificate holds where a form was executed.
OF_CERTIFICATE = ("audit", "arithmetic", "refusal")
RANKS = {"latency_ms_p50": 50, "latency_ms_p90": 90, "latency_ms_p99": 99}
NAME = 80  # characters of a device's name
NS = 1e6  # nanoseconds of a millisecond
LONGEST_MS = 1e12  # no run takes 30 years


class TimedRuns(NamedTuple):
    """The timed runs of one form in ms; `counts`, how often each time was seen of all runs."""

    samples: Sequence[float]
    counts: Sequence[tuple[float, int]] = ()

    @property
    def total(self) -> int:
        """How many runs there were."""
        return sum(count for _, count in self.counts) if self.counts else len(self.samples)

    def percentile(self, rank: int) -> float:
        """Returns a percentile of all runs as trtexec defines it: always one of the runs."""
        count = self.total
        place = max(count - 1 - int((100 - rank) * count / 100), 0)
        if not self.counts:
            return sorted(self.samples)[place]
        below = accumulate(count for _, count in self.counts)
        return next(time for (time, _), end in zip(self.counts, below, strict=True) if end > place)

    @property
    def mean(self) -> float:
        """Mean of all runs that are counted."""
        return math.fsum(time * count for time, count in self.counts) / self.total

    @property
    def ends(self) -> tuple[float, float]:
        """The shortest run and the longest."""
        times = [time for time, _ in self.counts] or list(self.samples)
        return min(times), max(times)


def is_number(value: Any) -> bool:
    """Returns whether a value of a document is a finite number."""
    right = isinstance(value, int | float) and not isinstance(value, bool)
    return right and math.isfinite(value)


def is_count(value: Any, least: int = 0) -> bool:
    """Returns whether a value of a document is a whole number, and none below."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= 2**63


def is_verdict(value: Any) -> bool:
    """Returns whether a value of a document is true, false or null."""
    return value is None or isinstance(value, bool)


def timed_runs(latency: Content, file: str) -> TimedRuns:
    """Returns the timed runs of one model; Refuted for none, and for what is no time."""
    samples = latency["samples_ms"]
    need(
        samples and all(is_number(run) and 0 <= run <= LONGEST_MS for run in samples),
        f"{file} holds latencies that are none",
    )
    told = latency.get("all_runs_ns")
    if told is None:
        return TimedRuns([float(run) for run in samples])
    values, counts = told["values"], told["counts"]
    right = len(values) == len(counts) > 0 and all(is_count(value) for value in values)
    right = right and all(is_count(count, 1) for count in counts)
    need(
        right and all(one < other for one, other in pairwise(values)),
        f"{file} counts runs by times that are none, or not in order",
    )
    pairs = [(value / NS, count) for value, count in zip(values, counts, strict=True)]
    return TimedRuns([float(run) for run in samples], pairs)


def read_results(root: Path, files: set[str]) -> Content | None:
    """Returns what a device measured; None where an artifact holds nothing of one."""
    return read_json(root / RESULTS) if RESULTS in files else None


def is_emulated(results: Content) -> bool:
    """Returns whether an emulator executed all of it."""
    return results.get("device", {}).get("emulated") is True


def counts_for_target(results: Content | None, recipe: Content) -> bool:
    """Returns whether the times of a device are those that gates are about.

    Not those of an emulator, nor of another batch or number of threads than recipe.toml has.
    """
    if results is None or is_emulated(results):
        return False
    asked, timing = recipe.get("profile", {}), results.get("timing", {})
    keys = ("batch", "threads")
    return all(timing.get(key, asked.get(key, 1)) == asked.get(key, 1) for key in keys)


def deployed(results: Content) -> dict[str, Content]:
    """Returns what is deployed by its role: each model, and each network in C."""
    in_c = {one["role"]: one for one in results.get("further", []) if one.get("source_sha256")}
    return in_c | {one["role"]: one for one in results["models"]}


def counted(results: Content) -> list[Content]:
    """Returns the measurements whose gates count: models and C source always do."""
    further = results.get("further", [])
    more = [one for one in further if one.get("deployed", True) or one.get("source_sha256")]
    return [*results["models"], *more]


def failed_gates(results: Content) -> list[str]:
    """Returns the names of the gates that failed on the device, of those that count."""
    told = [gate for one in counted(results) for gate in one["gates"]]
    return [gate["name"] for gate in (*told, *results["gates"]) if gate["passed"] is False]


def uncertified(results: Content) -> list[str]:
    """Returns what shows that certificates do not hold on the device, each in one line."""
    return [
        f"{one['file']!s:.60} ({one['role']!s:.60}), {gate['name']!s:.60}: {gate['detail']!s:.200}"
        for one in counted(results)
        for gate in one["gates"]
        if gate["passed"] is False and gate["name"] in OF_CERTIFICATE
    ]


def state_of(gates: Sequence[Content], emulated: bool) -> bool | None:
    """Returns how gates of a device are judged: what only an emulator passed is open."""
    if not gates or any(gate["passed"] is False for gate in gates):
        return False
    return None if emulated else True


def label_of(results: Content) -> str:
    """Returns whose results they are, in a few words."""
    said = results["device"]
    name = said.get("model") or said.get("processor") or said.get("architecture") or ""
    text = "".join(sign if sign.isprintable() else " " for sign in str(name)[: 4 * NAME])
    text = f"{text[:NAME]}…" if len(text) > NAME else text
    label = ": ".join(part for part in (results["target"], text) if part)
    if any(gate["name"] == "device" and gate["passed"] is False for gate in results["gates"]):
        label = f"{text or 'another device'}, not {results['target']}"
    return label + (", emulated" if is_emulated(results) else "")


def device_of(root: Path, files: set[str]) -> tuple[str, tuple[str, ...]]:
    """Returns whose results an artifact holds, and what shows that it is not certified there.

    Empty where there are none, or they cannot be read, which is refuted elsewhere.
    """
    try:
        with reading(RESULTS):
            results = read_results(root, files)
            if results is None:
                return "", ()
            return label_of(results), tuple(uncertified(results))
    except NotConfirmed:
        return "", ()
