"""Two of every four neighbouring inputs: the pattern of sparse tensor cores."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor

import torch
from torch import Tensor

from vsparse.errors import InputError
from vsparse.graph.ir import Graph
from vsparse.recipe import Train
from vsparse.stages.train.budgets import PrunableLayer, SparsityBudget, spread
from vsparse.stages.train.granularity.element import Entries
from vsparse.stages.train.granularity.pattern import largest, ranked, ranked_first
from vsparse.stages.train.measures import Weight, weights_of
from vsparse.stages.train.units import groups_of


class TwoFourPattern(Entries):
    """Of every four neighbouring inputs (axis 1 of the weight) of an output, at each kernel position, exactly two stay.

    Mishra et al., Accelerating Sparse Deep Neural Networks (arXiv 2104.08378), section 2. An item is an entry, a layer is a weight. The
    pattern sets the density of a layer, ½, so the budget only says which layers it covers: all whose inputs (in/groups) are a
    multiple of four, of which the last layer and then the others, first to last, stay dense where the budget is met without them.
    Layers that cannot be divided stay dense; where the budget cannot be met so, the heaviest of them is refused by name.
    Allocation and conv_share have no meaning here. At densities above the final one the covered layers lose the same fraction of the
    entries that 2:4 removes, the least important first.
    """

    def __init__(self, graph: Graph, spec: Train) -> None:
        self.cells = weights_of(graph)
        self.weights = list(self.cells)
        self.groups = groups_of(graph)
        self.budget = SparsityBudget.of(spec, self.cells)
        self.final_density = self.budget.final
        last = [name for name, cell in self.cells.items() if cell.node == graph.output]
        self.covered = self._cover(last + [name for name in self.weights if name not in last])

    def counts(self, density: float | None = None, scores: Mapping[str, Tensor] | None = None) -> dict[str, int]:
        final = self._halved(self.covered)
        if density is None or density <= self.final_density * (1 + 1e-9):
            if density is not None and self._cost(final) > self.budget.limit(density):
                raise InputError(f"2:4 with this recipe keeps {self.final_density:g} of the {self.budget.measure.unit}, not {density:g}")
            return final
        # From half (at scale 0) to whole (at scale 1); what is not covered is whole at any scale.
        layers = [PrunableLayer(name, cell.node, cell.size, 1.0, 0.5 if name in self.covered else 0.0) for name, cell in self.cells.items()]
        return spread(layers, self._costs, self.budget, density)

    def top(self, scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Returns the active items: in a covered layer first the best two of each four, best first, then the other entries.

        So at most half means at most two of four. Elsewhere the best ones. Ties go to the first, NaN counts as least.
        """
        return {name: self._best(scores[name], counts[name], name in self.covered) for name in self.weights}

    def _best(self, scores: Tensor, count: int, covered: bool) -> Tensor:
        if not covered:
            return largest(scores, count)
        pairs = two_of_four(scores)
        if scores.device.type != "cpu":
            # All pairs first, best first, then the others, best first: two stable sorts, the second one by whether it is of a pair.
            order = torch.sort(ranked(scores).flatten(), descending=True, stable=True).indices
            order = order[torch.sort((~pairs).flatten()[order], stable=True).indices]
            return ranked_first(order, count).view(scores.shape)
        if 2 * count <= scores.numel():
            # −inf would tie with the worst of the pairs, so the others are put aside instead of marked.
            chosen = torch.zeros_like(pairs)
            chosen[pairs] = largest(scores[pairs], count)
            return chosen
        chosen = pairs.clone()
        chosen[~pairs] = largest(scores[~pairs], count - scores.numel() // 2)
        return chosen

    def _cover(self, order: list[str]) -> list[str]:
        """Returns the weights to halve, given the order in which they are left dense where the budget allows it."""
        limit = self.budget.limit()
        covered = [name for name in self.weights if _divides(self.cells[name])]
        if self._cost(self._halved(covered)) > limit:
            raise InputError(self._refusal(covered))
        for name in order:
            others = [other for other in covered if other != name]
            if self._cost(self._halved(others)) <= limit:
                covered = others
        return covered

    def _refusal(self, covered: list[str]) -> str:
        cost, unit = self._cost(self._halved(covered)), self.budget.measure.unit
        best = floor((1 - cost / self.budget.total) * 1e4) / 1e4
        out = (
            f"raise train.parameter_budget to {ceil(cost)}"
            if self.budget.spec.parameter_budget
            else f"set train.sparsity to {best:g} or less"
            if best
            else "leave the network dense (train.sparsity = 0)"
        )
        out += ', or train.sparse.granularity to "element"'
        dense = [cell for name, cell in self.cells.items() if name not in covered]
        if not dense or self._cost(self._halved(self.weights)) > self.budget.limit():
            heaviest = max(self.cells.values(), key=lambda cell: cell.size)
            return f'2:4 keeps half of layer "{heaviest.node}" and of every other, so it removes at most {best:g} of the {unit}; {out}'
        heaviest = max(dense, key=lambda cell: self.budget.measure.packed(cell, cell.size))
        return (
            f'layer "{heaviest.node}" cannot be 2:4, as each of its outputs reads {heaviest.shape[1]} input(s), no multiple of 4, and '
            f"with it dense at most {best:g} of the {unit} can be removed; {out}"
        )

    def _halved(self, covered: list[str]) -> dict[str, int]:
        return {name: cell.size // 2 if name in covered else cell.size for name, cell in self.cells.items()}

    def _costs(self, counts: Mapping[str, int]) -> dict[str, float]:
        return {name: self.budget.measure.sparse(cell, counts[name], cell.size) for name, cell in self.cells.items()}

    def _cost(self, counts: Mapping[str, int]) -> float:
        return sum(self._costs(counts).values())


def _divides(cell: Weight) -> bool:
    return cell.shape[1] % 4 == 0


def two_of_four(score: Tensor) -> Tensor:
    """Returns bool, shaped like `score` [out, in, …] with in a multiple of 4, of the two best of every four along axis 1."""
    fours = ranked(score).reshape(score.shape[0], -1, 4, *score.shape[2:])
    best = torch.sort(fours, dim=2, descending=True, stable=True).indices[:, :, :2]
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(2, best, True).view(score.shape)
