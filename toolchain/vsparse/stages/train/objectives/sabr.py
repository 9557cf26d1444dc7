"""SABR: interval bounds over a small box around an adversarial point, in place of the whole ball."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.fast_interval import Wanted
from vsparse.stages.train.bounds.margins import Box, Margins, Params, training_box
from vsparse.stages.train.objectives.clean import clean_pass
from vsparse.stages.train.objectives.expressive import attacked, mixed
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch


class SmallBoxObjective(Objective):
    """κ · CE(f(x), y) + (1 − κ) · CE(worst-case logits over B(x', τ), y) (Müller et al., ICLR 2023, section 3).

    τ = λ · ε with λ = `shrink`; x' is the point of an attack on B(x, ε), moved into B(x, ε − τ), so that B(x', τ) lies inside B(x, ε);
    both are clipped to [0, 1]. λ = 1 is interval bound propagation. With `relu_shrink` below 1 the upper ends of boxes
    that cross 0 before a ReLU are multiplied by that factor (their code: 0.8 for CIFAR-10 at 2/255; CTBench trains so at 1.5 times the
    radius). The enclosure is that of the small box, so shrunk.
    """

    certified = True
    validated_by = "crown"
    reads = frozenset({"relu_shrink"})
    report = "Trained for certification, with interval bounds of small boxes around attacks (SABR) inside the loss."

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.spec, self.graph, self.margins = spec, graph, Margins(graph)

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        clean = clean_pass(self.graph, params, batch)
        if batch.kappa == 1 and not batch.enclosure:
            return Loss(clean.loss, clean.statistics)
        box = propagated_box(self.graph, clean.params, batch, self.spec)
        wanted: Wanted = "relu" if batch.enclosure else "output"
        enclosure = self.margins.enclosure(clean.params, box, wanted, self.spec.loss.relu_shrink)
        if batch.kappa == 1:
            return Loss(clean.loss, clean.statistics, enclosure)
        worst = F.cross_entropy(-self.margins.lower(clean.params, enclosure, batch.labels), batch.labels)
        return mixed(batch, clean, worst, enclosure)


def propagated_box(graph: Graph, params: Params, batch: TrainingBatch, spec: Train) -> Box:
    """Returns the box that SABR bounds the network over; where λ = 1 or ε = 0 nothing is attacked."""
    if spec.loss.shrink == 1 or batch.epsilon == 0:
        return training_box(batch.x, batch.epsilon)
    return small_box(batch.x, attacked(graph, params, batch, spec), batch.epsilon, spec.loss.shrink)


def small_box(x: Tensor, point: Tensor, epsilon: float, shrink: float) -> Box:
    """Returns the box of radius shrink · ε about `point`, which is moved towards `x` until the box lies in that of radius ε about `x`.

    Both are clipped to [0, 1]; x and point are [batch, …] in [0, 1]. The ends are clamped to the large box, as sums of floats may leave it.
    """
    tau = shrink * epsilon
    centre = x + (point - x).clamp(min=tau - epsilon, max=epsilon - tau)
    lower, upper = training_box(x, epsilon)
    return (centre - tau).clamp(lower, upper), (centre + tau).clamp(lower, upper)
