"""Granularities whose budget the recipe's allocation spreads over the layers: all but 2:4, where the pattern says how many stay."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from vsparse.compute_device import to_host
from vsparse.graph.ir import Graph
from vsparse.recipe import Train
from vsparse.stages.train.budgets import PrunableLayer, SparsityBudget, best_of_all, kernel_density, one_each, spread
from vsparse.stages.train.dead_units import DeadUnits, without_dead_units
from vsparse.stages.train.granularity.connectivity import dead_entries
from vsparse.stages.train.granularity.pattern import Pattern
from vsparse.stages.train.masks import Masks
from vsparse.stages.train.measures import Weight, weights_of
from vsparse.stages.train.units import groups_of

# Removing what leads nowhere may leave more of it behind; what a few attempts leave is little.
ATTEMPTS = 12


def layer_adaptive(scores: Tensor) -> Tensor:
    """Returns s² / Σ s'² over the scores s' ≥ s of the layer, shaped like `scores`; 0 for scores of 0."""
    # On the processor: accelerators have no deterministic cumulative sum.
    flat = to_host(scores).flatten().double().square()
    order = torch.sort(flat, descending=True, stable=True).indices
    ranked = flat[order]
    result = torch.empty_like(flat)
    result[order] = ranked / ranked.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
    return result.to(scores.device, scores.dtype).view(scores.shape)


class Allocated(Pattern):
    """A pattern with counts by train.sparse.allocation.

    - uniform: one density d for all layers; erdos-renyi-kernel: d · (sum of the weight's dimensions) / (their product), at most 1
      (Evci et al., ICML 2020). A layer of n items keeps n · (1 − f · (1 − density)), where f is train.sparse.conv_share for
      convolutions and the last layer (VeriCompress, arXiv 2211.09945v7, halves their sparsity) and 1 elsewhere.
    - global: the items with the highest scores of all layers, without f.
    - lamp: the same with s² / (sum of the s'² of all that score as much or more in the layer) for each score s, which compares an item
      with what its layer keeps (Lee et al., Layer-Adaptive Magnitude-Based Pruning, ICLR 2021, equation 1).

    `choose` leaves out entries that lead nowhere (connectivity.py) and takes others instead.
    """

    def __init__(self, graph: Graph, spec: Train) -> None:
        self.spec = spec
        self.cells = weights_of(graph)
        self.weights = list(self.cells)
        self.budget = SparsityBudget.of(spec, self.cells)
        self.final_density = self.budget.final
        self.layers = self.make_layers(graph)
        self._known: dict[float | None, dict[str, int]] = {}
        self.groups = groups_of(graph)
        if self.ranks_all:
            one_each(self.layers, self.costs, self.budget)
        else:
            self.counts()

    @abstractmethod
    def make_layers(self, graph: Graph) -> list[PrunableLayer]:
        """Returns the layers that items are counted in, in order of execution."""

    @abstractmethod
    def costs(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Returns the budget's measure of each weight when the layers keep so many items."""

    def counts(self, density: float | None = None, scores: Mapping[str, Tensor] | None = None) -> dict[str, int]:
        if self.ranks_all:
            if scores is None:
                raise ValueError(f'allocation "{self.spec.sparse.allocation}" needs the scores')
            if self.spec.sparse.allocation == "lamp":
                scores = {layer.name: layer_adaptive(scores[layer.name]) for layer in self.layers}
            return best_of_all(self.layers, scores, self.costs, self.budget, density)
        if density not in self._known:
            self._known[density] = spread(self.layers, self.costs, self.budget, density)
        return dict(self._known[density])

    @property
    def ranks_all(self) -> bool:
        """Whether the items of all layers are ranked together."""
        return self.spec.sparse.allocation in ("global", "lamp")

    def choose(self, params: Mapping[str, Tensor], density: float | None = None, dead: DeadUnits = MappingProxyType({})) -> Masks:
        saliency = without_dead_units({name: value.detach().abs() for name, value in params.items()}, self.groups, dead)
        for attempt in range(ATTEMPTS):
            scores = self.items(saliency)
            masks = self.masks(self.top(scores, self.counts(density, scores)), params)
            dead = {} if self.structured or attempt == ATTEMPTS - 1 else dead_entries(self.groups, masks.entries)
            if not dead:
                break
            saliency |= {name: saliency[name].masked_fill(lost, 0) for name, lost in dead.items()}
        return masks

    def make_layer(self, name: str, label: str, items: int, shapes: list[tuple[int, ...]], sparsity_factor: float) -> PrunableLayer:
        """Returns a layer whose Erdős–Rényi-kernel density is the mean of those of `shapes`; 1 when the allocation is uniform."""
        even = self.spec.sparse.allocation != "erdos-renyi-kernel"
        return PrunableLayer(name, label, items, 1.0 if even else sum(map(kernel_density, shapes)) / len(shapes), sparsity_factor)

    def sparsity_factor(self, weight: Weight) -> float:
        """Returns the factor of the sparsity of a weight of which single entries are removed."""
        return min(1.0, self.spec.sparse.conv_share) if weight.is_conv_or_last else 1.0
