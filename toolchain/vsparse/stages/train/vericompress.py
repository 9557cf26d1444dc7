"""The masks of dynamic sparse training under their first names; `granularity` and `masks` hold what they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe import Train
from vsparse.stages.train.granularity import make_pattern
from vsparse.stages.train.masks import UNITS, Masks, density, enforce, group_keep
from vsparse.stages.train.units import groups_of

__all__ = ["UNITS", "Masks", "SparseSearch", "density", "enforce", "group_keep"]


class SparseSearch:
    """Chooses masks by magnitude; raises InputError when the budget cannot be met."""

    def __init__(self, graph: Graph, spec: Train) -> None:
        self.pattern = make_pattern(spec, graph)
        self.structured, self.weights, self.groups = self.pattern.structured, self.pattern.weights, groups_of(graph)

    def random(self, params: Mapping[str, Tensor], generator: torch.Generator) -> Masks:
        """Returns the masks of the sparse start, drawn at random."""
        counts = self.pattern.counts(scores=self.pattern.items({name: value.detach().abs() for name, value in params.items()}))
        return self.pattern.masks(self.pattern.random(counts, generator), params)

    def choose(self, params: Mapping[str, Tensor]) -> Masks:
        """Returns the masks of the most important items as they are now."""
        return self.pattern.choose(params)

    def deactivate(self, params: Mapping[str, Tensor], masks: Masks) -> None:
        """Zeroes what the masks leave out, in a way that lets it grow back, in place."""
        self.pattern.deactivate(params, masks)
