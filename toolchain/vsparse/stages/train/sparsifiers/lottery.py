"""Lottery tickets (Frankle, Carbin, ICLR 2019), robust ones too (Cosentino, Zaiter, Pei, Zhu, arXiv 1912.02386)."""

from __future__ import annotations

import torch
from torch import Tensor

from vsparse.errors import InputError
from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.initialisation import initial_kind, initialise
from vsparse.stages.train.phases import EpochPosition, Phase
from vsparse.stages.train.sparsifiers.base import Tools
from vsparse.stages.train.sparsifiers.rounds import Rounds
from vsparse.stages.train.state import TrainingState

KEPT = "rewind/"


class Lottery(Rounds):
    """Trains, prunes the smallest weights, puts the others back to where they came from, and trains again: W ← m ⊙ W₀.

    A round prunes by one factor and trains for `finetune_epochs`, or for train.epochs where that is 0, with the radius and the rate
    scheduled anew. The papers remove 20 % of what is left of a hidden layer and 10 % of the last one; here `conv_share` = 0.5 spares the
    last layer: it loses half of the others' sparsity, the same in the first rounds, and never more than half of its weights. `rewind`:

    - initial: each round starts from the initial weights, batch norm's statistics included;
    - early: from those after `rewind_epoch` epochs of the first training (Frankle et al., ICML 2020);
    - random: the control of both papers, the ticket's mask on fresh weights: rounds go on as in "initial", and the last one starts
      from weights drawn anew;
    - continue: from the weights trained, at full radius from the start.

    Cosentino et al.: LeNet-300-100, Adam 1.2e-3, batch 60, 20 rounds of 50 000 steps, on FGSM or PGD examples with ε = 0.3. Raises
    InputError for a `rewind_epoch` that the first training does not reach.
    """

    @classmethod
    def require(cls, spec: Train) -> None:
        super().require(spec)
        if initial_kind(spec) == "module" and spec.sparse.rewind == "random":
            key, way = ("train.start", "leave it out") if spec.start else ('train.initialisation = "module"', "set it to another")
            raise InputError(f'train.sparse.rewind = "random" draws weights anew, and {key} says not how; {way}')

    def __init__(self, spec: Train, graph: Graph) -> None:
        super().__init__(spec, graph)
        self.arm = spec.sparse.rewind
        # The state of the first training that rounds go back to is that before this epoch; None where they never do.
        only_random = self.arm == "random" and spec.sparse.rounds == 1
        self.keeps_at = None if self.arm == "continue" or only_random else spec.sparse.rewind_epoch if self.arm == "early" else 0
        if self.keeps_at is not None and self.keeps_at >= spec.epochs:
            raise InputError(
                f"train.sparse.rewind_epoch is {self.keeps_at}, and a training has {spec.epochs} epochs; set it below train.epochs"
            )

    def round(self, number: int) -> Phase:
        epochs = self.spec.sparse.finetune_epochs or self.spec.epochs
        return Phase(f"round {number}", epochs, self.spec.learning_rate, ramp=self.arm != "continue")

    def begin_epoch(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        if at.epoch == self.keeps_at:
            state.extras |= {f"{KEPT}{name}": value.detach().clone() for name, value in state.params.items()}
        super().begin_epoch(state, at, tools)

    def kept(self, state: TrainingState, at: EpochPosition) -> dict[str, Tensor]:
        if self.keeps_at is None or at.epoch < self.keeps_at or at.last:
            return {}
        return {f"{KEPT}{name}": value for name, value in state.full.tensors().items()}

    def rewind(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        if self.arm == "random" and at.last:
            fresh = {name: torch.from_numpy(value.copy()) for name, value in state.full.params.items()}
            initialise(state.full, fresh, tools.generator(), initial_kind(self.spec))
            state.assign(fresh)
        elif self.arm != "continue":
            state.assign({name.removeprefix(KEPT): value for name, value in state.extras.items()})
        if at.last:
            state.extras.clear()
