"""Training objectives: one file each, one signature; `make_objective` makes the one of a recipe."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from vsparse.errors import InputError
from vsparse.graph.ir import Graph
from vsparse.recipe_train import OBJECTIVES, Train
from vsparse.stages.train.named_classes import named_class
from vsparse.stages.train.objectives.fake_quantisation import FakeQuantised
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch, ValidationMeasure

__all__ = ["Loss", "Objective", "TrainingBatch", "make_objective", "objective_class"]

KEY = "train.objective"


def objective_class(spec: Train) -> type[Objective]:
    """Returns the class of a recipe's objective, whose attributes say what it is; loaded when asked for.

    Raises InputError for a class of the user's own that cannot be imported or says what nobody understands.
    """
    chosen = named_class(spec.objective, OBJECTIVES, __name__, Objective, KEY)  # type: ignore[type-abstract]  # a base is what is meant
    measures = get_args(ValidationMeasure)
    if chosen.validated_by not in measures or not isinstance(chosen.report, str):
        known = ", ".join(measures)
        raise InputError(f"{KEY} {spec.objective}: its validated_by must be one of {known}, and its report a string; change it")
    return chosen


def make_objective(spec: Train, graph: Graph, params: dict[str, Tensor]) -> Objective:
    """Returns the objective of a recipe for a graph; auto_LiRPA's puts the tensors that it trains into `params`.

    With `terms.fake_quantisation` it is `FakeQuantised`, which keeps a state within an epoch (`restart`).
    """
    if spec.terms.fake_quantisation:
        return FakeQuantised(spec, graph, params, make_objective)
    chosen = objective_class(spec)
    if spec.engine in chosen.engines:
        chosen = named_class(spec.engine, chosen.engines, __name__, Objective, KEY)  # type: ignore[type-abstract]
    return chosen(spec, graph, params)
