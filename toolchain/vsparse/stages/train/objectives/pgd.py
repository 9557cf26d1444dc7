"""Adversarial training with projected gradient descent."""

from __future__ import annotations

from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Params, training_box
from vsparse.stages.train.objectives.attack import cross_entropy_value, pgd
from vsparse.stages.train.objectives.clean import clean_pass
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch
from vsparse.stages.train.objectives.mixed import mixed_loss


class PgdObjective(Objective):
    """κ · CE(f(x), y) + (1 − κ) · max over ‖x' − x‖∞ ≤ ε, x' in [0, 1], of CE(f(x'), y) (Madry et al., ICLR 2018, equation 2.1: κ = 0).

    The maximum is sought by `attack_steps` steps of `attack_step` · ε from random points, the worst of `attack_restarts` of them. Lottery
    tickets (Cosentino et al., arXiv 1912.02386) use κ = 1/2 throughout: kappa_start = kappa_end = 0.5.
    """

    report = "Trained against attacks, with projected gradient descent (PGD) inside the loss."

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.graph, self.amp, self.spec = graph, spec.amp, spec.loss

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        clean = clean_pass(self.graph, params, batch, always=batch.epsilon == 0, amp=self.amp)
        if batch.epsilon == 0 or batch.kappa == 1:
            return Loss(clean.loss, clean.statistics)
        value = cross_entropy_value(self.graph, clean.params, batch.labels, self.amp)
        points = pgd(value, training_box(batch.x, batch.epsilon), batch.epsilon, self.spec, batch.generator)
        return mixed_loss(self.graph, clean, batch, points, self.amp)
