"""Certified training objectives: interval bounds, and CROWN-IBP with loss fusion."""

from __future__ import annotations

from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe import Train
from vsparse.schema import parse_fraction
from vsparse.stages.train.objectives.ibp import IntervalObjective
from vsparse.stages.train.objectives.loss import Objective


def make_objective(spec: Train, graph: Graph, params: dict[str, Tensor]) -> Objective:
    """Returns the objective of a recipe for a graph; crown-ibp puts the tensors that it trains into `params`."""
    if spec.objective == "ibp":
        return IntervalObjective(graph)
    from vsparse.stages.train.objectives.crown_ibp import CrownIntervalObjective

    return CrownIntervalObjective(graph, params, float(parse_fraction(spec.epsilon)))
