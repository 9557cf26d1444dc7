"""What a sweep finds: one measurement a training, one row a configuration, and the JSON of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from vsparse.sweep.grid import Configuration

SCHEMA_VERSION = 1
Axis = Literal["certified", "clean", "macs", "bytes", "seconds"]
# Each axis with the field of Measured that it reads, and whether more of it is better.
AXES: dict[str, tuple[str, bool]] = {
    "certified": ("certified_accuracy", True),
    "clean": ("clean_accuracy", True),
    "macs": ("macs", False),
    "bytes": ("bytes", False),
    "seconds": ("train_seconds", False),
}
DEFAULT_AXES: tuple[Axis, ...] = ("certified", "macs", "bytes")
RowStatus = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Measured:
    """One trained and packed network: fractions of the validation split, multiply-accumulates of a sample, float32 bytes, seconds.

    `weights` counts those stored after packing, `nonzero_weights` those of them that are not zero; `epochs_trained` counts fine-tuning and
    the like too; `reused` says that the training was in the cache already; `collapse` why the network is no better than a constant
    answer, where it is not.
    """

    certified_accuracy: float
    clean_accuracy: float
    macs: int
    bytes: int
    weights: int
    nonzero_weights: int
    train_seconds: float
    epochs_trained: int
    reused: bool = False
    collapse: str = ""


NUMBERS = tuple(name for name in Measured.__dataclass_fields__ if name not in ("reused", "collapse"))


@dataclass(frozen=True)
class TrainingRun:
    """One training of a configuration: its seed and epochs, and what was measured, or why nothing was, with the exit code of that error."""

    seed: int
    epochs: int
    measured: Measured | None
    reason: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Row:
    """One configuration with a run for each seed, at the longest rung that it reached."""

    configuration: Configuration
    rung: int
    runs: tuple[TrainingRun, ...]
    status: RowStatus
    pareto: bool = False

    @property
    def reason(self) -> str:
        """Why it failed: the first reason, and how many of the seeds failed; empty where none did."""
        failed = [run for run in self.runs if run.measured is None]
        if not failed:
            return ""
        return failed[0].reason if len(self.runs) == 1 else f"{len(failed)} of {len(self.runs)} seeds failed: {failed[0].reason}"

    @property
    def collapse(self) -> str:
        """Why its network collapsed: the first reason, and for how many of the seeds; empty where none did."""
        found = [run.measured.collapse for run in self.runs if run.measured is not None and run.measured.collapse]
        if not found:
            return ""
        return found[0] if len(self.runs) == 1 else f"{len(found)} of {len(self.runs)} seeds collapsed: {found[0]}"

    def values(self, name: str) -> list[float]:
        """Returns one number of Measured for each run that has it."""
        return [float(getattr(run.measured, name)) for run in self.runs if run.measured is not None]

    def mean(self, name: str) -> float | None:
        """Returns the mean over the runs, None where every one failed."""
        found = self.values(name)
        return fmean(found) if found else None

    def spread(self, name: str) -> float | None:
        """Returns the sample standard deviation over the runs, None for fewer than two."""
        found = self.values(name)
        return stdev(found) if len(found) > 1 else None

    def point(self, axes: Sequence[str]) -> tuple[float, ...]:
        """Returns the means on the axes, those of which more is better negated, so that lower is better everywhere."""
        return tuple((-1 if AXES[axis][1] else 1) * (self.mean(AXES[axis][0]) or 0.0) for axis in axes)

    def as_json(self) -> dict[str, Any]:
        """Returns the row as JSON values."""
        return {
            "id": self.configuration.id,
            "settings": dict(self.configuration.settings),
            "set": self.configuration.as_set(),
            "status": self.status,
            "reason": self.reason,
            "collapse": self.collapse,
            "pareto": self.pareto,
            "rung": self.rung,
            "epochs": self.runs[0].epochs,
            "seeds": [run.seed for run in self.runs],
            "mean": {name: self.mean(name) for name in NUMBERS},
            "spread": {name: self.spread(name) for name in NUMBERS},
            "runs": [
                {
                    "seed": run.seed,
                    "epochs": run.epochs,
                    "reason": run.reason,
                    "measured": None if run.measured is None else asdict(run.measured),
                }
                for run in self.runs
            ],
        }
