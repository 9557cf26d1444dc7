"""Magnitude pruning with fine-tuning, one-shot or in rounds (Han, Pool, Tran, Dally, NeurIPS 2015)."""

from __future__ import annotations

from vsparse.errors import InputError
from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.phases import EpochPosition, Phase
from vsparse.stages.train.sparsifiers.base import Tools
from vsparse.stages.train.sparsifiers.rounds import Rounds
from vsparse.stages.train.state import TrainingState


class Magnitude(Rounds):
    """Trains dense, removes the items smallest in magnitude, and continues to train the others, at full radius.

    With rounds = 1 this is the baseline "LWM" (least weight magnitude) of HYDRA (Sehwag et al., NeurIPS 2020), which fine-tunes for 100
    epochs at a tenth of the rate. Raises InputError where no epoch is left to fine-tune.
    """

    def __init__(self, spec: Train, graph: Graph) -> None:
        super().__init__(spec, graph)
        if not spec.sparse.finetune_epochs:
            raise InputError('train.sparse.finetune_epochs is 0, and method "magnitude" prunes before it fine-tunes; set it to at least 1')

    def round(self, number: int) -> Phase:
        return fine_tuning(self.spec, f"fine-tune {number}")

    def rewind(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        pass


def fine_tuning(spec: Train, name: str) -> Phase:
    """Returns a phase of `finetune_epochs` at `finetune_learning_rate`, or a tenth of the first phase's, at full radius."""
    rate = spec.sparse.finetune_learning_rate or spec.learning_rate / 10
    return Phase(name, spec.sparse.finetune_epochs, rate, ramp=False)
