"""Certified dynamic sparse training in the manner of VeriCompress (Kaur, Xiao, Salekin, arXiv 2211.09945v7)."""

from __future__ import annotations

from vsparse.stages.train.phases import EpochPosition
from vsparse.stages.train.sparsifiers.base import Tools
from vsparse.stages.train.sparsifiers.dynamic import Dynamic
from vsparse.stages.train.state import TrainingState


class VeriCompress(Dynamic):
    """Starts from a random sparse network; after every `thickening_length` epochs the least important items are deactivated.

    Until the next choice all weights train freely, so what was zeroed can grow back through the gradient of the certified
    loss. From `freeze` of the epochs on, the mask is fixed and enforced after every step, and removed channels are gone. The paper:
    thickening_length 1, l2 norms, layers by Erdős–Rényi-kernel with half of it for convolutions and the last one, no freeze.
    """

    def begin_epoch(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        if not self.moves(at):
            return
        state.masks = self.pattern.choose(state.params) if at.epoch else self.random(state, tools)
        if at.inside == self.freeze_from:
            state.fix(state.masks, self.pattern.structured)
        else:
            self.pattern.deactivate(state.params, state.masks)
