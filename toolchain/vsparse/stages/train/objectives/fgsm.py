"""Adversarial training with the fast gradient sign method."""

from __future__ import annotations

from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Params, training_box
from vsparse.stages.train.objectives.attack import cross_entropy_value, fgsm
from vsparse.stages.train.objectives.clean import clean_pass
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch
from vsparse.stages.train.objectives.mixed import mixed_loss


class FgsmObjective(Objective):
    """κ · CE(f(x), y) + (1 − κ) · CE(f(x'), y), x' = x + ε · sign ∇ₓ CE(f(x), y) (Goodfellow et al., ICLR 2015, section 6: κ = 1/2).

    x' is clipped to [0, 1]. With `random_start`, x' = the step of 1.25 ε from a random point of the box (Wong et al., ICLR 2020). Lottery
    tickets (Cosentino et al., arXiv 1912.02386) use κ = 1/2 throughout: kappa_start = kappa_end = 0.5.
    """

    report = "Trained against attacks, with one gradient step (FGSM) inside the loss."

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.graph, self.amp, self.random = graph, spec.amp, spec.loss.random_start
        self.attack_amp = spec.amp or spec.loss.attack_amp

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        clean = clean_pass(self.graph, params, batch, always=batch.epsilon == 0, amp=self.amp)
        if batch.epsilon == 0 or batch.kappa == 1:
            return Loss(clean.loss, clean.statistics)
        value = cross_entropy_value(self.graph, clean.params, batch.labels, self.attack_amp)
        generator = batch.generator if self.random else None
        points = fgsm(value, batch.x, training_box(batch.x, batch.epsilon), batch.epsilon, generator)
        return mixed_loss(self.graph, clean, batch, points, self.amp)
