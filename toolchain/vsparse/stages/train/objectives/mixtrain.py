"""MixTrain: the interval loss on a random part of each batch, mixed with the clean loss of all of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.draws import Draws, permutation, uniform
from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Margins, Params, training_box
from vsparse.stages.train.objectives.clean import clean_pass
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch

PROCESSOR = torch.device("cpu")


class MixTrainObjective(Objective):
    """(1 − α) · mean over the batch of CE(f(x), y) + α · mean over k samples of CE(worst-case logits, y) (Wang et al., arXiv 1811.02625).

    The k = `mix` · batch samples, at least one, are drawn anew in every batch without replacement: their stochastic robust approximation.
    The worst-case logits are those of interval bounds with the last layer folded, where the paper uses symbolic intervals; α stays as it
    is, and in place of the paper's dynamic weight ε grows. κ has no influence. The enclosure returned is of the k samples alone.

    HYDRA's MixTrain (Sehwag et al., NeurIPS 2020) takes the robust loss only with a probability, `mix_probability`, anew in every batch,
    and gives it a weight that grows: CE(f(x), y) + w · robust, w = `mix_weight` · `mix_growth`^t after t epochs of the phase, fractions
    included. Each process of a group decides for its own shard.
    """

    certified = True
    validated_by = "interval"
    reads = frozenset({"mix_probability", "mix_weight", "mix_growth"})
    report = "Trained for certification, with interval bounds of a part of each batch (MixTrain) inside the loss."

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.graph, self.margins = graph, Margins(graph)
        self.spec, self.alpha, self.mix = spec.loss, spec.loss.alpha, spec.loss.mix

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        clean = clean_pass(self.graph, params, batch, always=True)
        of_clean, of_robust = self.shares(batch)
        if of_robust == 0 or (batch.epsilon == 0 and not batch.enclosure):
            return Loss(clean.loss, clean.statistics)
        chosen = self.sample(len(batch.x), batch.generator, batch.x.device)
        labels = batch.labels[chosen]
        enclosure = self.margins.enclosure(clean.params, training_box(batch.x[chosen], batch.epsilon))
        worst = F.cross_entropy(-self.margins.lower(clean.params, enclosure, labels), labels)
        return Loss(of_clean * clean.loss + of_robust * worst, clean.statistics, enclosure)

    def shares(self, batch: TrainingBatch) -> tuple[float, float]:
        """Returns the weights of the clean and of the robust loss in this batch, after a draw where not every batch gets the latter."""
        # Drawn on the processor, so that no device is waited for.
        if self.spec.mix_probability < 1 and float(uniform(batch.generator, (1,), PROCESSOR)) >= self.spec.mix_probability:
            return 1.0, 0.0
        if self.spec.mix_weight > 0:
            return 1.0, self.spec.mix_weight * self.spec.mix_growth**batch.epoch
        return 1 - self.alpha, self.alpha

    def sample(self, count: int, generator: Draws, device: torch.device) -> Tensor:
        """Returns the indices of the samples that get the interval loss, ascending, out of `count`."""
        k = max(1, round(self.mix * count))
        return permutation(generator, count, device)[:k].sort().values
