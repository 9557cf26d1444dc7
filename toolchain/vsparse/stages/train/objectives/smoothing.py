"""Training for randomised smoothing: Gaussian noise with a stability loss."""

from __future__ import annotations

from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Params
from vsparse.stages.train.objectives.attack import normal
from vsparse.stages.train.objectives.clean import clean_pass
from vsparse.stages.train.objectives.divergence import divergence
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch
from vsparse.stages.train.objectives.precision import forward


class SmoothingObjective(Objective):
    """CE(f(x), y) + β · KL(p(x) ‖ p(x + η)), η ~ N(0, σ²I) drawn anew for each sample and step, p the softmax of the logits.

    Stability training (Li et al., NeurIPS 2019, arXiv 1809.03113, section 4, with the cross-entropy of the two outputs) with the divergence
    in its place, as HYDRA trains it (arXiv 2002.10509: σ = 0.25, β = 6). Noisy inputs are not clipped to [0, 1], as the theorem of Cohen
    et al. (ICML 2019) is about unclipped noise. ε and κ have no influence: the noise is as strong from the first epoch on.
    """

    uses_epsilon = False
    is_cross_entropy = False
    report = "Trained on noisy images, for stable predictions."

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.graph, self.amp = graph, spec.amp
        self.sigma, self.beta = spec.loss.sigma, spec.loss.beta

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        clean = clean_pass(self.graph, params, batch, always=True, amp=self.amp)
        if self.beta == 0:
            return Loss(clean.loss, clean.statistics)
        noisy = batch.x + self.sigma * normal(batch.x, batch.generator)
        stability = divergence(clean.logits, forward(self.graph, clean.params, noisy, self.amp)).mean()
        return Loss(clean.loss + self.beta * stability, clean.statistics)
