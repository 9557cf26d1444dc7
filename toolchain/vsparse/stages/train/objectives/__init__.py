"""Training objectives: one file each, one signature; `make_objective` picks the one of a recipe."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch

__all__ = ["OBJECTIVES", "Loss", "Objective", "TrainingBatch", "make_objective"]

# Loaded when asked for: auto_LiRPA alone takes a second.
OBJECTIVES = {
    "natural": "natural:NaturalObjective",
    "fgsm": "fgsm:FgsmObjective",
    "pgd": "pgd:PgdObjective",
    "trades": "trades:TradesObjective",
    "mixtrain": "mixtrain:MixTrainObjective",
    "smoothing": "smoothing:SmoothingObjective",
    "ibp": "ibp:IntervalObjective",
    "sabr": "sabr:SmallBoxObjective",
    "taps": "taps:LatentAttackObjective",
    "staps": "taps:SmallBoxLatentAttackObjective",
    "cc-ibp": "cc_ibp:CombinedMarginsObjective",
    "mtl-ibp": "mtl_ibp:CombinedLossesObjective",
    "crown-ibp": "crown_ibp:CrownIntervalObjective",
    "crown-ibp by auto_lirpa": "crown_ibp_lirpa:LirpaCrownObjective",
}


def make_objective(spec: Train, graph: Graph, params: dict[str, Tensor]) -> Objective:
    """Returns the objective of a recipe for a graph; auto_LiRPA's puts the tensors that it trains into `params`.

    With `terms.fake_quantisation` it is `FakeQuantised`, to be restarted before each epoch.
    """
    if spec.terms.fake_quantisation:
        from vsparse.stages.train.objectives.fake_quantisation import FakeQuantised

        return FakeQuantised(spec, graph, params, make_objective)
    chosen = spec.objective if spec.engine == "vsparse" else f"{spec.objective} by {spec.engine}"
    module, _, name = OBJECTIVES[chosen].partition(":")
    made: Any = getattr(import_module(f"{__name__}.{module}"), name)(spec, graph, params)
    objective: Objective = made
    return objective
