"""Dynamic sparse training: what methods share that start from a random sparse network and move its mask until it freezes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from math import ceil, cos, pi

import torch
from torch import Tensor

from vsparse.stages.train.granularity.pattern import largest
from vsparse.stages.train.masks import Masks
from vsparse.stages.train.phases import EpochPosition
from vsparse.stages.train.sparsifiers.base import Sparsifier, Tools
from vsparse.stages.train.state import TrainingState

GROWTH_BATCHES = 4


class Dynamic(Sparsifier):
    """One phase; the mask moves every `thickening_length` epochs and is final from `freeze` of the epochs on."""

    @property
    def freeze_from(self) -> int:
        """The first epoch that is trained with the final mask; at most the last one."""
        return min(ceil(self.spec.sparse.freeze * self.spec.epochs - 1e-9), self.spec.epochs - 1)

    def settled(self, at: EpochPosition) -> bool:
        return at.inside >= self.freeze_from

    def moves(self, at: EpochPosition) -> bool:
        """Whether the mask is chosen anew before this epoch."""
        return at.inside == self.freeze_from or (at.inside < self.freeze_from and at.inside % self.spec.sparse.thickening_length == 0)

    def fraction(self, at: EpochPosition) -> float:
        """Returns the fraction of the active items that is replaced: drop/2 · (1 + cos(π · epoch / freeze_from)).

        Evci et al., Rigging the Lottery (ICML 2020), section 3, with α = `train.sparse.drop` and T_end = freeze_from.
        """
        return self.spec.sparse.drop / 2 * (1 + cos(pi * at.inside / self.freeze_from))

    def random(self, state: TrainingState, tools: Tools) -> Masks:
        """Returns masks of the final budget, drawn uniformly within each layer."""
        counts = self.pattern.counts(scores=self.magnitudes(state))
        return self.pattern.masks(self.pattern.random(counts, tools.generator()), state.params)


class DropAndGrow(Dynamic):
    """The mask is enforced in every step; now and then the items smallest in magnitude make room for others, layer by layer.

    Of A active items ⌊fraction · A⌋ are dropped, and as many grown among all that are inactive then, those just dropped included (which
    keep their weight when they come back, as in RigL's code). Other grown weights start at 0, and so do their optimiser's moments.
    """

    @abstractmethod
    def growth(self, state: TrainingState, tools: Tools) -> Mapping[str, Tensor]:
        """Returns a finite score of every item, by which items grow."""

    def begin_epoch(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        if at.epoch == 0:
            state.fix(self.random(state, tools), self.pattern.structured)
        elif self.moves(at) and not self.settled(at):
            masks = self._moved(state, self.fraction(at), self.growth(state, tools))
            forget_grown(state, masks)
            state.fix(masks, self.pattern.structured)

    def _moved(self, state: TrainingState, fraction: float, growth: Mapping[str, Tensor]) -> Masks:
        active, scores = self.pattern.active(state.masks), self.magnitudes(state)
        wanted = {}
        for name, on in active.items():
            count = int(on.sum())
            kept = largest(scores[name].masked_fill(~on, -1), count - int(fraction * count))
            wanted[name] = growth[name].to(kept.device).masked_fill(kept, torch.inf)  # SET draws on the processor
        return self.pattern.masks(self.pattern.top(wanted, {name: int(on.sum()) for name, on in active.items()}), state.params)


def forget_grown(state: TrainingState, masks: Masks) -> None:
    """Zeroes the optimiser's moments of entries that `masks` have and the state's masks do not have."""
    before, after = state.masks.entries, masks.entries
    for moments in state.optimiser.moments().values():
        for name, value in moments.items():
            if name in after and name in before:
                value.masked_fill_(after[name] & ~before[name], 0)
