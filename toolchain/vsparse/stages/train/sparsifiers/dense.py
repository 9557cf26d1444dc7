"""Nothing is removed."""

from __future__ import annotations

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.phases import EpochPosition
from vsparse.stages.train.sparsifiers.base import Sparsifier, Tools
from vsparse.stages.train.state import TrainingState


class DenseTraining(Sparsifier):
    """Trains every weight in one phase."""

    def __init__(self, spec: Train, graph: Graph) -> None:  # it asks for no budget, so it makes no pattern
        self.spec, self.graph = spec, graph

    def settled(self, at: EpochPosition) -> bool:
        return True

    def begin_epoch(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        pass
