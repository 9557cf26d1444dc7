"""What a search may choose about the curves of a backward pass; the bound is sound for every choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choices:
    """Choices by the name of the node, each broadcastable to [batch, rows, *shape of the node]; the first three are about ReLUs.

    `slopes`: the lower slope of an unstable unit, clamped to [0, 1]; units without one have 1 if u > −l and else 0.
    `splits`: 1 where the row is to hold for inputs with z >= 0 alone, −1 for z <= 0, 0 for all (z: the executed pre-activation).
    `multipliers`: β·s with β >= 0 and s the split, 0 where nothing is split; what it adds, −β·s·z, is never positive where the split holds
    (Wang et al., arXiv 2103.06624, theorem 3.1). A multiplier whose sign is not that of its split is used as 0.
    `curves`: the slopes (below, above) of the linear relaxation of a curve other than ReLU, clamped to [0, 1].
    `duals`: multipliers of the lower and upper end of the box that a curve reads (`CrownPass.dual`); none below 0 is used.
    """

    slopes: Mapping[str, Tensor] = field(default_factory=dict)
    splits: Mapping[str, Tensor] = field(default_factory=dict)
    multipliers: Mapping[str, Tensor] = field(default_factory=dict)
    curves: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    duals: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rows(self, start: int, count: int) -> Choices:
        """Returns the choices for a piece of the rows; those with one row hold for every row."""
        return self._each(lambda value: value if value.shape[1] == 1 else value[:, start : start + count])

    def samples(self, start: int, count: int) -> Choices:
        """Returns the choices for a piece of the batch; those with one sample hold for every sample."""
        return self._each(lambda value: value if value.shape[0] == 1 else value[start : start + count])

    def _each(self, part: Callable[[Tensor], Tensor]) -> Choices:
        relus = ({name: part(value) for name, value in one.items()} for one in (self.slopes, self.splits, self.multipliers))
        pairs = ({name: (part(one), part(other)) for name, (one, other) in each.items()} for each in (self.curves, self.duals))
        slopes, splits, multipliers = relus
        curves, duals = pairs
        return Choices(slopes, splits, multipliers, curves, duals)

    def relu_relaxation(self, name: str, default: tuple[Tensor, Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (lower slope, upper slope, upper intercept), [batch or 1, rows or 1, size], from those of the box [batch, *shape]."""
        lower, upper, intercept = (part.flatten(1).unsqueeze(1) for part in default)
        if name in self.slopes:
            lower = torch.where(lower.eq(upper) & intercept.eq(0), upper, self.slopes[name].to(like.dtype).clamp(0, 1).flatten(2))
        if name in self.splits:
            split = self.splits[name].flatten(2)
            decided, active = split != 0, (split > 0).to(like.dtype)
            lower, upper = torch.where(decided, active, lower), torch.where(decided, active, upper)
            intercept = intercept.masked_fill(decided, 0.0)
        return lower, upper, intercept

    def multiplier(self, name: str, like: Tensor) -> Tensor | None:
        """Returns the multipliers of a ReLU's input, [batch or 1, rows or 1, size], none of which has the wrong sign."""
        if name not in self.multipliers:
            return None
        value = self.multipliers[name].flatten(2).to(like.dtype)
        split = self.splits[name].flatten(2).to(like.dtype) if name in self.splits else torch.zeros_like(value)
        return (value * split).clamp(min=0) * split

    def dual(self, name: str, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns the multipliers of the ends of what a node reads, each [batch or 1, rows or 1, size]."""
        if name not in self.duals:
            return None
        lower, upper = (value.flatten(2).to(like.dtype).clamp(min=0) for value in self.duals[name])
        return lower, upper
