"""What is to be proved of the outputs, as linear rows: in each group, some row exceeds its threshold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vsparse.bounds import Box
from vsparse.bounds.float64 import TINY, gamma64


@dataclass(frozen=True)
class Specification:
    """In each group of rows, some row · y > its threshold; a group is one unsafe conjunction, of which one constraint must fail.

    `rows` is [R, outputs] and `thresholds` [R], float64; `group` [R] says to which of the `groups` a row belongs. No group is empty.
    """

    rows: Tensor
    thresholds: Tensor
    group: Tensor
    groups: int

    def to(self, device: torch.device) -> Specification:
        """Returns the specification on a device."""
        return Specification(self.rows.to(device), self.thresholds.to(device), self.group.to(device), self.groups)

    def best(self, margins: Tensor) -> Tensor:
        """Returns the largest margin [batch, groups] within each group, for margins [batch, R] of the rows."""
        index = self.group.expand(len(margins), -1)
        return margins.new_full((len(margins), self.groups), -torch.inf).scatter_reduce(1, index, margins, "amax")

    def margins(self, outputs: Tensor) -> Tensor:
        """Returns row · y − threshold [batch, R] for outputs y [batch, K], in their dtype."""
        return outputs @ self.rows.T.to(outputs.dtype) - self.thresholds.to(outputs.dtype)

    def of(self, groups: Tensor) -> Specification:
        """Returns the specification of some groups alone, numbered anew in the order of `groups` [G]."""
        number = torch.full((self.groups,), -1, dtype=torch.int64)
        number[groups] = torch.arange(len(groups))
        kept = number[self.group] >= 0
        return Specification(self.rows[kept], self.thresholds[kept], number[self.group[kept]], len(groups))

    def mixed(self, weights: Tensor, outputs: Box) -> tuple[Tensor, Tensor]:
        """Returns one row for each group, [batch, groups, K], and its threshold [batch, groups], from weights [batch, groups, R] >= 0.

        Where Σ weight · (row · y − threshold) is positive, so is one of its terms. The thresholds are raised by what rounding may change
        about weighted rows, for outputs within the box `outputs`, each [batch, K].
        """
        size = torch.maximum(outputs[0].abs(), outputs[1].abs()).unsqueeze(2)
        unit = gamma64(len(self.rows) + 16, self.rows.device) * (1 + 2.0**-20)
        slack = (weights @ self.rows.abs() @ size).squeeze(2) + weights @ self.thresholds.abs()
        return weights @ self.rows, weights @ self.thresholds + slack * unit + TINY
