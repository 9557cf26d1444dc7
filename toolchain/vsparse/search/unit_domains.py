"""Domains of the search that splits the inputs of curves: their boxes, the slopes and multipliers found for them, and where to split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vsparse.bounds.choices import Choices
from vsparse.bounds.curves import has_two_slopes
from vsparse.graph.ir import Node


@dataclass
class Domains:
    """Domains [n]: boxes of the curves' inputs, slopes of their relaxations, and multipliers of their inputs, by node, [n, size] each."""

    ends: dict[str, tuple[Tensor, Tensor]]
    slopes: dict[str, tuple[Tensor, Tensor]]
    duals: dict[str, tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(next(iter(self.duals.values()))[0])

    def pick(self, index: Tensor | slice) -> Domains:
        """Returns some of the domains."""
        return Domains(
            {name: (low[index], high[index]) for name, (low, high) in self.ends.items()},
            {name: (below[index], above[index]) for name, (below, above) in self.slopes.items()},
            {name: (low[index], high[index]) for name, (low, high) in self.duals.items()},
        )

    def join(self, other: Domains) -> Domains:
        """Returns both, one after the other."""

        def both(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return torch.cat([one[0], two[0]]), torch.cat([one[1], two[1]])

        return Domains(
            {name: both(pair, other.ends[name]) for name, pair in self.ends.items()},
            {name: both(pair, other.slopes[name]) for name, pair in self.slopes.items()},
            {name: both(pair, other.duals[name]) for name, pair in self.duals.items()},
        )

    def free(self, curves: Sequence[Node]) -> list[Tensor]:
        """Returns what is optimised: slopes below and above and the multipliers of both ends, of each curve."""
        return [value for node in curves for value in (*self.slopes[node.name], *self.duals[node.name])]

    def named(self, curves: Sequence[Node], free: list[Tensor]) -> Domains:
        """Returns the domains with other slopes and multipliers, in the order of `free`."""
        slopes = {node.name: (free[4 * i], free[4 * i + 1]) for i, node in enumerate(curves)}
        return Domains(self.ends, slopes, {node.name: (free[4 * i + 2], free[4 * i + 3]) for i, node in enumerate(curves)})

    def mixed(self, better: Tensor, new: Domains) -> Domains:
        """Returns the domains with the slopes and multipliers of `new` where it is better ([n] bool)."""
        where = better.unsqueeze(1)

        def mixed(pairs: dict[str, tuple[Tensor, Tensor]], others: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
            return {
                name: (torch.where(where, one.detach(), others[name][0]), torch.where(where, two.detach(), others[name][1]))
                for name, (one, two) in pairs.items()
            }

        return Domains(self.ends, mixed(new.slopes, self.slopes), mixed(new.duals, self.duals))

    def choices(self, curves: Sequence[Node]) -> Choices:
        """Returns what a backward pass of one row for each domain takes."""
        slopes, others = {}, {}
        for node in curves:
            below, above = (value.view(len(value), 1, *node.shape) for value in self.slopes[node.name])
            if has_two_slopes(node):
                others[node.name] = below, above
            else:
                slopes[node.name] = below
        duals = {
            node.name: (self.duals[node.name][0].view(len(self), 1, *node.shape), self.duals[node.name][1].view(len(self), 1, *node.shape))
            for node in curves
        }
        return Choices(slopes, curves=others, duals=duals)
