"""Interval bound propagation: the cross-entropy of the worst-case logits over the box."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Margins, Params, training_box
from vsparse.stages.train.objectives.clean import clean_pass
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch


class IntervalObjective(Objective):
    """κ · clean cross-entropy + (1 − κ) · cross-entropy of the worst-case logits (Gowal et al., arXiv 1810.12715, equation 12).

    The worst-case logit of class j is −lower(logit[label] − logit[j]), 0 for the label. Batch norm uses the statistics of
    the clean batch for both passes.
    """

    certified = True
    validated_by = "interval"
    report = "Trained for certification, with interval bounds inside the loss."

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.graph = graph
        self.margins = Margins(graph)

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        clean = clean_pass(self.graph, params, batch)
        if batch.kappa == 1 and not batch.enclosure:
            return Loss(clean.loss, clean.statistics)
        enclosure = self.margins.enclosure(clean.params, training_box(batch.x, batch.epsilon), "relu" if batch.enclosure else "output")
        if batch.kappa == 1:
            return Loss(clean.loss, clean.statistics, enclosure)
        worst = F.cross_entropy(-self.margins.lower(clean.params, enclosure, batch.labels), batch.labels)
        total = batch.kappa * clean.loss + (1 - batch.kappa) * worst if batch.kappa > 0 else worst
        return Loss(total, clean.statistics, enclosure)


def certified(margins: Margins, params: Params, x: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Returns for each sample whether interval bounds certify it, in training arithmetic (a guide for checkpoints, not a verdict)."""
    with torch.no_grad():
        lower = margins.lower(params, margins.enclosure(params, training_box(x, epsilon)), labels)
        # NaN compares false, so it never counts; the label's own column is 0 by construction.
        return (lower > 0).sum(1) == lower.shape[1] - 1
