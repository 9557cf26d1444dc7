"""What the objectives between attack and bounds share ("expressive losses", De Palma et al., ICLR 2024): attack, mixture, common steps."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vsparse.graph import run
from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Box, Margins, Params, training_box
from vsparse.stages.train.objectives.attack import cross_entropy_value, pgd
from vsparse.stages.train.objectives.clean import Clean, clean_pass
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch


def attacked(graph: Graph, params: Params, batch: TrainingBatch, spec: Train) -> Tensor:
    """Returns points, [batch, …], that projected gradient ascent of the cross-entropy found; x itself at ε = 0.

    They lie in the box of radius `attack_radius` · ε; steps are `attack_step` · ε long, whatever that radius.
    """
    if batch.epsilon == 0:
        return batch.x
    value = cross_entropy_value(graph, params, batch.labels, spec.loss.attack_amp)
    return pgd(value, training_box(batch.x, spec.loss.attack_radius * batch.epsilon), batch.epsilon, spec.loss, batch.generator)


def mixed(batch: TrainingBatch, clean: Clean, robust: Tensor, enclosure: dict[str, Box] | None) -> Loss:
    """Returns κ · clean + (1 − κ) · robust, with the statistics of the clean pass."""
    total = batch.kappa * clean.loss + (1 - batch.kappa) * robust if batch.kappa > 0 else robust
    return Loss(total, clean.statistics, enclosure)


class Combination(Protocol):
    """Makes one loss of margins logit_y − logit_j, each [batch, classes]: attacked ones (None where α = 1), bounds (None where α = 0)."""

    def __call__(self, margins: Tensor | None, bounds: Tensor | None, labels: Tensor, alpha: float) -> Tensor: ...


class ExpressiveObjective(Objective):
    """κ · CE(f(x), y) + (1 − κ) · a combination, by α, of the margins at an attacked point and of their interval bounds over the ε box.

    The attack may go further than ε (`attack_radius`), as MTL-IBP's published one does. A subclass says which combination. What α leaves
    without weight is not computed, unless the enclosure is asked for.
    """

    certified = True
    validated_by = "crown"
    reads = frozenset({"attack_radius"})

    combination: Combination

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.spec, self.graph, self.margins = spec, graph, Margins(graph)

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        clean = clean_pass(self.graph, params, batch)
        if batch.kappa == 1 and not batch.enclosure:
            return Loss(clean.loss, clean.statistics)
        alpha = self.spec.loss.alpha
        enclosure = None
        if alpha > 0 or batch.enclosure:
            box = training_box(batch.x, batch.epsilon)
            enclosure = self.margins.enclosure(clean.params, box, "relu" if batch.enclosure else "output")
        if batch.kappa == 1:
            return Loss(clean.loss, clean.statistics, enclosure)
        bounds = margins = None
        if enclosure is not None and alpha > 0:
            bounds = self.margins.lower(clean.params, enclosure, batch.labels)
        if alpha < 1:
            logits = run(self.graph, clean.params, attacked(self.graph, clean.params, batch, self.spec))
            margins = logits.gather(1, batch.labels[:, None]) - logits
        return mixed(batch, clean, self.combination(margins, bounds, batch.labels, alpha), enclosure)
