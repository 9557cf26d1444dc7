"""CROWN-IBP with loss fusion on our own bounds: one linear row bounds the cross-entropy itself, and interval bounds take over."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.linear_pass import row_lower
from vsparse.stages.train.bounds.margins import Box, Margins, Params, training_box
from vsparse.stages.train.objectives.clean import clean_pass
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch


class CrownIntervalObjective(Objective):
    """κ · clean cross-entropy + (1 − κ) · mean of log(β · CROWN bound + (1 − β) · interval bound) of Σ_j exp(logit_j − logit_label).

    β = (ε_max − ε)/ε_max (Zhang et al., CROWN-IBP, ICLR 2020; loss fusion: Xu et al., NeurIPS 2020, section 3.3). Interval bounds, with
    the last layer folded into the margins, bound the hidden layers for CROWN, too; with β = 0 this is the interval objective. Batch norm
    uses the statistics of the clean batch in every pass.
    """

    certified = True
    validated_by = "interval"
    report = "Trained for certification, with CROWN-IBP bounds inside the loss."
    engines = MappingProxyType({"auto_lirpa": "crown_ibp_lirpa:LirpaCrownObjective"})

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.graph, self.margins = graph, Margins(graph)

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        clean = clean_pass(self.graph, params, batch)
        if batch.kappa == 1 and not batch.enclosure:
            return Loss(clean.loss, clean.statistics)
        beta = crown_weight(batch.epsilon, batch.epsilon_max)
        box = training_box(batch.x, batch.epsilon)
        enclosure = self.margins.enclosure(clean.params, box, "relu" if beta > 0 or batch.enclosure else "output")
        if batch.kappa == 1:
            return Loss(clean.loss, clean.statistics, enclosure)
        lower, upper = self.margins.both(clean.params, enclosure, batch.labels)
        worst = F.cross_entropy(-lower, batch.labels, reduction="none")
        if beta > 0:
            crown = fused_bound(self.graph, clean.params, box, enclosure, (-upper, -lower), batch.labels)
            worst = mixed(worst, crown, beta)
        value = batch.kappa * clean.loss + (1 - batch.kappa) * worst.mean() if batch.kappa > 0 else worst.mean()
        return Loss(value, clean.statistics, enclosure)


def fused_bound(graph: Graph, params: Params, box: Box, enclosure: Mapping[str, Box], margins: Box, labels: Tensor) -> Tensor:
    """Returns an upper bound [batch] of the cross-entropy over the box, by one backward pass.

    `margins` = (l, u) bounds z_j = logit_j − logit_label, [batch, classes], 0 for the label. On them exp lies below its chord:
    exp(z_j) <= exp(l_j) + k_j·(z_j − l_j), k_j = (exp(u_j) − exp(l_j))/(u_j − l_j) >= 0. The sum of the chords is one linear row over the
    logits, which CROWN bounds on the hidden boxes of `enclosure` (Xu et al., NeurIPS 2020, section 3.3). All exponentials are of
    their argument less the largest u_j.
    """
    low, high = margins
    shift = high.amax(1, keepdim=True).detach()
    at_low, at_high, width = torch.exp(low - shift), torch.exp(high - shift), high - low
    narrow = width < NARROW
    # A line from (l, exp(l)) with the slope at u is above the chord, and free of cancellation.
    slope = torch.where(narrow, at_high, (at_high - at_low) / width.masked_fill(narrow, 1))
    # A margin that cannot move, the label's own among them, is a constant.
    slope = slope.masked_fill(width == 0, 0)
    row = slope.scatter_add(1, labels[:, None], -slope.sum(1, keepdim=True))
    above = (at_low - slope * low).sum(1) - row_lower(graph, params, box, -row, enclosure)
    # The label's own term alone is exp(−shift): less than that is rounding.
    shift = shift.squeeze(1)
    return torch.log(torch.maximum(above, torch.exp(-shift).clamp(min=SMALLEST))) + shift


def mixed(worst: Tensor, crown: Tensor, beta: float) -> Tensor:
    """Returns log(β · exp(crown) + (1 − β) · exp(worst)), each [batch], without overflow."""
    return crown if beta >= 1 else torch.logaddexp(crown + log(beta), worst + log(1 - beta))


def crown_weight(epsilon: float, epsilon_max: float) -> float:
    """Returns β = (ε_max − ε)/ε_max, at least 0; 0 where it is too small to matter."""
    beta = (epsilon_max - epsilon) / epsilon_max if epsilon_max > 0 else 0.0
    return beta if beta > 1e-5 else 0.0


# Widths of margins below which a difference quotient of exponentials is all rounding in float32.
NARROW = 1e-3
SMALLEST = 1e-37
