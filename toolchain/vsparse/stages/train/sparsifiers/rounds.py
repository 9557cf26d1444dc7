"""Pruning by magnitude in rounds: what one-shot and iterative pruning and lottery tickets share."""

from __future__ import annotations

from abc import abstractmethod

from vsparse.stages.train.masks import Masks
from vsparse.stages.train.phases import EpochPosition, Phase
from vsparse.stages.train.sparsifiers.base import Sparsifier, Tools
from vsparse.stages.train.state import TrainingState


class Rounds(Sparsifier):
    """Phase 0 trains dense; each of the `rounds` phases after it begins with a pruning and trains what is left, its mask fixed.

    Round r of R keeps the fraction d^(r/R) of the budget's measure, d being the final one: the same factor each time (Frankle, Carbin, ICLR
    2019). What was removed stays so, as long as its layer has as many other items as it must keep. Removed channels are zeroed,
    and gone in the last round.
    """

    def phases(self) -> tuple[Phase, ...]:
        return (*super().phases(), *(self.round(number) for number in range(1, self.spec.sparse.rounds + 1)))

    @abstractmethod
    def round(self, number: int) -> Phase:
        """Returns the phase of a round, counted from 1."""

    @abstractmethod
    def rewind(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        """Sets the weights that a round starts from; those trained so far are in the state."""

    def settled(self, at: EpochPosition) -> bool:
        return at.last

    def begin_epoch(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        if at.index and at.inside == 0:
            masks = self._pruned(state, at)
            self.rewind(state, at, tools)
            state.fix(masks, self.pattern.structured and at.last)

    def _pruned(self, state: TrainingState, at: EpochPosition) -> Masks:
        density = None if at.last else self.pattern.final_density ** (at.index / self.spec.sparse.rounds)
        scores = self.magnitudes(state)
        if state.masks.entries:
            scores = {name: scores[name].masked_fill(~on, -1) for name, on in self.pattern.active(state.masks).items()}
        return self.pattern.masks(self.pattern.top(scores, self.pattern.counts(density, scores)), state.params)
