"""Certified dynamic sparse training in the manner of VeriCompress (Kaur, Xiao, Salekin, arXiv 2211.09945v7)."""

from __future__ import annotations

from math import ceil

from vsparse.stages.train.plan import Moment
from vsparse.stages.train.sparsifiers.base import Sparsifier, Tools
from vsparse.stages.train.state import State


class VeriCompress(Sparsifier):
    """Starts from a random sparse network; after every `thickening_length` epochs the least important items are deactivated.

    Until the next such moment all weights train freely, so what was zeroed can grow back through the gradient of the certified
    loss. From `freeze` of the epochs on, the mask is fixed and enforced after every step, and removed channels are gone.
    """

    @property
    def freeze_from(self) -> int:
        """The first epoch that is trained with the final mask; at most the last one."""
        return min(ceil(self.spec.sparse.freeze * self.spec.epochs - 1e-9), self.spec.epochs - 1)

    def settled(self, at: Moment) -> bool:
        return at.inside >= self.freeze_from

    def begin_epoch(self, state: State, at: Moment, tools: Tools) -> None:
        last = at.inside == self.freeze_from
        if not last and (self.settled(at) or at.inside % self.spec.sparse.thickening_length):
            return
        if at.epoch:
            state.masks = self.pattern.choose(state.params)
        else:
            counts = self.pattern.counts(scores=self.pattern.items({name: state.params[name].abs() for name in self.pattern.weights}))
            state.masks = self.pattern.masks(self.pattern.random(counts, tools.generator()), state.params)
        if last:
            state.fix(state.masks, self.pattern.structured)
        else:
            self.pattern.deactivate(state.params, state.masks)
