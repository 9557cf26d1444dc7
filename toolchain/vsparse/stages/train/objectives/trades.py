"""TRADES: clean loss, and the divergence that an attack can cause."""

from __future__ import annotations

from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Params, training_box
from vsparse.stages.train.objectives.attack import divergence_value, near, pgd
from vsparse.stages.train.objectives.clean import clean_pass
from vsparse.stages.train.objectives.divergence import divergence
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch
from vsparse.stages.train.objectives.precision import forward


class TradesObjective(Objective):
    """CE(f(x), y) + β · max over ‖x' − x‖∞ ≤ ε, x' in [0, 1], of KL(p(x) ‖ p(x')) (Zhang et al., ICML 2019, equation 5, with their losses).

    p is the softmax of the logits; gradients flow through both of its values. The ascent begins at x + 0.001 · N(0, I) (their algorithm
    1), as the divergence is flat at x itself. κ has no influence: β is the trade-off. β = 6 in TRADES and HYDRA (arXiv 2002.10509).
    """

    is_cross_entropy = False
    report = "Trained against attacks, with TRADES inside the loss."

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.graph, self.amp, self.spec = graph, spec.amp, spec.loss

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        clean = clean_pass(self.graph, params, batch, always=True, amp=self.amp)
        if batch.epsilon == 0 or self.spec.beta == 0:
            return Loss(clean.loss, clean.statistics)
        value = divergence_value(self.graph, clean.params, clean.logits, self.amp or self.spec.attack_amp)
        points = pgd(value, training_box(batch.x, batch.epsilon), batch.epsilon, self.spec, batch.generator, near(batch.x))
        robust = divergence(clean.logits, forward(self.graph, clean.params, points, self.amp)).mean()
        return Loss(clean.loss + self.spec.beta * robust, clean.statistics)
