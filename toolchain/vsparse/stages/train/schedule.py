"""How the radius, the weight of the clean loss and the learning rate change over the epochs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, pi

from vsparse.recipe_train import Train
from vsparse.schema import parse_fraction
from vsparse.stages.train.phases import Phase

MID = 0.4
POWER = 4


def smoothed_ramp(progress: float) -> float:
    """Returns the fraction of the final radius at `progress` of the ramp, both in [0, 1].

    It grows with the fourth power over the first 0.4 of the ramp and linearly, with the slope reached there, over the rest: the
    smoothed schedule of Xu et al. (auto_LiRPA, NeurIPS 2020, appendix), with exponent 4 and mid point 0.4 as VeriCompress sets them.
    """
    progress = min(max(progress, 0.0), 1.0)
    slope = POWER * MID ** (POWER - 1)
    scale = 1 / (MID**POWER + slope * (1 - MID))
    return scale * (progress**POWER if progress <= MID else MID**POWER + slope * (progress - MID))


@dataclass(frozen=True)
class Schedule:
    """The schedule of one phase; epochs are counted from 0 in it, and a fraction of an epoch is a position inside it."""

    spec: Train
    phase: Phase

    def fraction(self, position: float) -> float:
        """Returns the fraction of the final radius at an epoch position."""
        if not self.phase.ramp:
            return 1.0
        start, length = self.spec.warmup * self.phase.epochs, self.spec.ramp * self.phase.epochs
        if length == 0:
            return 1.0 if position >= start else 0.0
        progress = (position - start) / length
        return min(max(progress, 0.0), 1.0) if self.spec.ramp_shape == "linear" else smoothed_ramp(progress)

    @property
    def final_epsilon(self) -> float:
        """The radius at the end of the ramp, in units of the [0, 1] input scale."""
        return float(parse_fraction(self.spec.epsilon))

    def epsilon(self, position: float) -> float:
        """Returns the radius at an epoch position, in units of the [0, 1] input scale."""
        return self.final_epsilon * self.fraction(position)

    def kappa(self, fraction: float) -> float:
        """Returns the weight of the clean loss at a fraction of the radius, as Gowal et al. (arXiv 1810.12715, section 4) move it."""
        return self.spec.kappa_start + (self.spec.kappa_end - self.spec.kappa_start) * fraction

    def learning_rate(self, epoch: int) -> float:
        """Returns the learning rate of a whole epoch: times `decay` from each milestone's epoch on, or a half cosine down to 0."""
        if self.spec.rate_schedule == "cosine":
            return self.phase.learning_rate * (1 + cos(pi * epoch / self.phase.epochs)) / 2
        passed = sum(epoch >= round(fraction * self.phase.epochs) for fraction in self.spec.milestones)
        return self.phase.learning_rate * self.spec.decay**passed

    @property
    def full_from(self) -> int:
        """The first epoch of the phase that is trained at the full radius from its start; at most the last one."""
        if not self.phase.ramp:
            return 0
        return min(ceil((self.spec.warmup + self.spec.ramp) * self.phase.epochs - 1e-9), self.phase.epochs - 1)


def rate_setting(spec: Train, phase: Phase) -> tuple[str, float]:
    """Returns the recipe's key for the learning rate of a phase, and its value at the phase's start."""
    if phase.trains == "scores":
        return "train.sparse.prune_learning_rate", phase.learning_rate
    if phase.learning_rate == spec.learning_rate:
        return "train.learning_rate", phase.learning_rate
    return "train.sparse.finetune_learning_rate", phase.learning_rate
