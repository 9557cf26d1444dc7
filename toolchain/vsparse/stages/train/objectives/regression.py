"""Regression: the squared error, and the greatest one that interval bounds leave possible over the box."""

from __future__ import annotations

import torch
from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.fast_interval import fast_interval
from vsparse.stages.train.bounds.margins import Box, Params, training_box
from vsparse.stages.train.objectives.clean import others
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch
from vsparse.stages.train.objectives.precision import forward


class RegressionObjective(Objective):
    """κ · (f(x) − y)² + (1 − κ) · max over [lower, upper] of (v − y)², with interval bounds lower <= f <= upper over the box.

    The robust squared error of interval bound propagation (the argument of Gowal et al., arXiv 1810.12715, for this loss: it is convex in
    v, so that an end of the interval is the worst). `labels` are float32 targets [batch], in standard deviations.
    """

    certified = True
    validated_by = "explained"
    is_cross_entropy = False
    report = "Trained for certification of a number, with the squared error that interval bounds leave possible inside the loss."

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.graph = graph

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        statistics: dict[str, Tensor] = {}
        answer = forward(self.graph, params, batch.x, False, statistics)
        clean = (answer.flatten() - batch.labels).square().mean()
        if batch.kappa == 1 and not batch.enclosure:
            return Loss(clean, statistics)
        at = others(params, statistics, batch)
        enclosure = fast_interval(self.graph, at, training_box(batch.x, batch.epsilon), "relu" if batch.enclosure else "output", 1.0)
        if batch.kappa == 1:
            return Loss(clean, statistics, enclosure)
        worst = worst_error(enclosure[self.graph.output], batch.labels).mean()
        total = batch.kappa * clean + (1 - batch.kappa) * worst if batch.kappa > 0 else worst
        return Loss(total, statistics, enclosure)


def worst_error(box: Box, targets: Tensor) -> Tensor:
    """Returns the greatest squared error [batch] of an answer within the box, each end [batch, 1], for targets [batch]."""
    lower, upper = (end.flatten() - targets for end in box)
    return torch.maximum(lower.square(), upper.square())
