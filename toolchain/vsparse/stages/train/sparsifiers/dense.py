"""Nothing is removed."""

from __future__ import annotations

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.plan import Moment
from vsparse.stages.train.sparsifiers.base import Sparsifier, Tools
from vsparse.stages.train.state import State


class Dense(Sparsifier):
    """Trains every weight in one phase."""

    def __init__(self, spec: Train, graph: Graph) -> None:  # it asks for no budget, so it makes no pattern
        self.spec, self.graph = spec, graph

    def settled(self, at: Moment) -> bool:
        return True

    def begin_epoch(self, state: State, at: Moment, tools: Tools) -> None:
        pass
