"""Single entries of the weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.stages.train.budgets import PrunableLayer
from vsparse.stages.train.granularity.allocated import Allocated
from vsparse.stages.train.granularity.pattern import Pattern
from vsparse.stages.train.masks import Masks
from vsparse.stages.train.measures import Weight


class Entries(Pattern):
    """A pattern whose items are the entries of the weights, and whose layers are the weights."""

    structured = False
    cells: dict[str, Weight]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: cell.shape for name, cell in self.cells.items()}

    def items(self, saliency: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: saliency[name].detach() for name in self.weights}

    def masks(self, active: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> Masks:
        return Masks({name: active[name].to(params[name].device, copy=True) for name in self.weights})

    def active(self, masks: Masks) -> dict[str, Tensor]:
        return {name: masks.entries[name].clone() for name in self.weights}


class ElementPattern(Entries, Allocated):
    """Any entries of a weight."""

    def make_layers(self, graph: Graph) -> list[PrunableLayer]:
        return [self.make_layer(name, cell.node, cell.size, [cell.shape], self.sparsity_factor(cell)) for name, cell in self.cells.items()]

    def costs(self, counts: Mapping[str, int]) -> dict[str, float]:
        return {name: self.budget.measure.sparse(self.cells[name], count, self.cells[name].size) for name, count in counts.items()}
