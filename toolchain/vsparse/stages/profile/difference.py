"""Two profiles against each other: the ratio of their medians, with an interval that says whether there is a difference at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vsparse.artifact.device import DEVICE_RESULTS, DeviceResults, DeviceRuntime
from vsparse.artifact.document import load_json, parse, read_document
from vsparse.artifact.latency import Latency, LatencyFile
from vsparse.artifact.noise import told_once
from vsparse.errors import InputError
from vsparse.notebook import table

CONFIDENCE = 0.95
RESAMPLES = 1000
LEAST_BLOCKS = 8
# Standard deviation of the logarithm of the median from run to run of one network, beyond what the blocks of one run show: placement in
# memory, the core that a process is on, a clock that another minute finds elsewhere. The second is of a run that something made noisy.
# benchmarks/device/compare.json.
BETWEEN_RUNS, BETWEEN_NOISY_RUNS = 0.02, 0.05
# What must be the same for two times to be about the networks alone.
SAME = ("runtime", "runtime_version", "threads_intra_op", "batch", "providers")


@dataclass(frozen=True)
class MedianRatio:
    """The median of one profile over that of another, and the interval that holds the true ratio with 95 % confidence."""

    name: str
    one_ms: float
    other_ms: float
    ratio: float
    low: float
    high: float

    @property
    def different(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1 <= self.high

    def sentence(self, one: str = "A", other: str = "B") -> str:
        """Returns what that comes to in words."""
        digits = next((n for n in (2, 3, 4, 6) if "1" not in {f"{end:.{n}f}".rstrip("0").rstrip(".") for end in (self.low, self.high)}), 6)
        span = f"{one} is {self.low:.{digits}f}–{self.high:.{digits}f} times {other}"
        return span if self.different else f"no difference: {span}"

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {
            "name": self.name,
            "a_latency_ms_p50": self.one_ms,
            "b_latency_ms_p50": self.other_ms,
            "ratio": self.ratio,
            "ratio_low": self.low,
            "ratio_high": self.high,
            "confidence": CONFIDENCE,
            "different": self.different,
            "verdict": self.sentence(),
        }


@dataclass(frozen=True)
class ProfileComparison:
    """What two profiles have in common, form by form, and what else differs between them."""

    rows: tuple[MedianRatio, ...]
    notes: tuple[str, ...]

    def _repr_html_(self) -> str:
        rows = [(row.name, row.one_ms, row.other_ms, row.ratio, row.sentence()) for row in self.rows]
        return table("medians, ms", ("form", "A", "B", "A / B", "difference"), rows, "; ".join(self.notes))

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {"schema_version": 1, "rows": [row.as_dict() for row in self.rows], "notes": list(self.notes)}


def compare_profiles(one: Path, other: Path) -> ProfileComparison:
    """Compares two measurements that were kept: artifacts, files of `vsparse profile --save`, or results.json of a device.

    Forms are compared by name; two files of one network each whatever their names. Raises InputError for what is no measurement, and where
    nothing is in both.
    """
    left, right = read_profile(one), read_profile(other)
    pairs = [(name, left[name], right[name]) for name in left if name in right]
    if not pairs and len(left) == len(right) == 1:
        (name, first), (_, second) = *left.items(), *right.items()
        pairs = [(name, first, second)]
    if not pairs:
        raise InputError(
            f"{one} has {', '.join(left)}, and {other} has {', '.join(right)}: there is no form in both; measure the same ones"
        )
    rows = tuple(median_ratio(name, first, second) for name, first, second in pairs)
    notes = list(dict.fromkeys(note for _, first, second in pairs for note in _differing(first, second)))
    notes += [f"A is noisy: {text}" for text in told_once((name, first.noise) for name, first, _ in pairs)]
    notes += [f"B is noisy: {text}" for text in told_once((name, second.noise) for name, _, second in pairs)]
    return ProfileComparison(rows, tuple(notes))


def read_profile(path: Path) -> dict[str, Latency]:
    """Returns the latencies that an artifact, a file of `vsparse profile --save` or a results.json holds, by form."""
    if path.is_dir():
        found: dict[str, Latency] = {}
        for file in sorted((path / "profile").rglob("*.json")):
            if file != path / DEVICE_RESULTS:
                found |= _of_file(read_document(LatencyFile, file), f"{file.relative_to(path / 'profile').with_suffix('')}, ")
        if (path / DEVICE_RESULTS).exists():
            found |= _of_device(read_document(DeviceResults, path / DEVICE_RESULTS))
        if not found:
            raise InputError(f"{path} holds no measurement; run vsparse profile {path} --save FILE, and compare that file")
        return found
    if path.suffix.lower() == ".onnx":
        raise InputError(f"{path} is a network, and no measurement of it; run vsparse profile {path} --save FILE, and compare that file")
    content = load_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is no measurement; give an artifact, a file of vsparse profile --save, or a results.json of a device")
    if content.get("kind") == "vsparse-device-results":
        found = _of_device(parse(DeviceResults, {key: value for key, value in content.items() if key != "choice"}, path))
        if not found:
            raise InputError(f"{path} holds no times; measure again")
        return found
    content = {key: value for key, value in content.items() if key not in ("conditions", "layers")}
    whole = content if "packed" in content else {"packed": content}
    return _of_file(parse(LatencyFile, whole, path), "")


def _of_file(found: LatencyFile, where: str) -> dict[str, Latency]:
    both = {f"{where}packed": found.packed}
    return both if found.dense is None else {f"{where}dense": found.dense, **both}


def _of_device(found: DeviceResults) -> dict[str, Latency]:
    timed: dict[str, Latency] = {}
    for model in found.measurements:
        own = model.model_copy(update={"runtime": model.runtime or found.runtime or DeviceRuntime()})
        latency = own.measured(found.device)
        if latency is not None:
            timed[f"{model.role} ({(own.runtime or DeviceRuntime()).name}) on {found.target}"] = latency
    return timed


def _differing(one: Latency, other: Latency) -> list[str]:
    """Returns what was not the same when two latencies were taken."""
    notes = []
    for where, left, right in (("", one.settings, other.settings), ("the machine's ", one.machine, other.machine)):
        for key in SAME if not where else ("processor", "model", "power_mode"):
            if left.get(key) != right.get(key):
                notes.append(f"{where}{key.replace('_', ' ')} differs: {_shown(left.get(key))} and {_shown(right.get(key))}")
    return notes


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def between_runs(latency: Latency) -> float:
    """The standard deviation that the logarithm of a median is granted from run to run; more where the run was noisy."""
    return BETWEEN_NOISY_RUNS if latency.noise else BETWEEN_RUNS


def median_ratio(name: str, one: Latency, other: Latency, between: float | None = None) -> MedianRatio:
    """Returns the ratio of two medians and its interval, of runs that were not taken in turns with each other.

    The variance of the logarithm of each median is that of a bootstrap over its blocks, as samples of a block depend on each other, in
    stretches of neighbouring blocks, as these do too (Künsch, The Annals of Statistics 17(3), 1989, the moving-blocks bootstrap; circular:
    Politis and Romano, 1992), and that between runs, `between_runs` or as given; their sum is taken with a quantile of Student's t by Welch
    and Satterthwaite.
    Raises InputError for too few samples, and for medians of 0.
    """
    spreads = [_log_spread(name, latency) for latency in (one, other)]
    within = [variance for variance, _ in spreads]
    total = sum(within) + sum((between_runs(latency) if between is None else between) ** 2 for latency in (one, other))
    # What is known of the variation between runs has as many degrees of freedom as it was measured with: many.
    doubt = sum(variance**2 / freedom for variance, freedom in spreads)
    freedom = min(total**2 / doubt, 1e6) if doubt else 1e6
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, max(freedom, 1.0))) * math.sqrt(total)
    ratio = one.p50 / other.p50
    return MedianRatio(name, one.p50, other.p50, ratio, ratio * math.exp(-reach), ratio * math.exp(reach))


def paired_ratio(name: str, one: Latency, other: Latency) -> MedianRatio | None:
    """The same of two that took turns: by the ratios of neighbouring turns, which one machine state slows alike; None where too few are."""
    ratios = np.log(np.asarray(one.block_ratios(other), dtype=np.float64).clip(min=1e-300))
    if len(ratios) < LEAST_BLOCKS or not (one.p50 and other.p50):
        return None
    stretch = _stretch(len(ratios))
    medians = [float(np.median(ratios[places])) for places in _resampled(len(ratios), stretch)]
    centre = float(np.median(ratios))
    reach = _quantile(len(ratios), stretch) * float(np.std(medians))
    return MedianRatio(name, one.p50, other.p50, math.exp(centre), math.exp(centre - reach), math.exp(centre + reach))


def _log_spread(name: str, latency: Latency) -> tuple[float, float]:
    """Returns the variance of the logarithm of a median, and its degrees of freedom."""
    if not latency.p50 > 0:
        raise InputError(f"the median of {name} is 0, of which there is no ratio; measure more samples in one run (--batch)")
    blocks = [np.asarray(block, dtype=np.float64) for block in latency.blocks if block]
    if len(blocks) < LEAST_BLOCKS:  # not taken in turns, or in few: pieces of it
        samples = np.asarray(latency.samples_ms, dtype=np.float64)
        if len(samples) < 2 * LEAST_BLOCKS:
            raise InputError(f"{name} has {len(samples)} samples, too few for an interval; measure at least {2 * LEAST_BLOCKS} runs")
        blocks = list(np.array_split(samples, min(40, len(samples) // 2)))
    stretch = _stretch(len(blocks))
    medians = [float(np.log(np.median(np.concatenate([blocks[i] for i in places])))) for places in _resampled(len(blocks), stretch)]
    independent = len(blocks) / stretch
    return float(np.var(medians)) * independent / (independent - 1), independent - 1


def _stretch(blocks: int) -> int:
    """How many neighbouring blocks are drawn together."""
    return max(1, round(math.sqrt(blocks)))


def _quantile(blocks: int, stretch: int) -> float:
    independent = blocks / stretch
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, independent - 1)) * math.sqrt(independent / (independent - 1))


def _resampled(blocks: int, stretch: int) -> Sequence[NDArray[np.int64]]:
    """Returns the places of the blocks of each resample: stretches of neighbours, the last block's neighbour being the first."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, blocks, size=(RESAMPLES, -(-blocks // stretch)))
    places = (starts[:, :, None] + np.arange(stretch)) % blocks
    return list(places.reshape(RESAMPLES, -1)[:, :blocks])
