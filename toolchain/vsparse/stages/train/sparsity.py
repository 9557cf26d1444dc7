"""Budgets under their first names; `budgets` and `granularity` hold what they are."""

from __future__ import annotations

from collections.abc import Mapping

from vsparse.graph.ir import Graph
from vsparse.recipe import Train
from vsparse.stages.train.budgets import Budget, kernel_density
from vsparse.stages.train.granularity.channel import ChannelPattern
from vsparse.stages.train.granularity.element import ElementPattern
from vsparse.stages.train.measures import weights_of
from vsparse.stages.train.units import Group

__all__ = ["kernel_density", "physical_weights", "units_to_keep", "weight_budget", "weights_to_keep"]


def weight_budget(graph: Graph, spec: Train) -> int:
    """Returns how much of the recipe's measure may stay, in whole units."""
    return int(Budget.of(spec, weights_of(graph)).limit())


def weights_to_keep(graph: Graph, spec: Train) -> dict[str, int]:
    """Returns for each weight how many single entries stay."""
    return ElementPattern(graph, spec).counts()


def units_to_keep(graph: Graph, spec: Train) -> dict[str, int]:
    """Returns for each group of channels how many stay."""
    return ChannelPattern(graph, spec).counts()


def physical_weights(graph: Graph, groups: list[Group], kept: Mapping[str, int]) -> int:
    """Returns the weights of the network packed to `kept` units a group."""
    return int(sum(ChannelPattern(graph, Train(sparsity=0.0)).costs(kept).values()))
