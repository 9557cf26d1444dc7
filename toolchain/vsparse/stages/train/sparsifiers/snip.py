"""SNIP: single-shot pruning by connection sensitivity (Lee, Ajanthan, Torr, ICLR 2019)."""

from __future__ import annotations

from vsparse.stages.train.phases import EpochPosition
from vsparse.stages.train.sparsifiers.base import Sparsifier, Tools
from vsparse.stages.train.state import TrainingState

BATCHES = 1


class Snip(Sparsifier):
    """Keeps the items with the largest |w · ∂L/∂w| at initialisation, and trains them from there with the mask fixed.

    This is |∂L/∂c| at c = 1 of a network with weights c ⊙ w (the paper's section 4.1, whose normalisation by the sum changes no
    order), on one batch; the paper ranks all layers together (allocation "global"). L is the training loss at the full radius, which
    is what the network must meet in the end: at radius 0, where the ramp starts, a certified loss is the clean one.
    """

    removes_channels = False

    def settled(self, at: EpochPosition) -> bool:
        return True

    def begin_epoch(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        if at.epoch:
            return
        gradients = tools.gradients(BATCHES, fraction=1.0)
        scores = self.pattern.items({name: (state.params[name].detach() * gradient).abs() for name, gradient in gradients.items()})
        active = self.pattern.top(scores, self.pattern.counts(scores=scores))
        state.fix(self.pattern.masks(active, state.params), self.pattern.structured)
