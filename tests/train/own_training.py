"""An objective and a sparsifier of a user's own, as test_train_named_classes.py puts them into a folder of its own."""

from __future__ import annotations

from own_margin import hinge
from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Margins, Params, training_box
from vsparse.stages.train.objectives import Loss, Objective, TrainingBatch
from vsparse.stages.train.phases import EpochPosition
from vsparse.stages.train.sparsifiers import Sparsifier, Tools
from vsparse.stages.train.state import TrainingState


class HingeObjective(Objective):
    """The hinge of the worst margin over the box."""

    certified = True
    validated_by = "interval"
    is_cross_entropy = False
    report = "Trained with a hinge on interval bounds, by <us>."

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.margins = Margins(graph)

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        enclosure = self.margins.enclosure(params, training_box(batch.x, batch.epsilon))
        return Loss(hinge(self.margins.lower(params, enclosure, batch.labels), batch.labels), enclosure=enclosure)


class AtHalf(Sparsifier):
    """Prunes by magnitude once, before the second half of the epochs."""

    def settled(self, at: EpochPosition) -> bool:
        return at.inside >= at.phase.epochs // 2

    def begin_epoch(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        if at.inside == at.phase.epochs // 2:
            state.fix(self.pattern.choose(state.params), self.pattern.structured)
