"""Natural training: the cross-entropy of the data as they are."""

from __future__ import annotations

from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Params
from vsparse.stages.train.objectives.clean import clean_pass
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch


class NaturalObjective(Objective):
    """E[CE(f(x), y)]: empirical risk; ε and κ have no influence."""

    uses_epsilon = False
    report = "Trained on undisturbed images alone."

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.graph, self.amp = graph, spec.amp

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        clean = clean_pass(self.graph, params, batch, always=True, amp=self.amp)
        return Loss(clean.loss, clean.statistics)
