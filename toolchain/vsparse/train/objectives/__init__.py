"""Certified training objectives: interval bounds, and CROWN-IBP with loss fusion."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.train.objectives.ibp import IntervalObjective
from vsparse.train.objectives.loss import Objective


def make_objective(name: Literal["ibp", "crown-ibp"], graph: Graph, params: dict[str, Tensor]) -> Objective:
    """Returns the objective of a recipe for a graph; crown-ibp may put the tensors that it trains into `params`."""
    if name == "ibp":
        return IntervalObjective(graph)
    from vsparse.train.objectives.crown_ibp import CrownIntervalObjective

    return CrownIntervalObjective(graph, params)
