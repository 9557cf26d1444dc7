"""How the radius, the weight of the clean loss and the learning rate change over the epochs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from vsparse.recipe import Train
from vsparse.schema import parse_fraction

MID = 0.4
POWER = 4


def smoothed_ramp(progress: float) -> float:
    """Returns the share of the final radius at `progress` of the ramp, both in [0, 1].

    It grows with the fourth power over the first 0.4 of the ramp and linearly, with the slope reached there, over the rest: the
    smoothed schedule of Xu et al. (auto_LiRPA, NeurIPS 2020, appendix), with exponent 4 and mid point 0.4 as VeriCompress sets them.
    """
    progress = min(max(progress, 0.0), 1.0)
    slope = POWER * MID ** (POWER - 1)
    scale = 1 / (MID**POWER + slope * (1 - MID))
    return scale * (progress**POWER if progress <= MID else MID**POWER + slope * (progress - MID))


@dataclass(frozen=True)
class Schedule:
    """The schedule of one training; epochs are counted from 0, and a fraction of an epoch is a position inside it."""

    spec: Train

    def share(self, position: float) -> float:
        """Returns the share of the final radius at an epoch position."""
        start, length = self.spec.warmup * self.spec.epochs, self.spec.ramp * self.spec.epochs
        if length == 0:
            return 1.0 if position >= start else 0.0
        return smoothed_ramp((position - start) / length)

    def epsilon(self, position: float) -> float:
        """Returns the radius at an epoch position, in units of the [0, 1] input scale."""
        return float(parse_fraction(self.spec.epsilon)) * self.share(position)

    def kappa(self, position: float) -> float:
        """Returns the weight of the clean loss, which moves with the radius (Gowal et al., arXiv 1810.12715, section 4)."""
        return self.spec.kappa_start + (self.spec.kappa_end - self.spec.kappa_start) * self.share(position)

    def learning_rate(self, epoch: int) -> float:
        """Returns the learning rate of a whole epoch: multiplied by `decay` from each milestone's epoch on."""
        return self.spec.learning_rate * self.spec.decay ** sum(epoch >= round(share * self.spec.epochs) for share in self.spec.milestones)

    @property
    def full_from(self) -> int:
        """The first epoch that is trained at the full radius from its start; at most the last one."""
        return min(ceil((self.spec.warmup + self.spec.ramp) * self.spec.epochs - 1e-9), self.spec.epochs - 1)

    @property
    def freeze_from(self) -> int:
        """The first epoch that is trained with the final mask; at most the last one."""
        return min(ceil(self.spec.sparse.freeze * self.spec.epochs - 1e-9), self.spec.epochs - 1)
