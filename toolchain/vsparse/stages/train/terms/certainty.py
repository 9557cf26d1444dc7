"""Adversarial certainty: how far apart the logits of attacked samples lie, which a step of its own lowers before the loss is taken."""

from __future__ import annotations

from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Params, training_box
from vsparse.stages.train.objectives.attack import cross_entropy_value, pgd
from vsparse.stages.train.objectives.clean import clean_pass
from vsparse.stages.train.objectives.loss import TrainingBatch
from vsparse.stages.train.objectives.precision import forward


class AdversarialCertainty:
    """λ · mean over samples of the standard deviation over classes of f(x'), x' of an attack (EDAC: Zhang et al., arXiv 2310.04539, 3).

    As CTBench takes it (`_EDACMixin` of its model_wrapper.py, λ = 0.3): the attack is that of `pgd` with the keys of `[train.loss]`, the
    deviation that of a sample (n − 1), the step that of the training's optimiser, with its momenta, and the loss is taken at the weights
    after it. Running statistics of batch norm move with the loss alone.
    """

    def __init__(self, spec: Train, graph: Graph) -> None:
        self.graph, self.weight, self.spec, self.amp = graph, spec.terms.certainty, spec.loss, spec.amp

    def __call__(self, params: Params, batch: TrainingBatch) -> Tensor:
        """Returns the term of a batch at its radius, a scalar with gradients."""
        clean = clean_pass(self.graph, params, batch, amp=self.amp)
        value = cross_entropy_value(self.graph, clean.params, batch.labels, self.amp or self.spec.attack_amp)
        points = pgd(value, training_box(batch.x, batch.epsilon), batch.epsilon, self.spec, batch.generator)
        return self.weight * forward(self.graph, clean.params, points, self.amp).std(dim=1).mean()
