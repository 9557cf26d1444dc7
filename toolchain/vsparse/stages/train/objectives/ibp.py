"""Interval bound propagation: the cross-entropy of the worst-case logits over the box."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.graph import run
from vsparse.graph.ir import BatchNorm, Graph
from vsparse.stages.train.objectives.loss import Loss, Objective
from vsparse.stages.train.objectives.margins import Margins, Params, training_box
from vsparse.stages.train.regulariser import warm_up_regulariser


class IntervalObjective(Objective):
    """κ · clean cross-entropy + (1 − κ) · cross-entropy of the worst-case logits (Gowal et al., arXiv 1810.12715, equation 12).

    The worst-case logit of class j is −lower(logit[label] − logit[j]), 0 for the label. Batch norm uses the statistics of
    the clean batch for both passes.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.margins = Margins(graph)
        self.has_norm = any(isinstance(node, BatchNorm) for node in graph.nodes)

    def __call__(self, params: Params, x: Tensor, labels: Tensor, epsilon: float, kappa: float, regulariser: float) -> Loss:
        statistics: dict[str, Tensor] = {}
        clean = x.new_zeros(())
        if kappa > 0 or self.has_norm:
            logits = run(self.graph, params, x, batch_statistics=statistics)
            clean = F.cross_entropy(logits, labels)
        if kappa == 1 and regulariser == 0:
            return Loss(clean, statistics)
        bound_params = {**params, **statistics} if statistics else params
        enclosure = self.margins.enclosure(bound_params, training_box(x, epsilon))
        worst = F.cross_entropy(-self.margins.lower(bound_params, enclosure, labels), labels)
        total = kappa * clean + (1 - kappa) * worst if kappa > 0 else worst
        if regulariser > 0:
            total = total + regulariser * warm_up_regulariser(self.margins.trunk, enclosure)
        return Loss(total, statistics)


def certified(margins: Margins, params: Params, x: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Returns for each sample whether interval bounds certify it, in training arithmetic (a guide for checkpoints, not a verdict)."""
    with torch.no_grad():
        lower = margins.lower(params, margins.enclosure(params, training_box(x, epsilon)), labels)
        # NaN compares false, so it never counts; the label's own column is 0 by construction.
        return (lower > 0).sum(1) == lower.shape[1] - 1
