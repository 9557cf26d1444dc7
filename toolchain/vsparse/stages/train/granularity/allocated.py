"""Granularities whose budget the recipe's allocation spreads over the layers: all but 2:4, where the pattern says how many stay."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe import Train
from vsparse.stages.train.budgets import Budget, Layer, best_of_all, kernel_density, one_each, spread
from vsparse.stages.train.granularity.pattern import Pattern
from vsparse.stages.train.measures import Weight, weights_of


class Allocated(Pattern):
    """A pattern with counts by train.sparse.allocation.

    - uniform: one density d for all layers; erdos-renyi-kernel: d · (sum of the weight's dimensions) / (their product), at most 1
      (Evci et al., ICML 2020). A layer of n items keeps n · (1 − share · (1 − density)), where share is train.sparse.conv_share for
      convolutions and the last layer (VeriCompress, arXiv 2211.09945v7, halves their sparsity) and 1 elsewhere.
    - global: the items with the highest scores of all layers, without shares.
    """

    def __init__(self, graph: Graph, spec: Train) -> None:
        self.spec = spec
        self.cells = weights_of(graph)
        self.weights = list(self.cells)
        self.budget = Budget.of(spec, self.cells)
        self.final_density = self.budget.final
        self.layers = self.make_layers(graph)
        self._known: dict[float | None, dict[str, int]] = {}
        if spec.sparse.allocation == "global":
            one_each(self.layers, self.costs, self.budget)
        else:
            self.counts()

    @abstractmethod
    def make_layers(self, graph: Graph) -> list[Layer]:
        """Returns the layers that items are counted in, in order of execution."""

    @abstractmethod
    def costs(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Returns the budget's measure of each weight when the layers keep so many items."""

    def counts(self, density: float | None = None, scores: Mapping[str, Tensor] | None = None) -> dict[str, int]:
        if self.spec.sparse.allocation == "global":
            if scores is None:
                raise ValueError('allocation "global" needs the scores')
            return best_of_all(self.layers, scores, self.costs, self.budget, density)
        if density not in self._known:
            self._known[density] = spread(self.layers, self.costs, self.budget, density)
        return dict(self._known[density])

    def make_layer(self, name: str, label: str, items: int, shapes: list[tuple[int, ...]], share: float) -> Layer:
        """Returns a layer whose Erdős–Rényi-kernel density is the mean of those of `shapes`; 1 when the allocation is uniform."""
        even = self.spec.sparse.allocation != "erdos-renyi-kernel"
        return Layer(name, label, items, 1.0 if even else sum(map(kernel_density, shapes)) / len(shapes), share)

    def share_of(self, weight: Weight) -> float:
        """Returns the share of the sparsity of a weight of which single entries are removed."""
        return min(1.0, self.spec.sparse.conv_share) if weight.gentle else 1.0
