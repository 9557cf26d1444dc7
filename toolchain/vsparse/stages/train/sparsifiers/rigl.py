"""Rigging the lottery (RigL; Evci et al., ICML 2020): growth by the gradient."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vsparse.stages.train.sparsifiers.base import Tools
from vsparse.stages.train.sparsifiers.dynamic import GROWTH_BATCHES, DropAndGrow
from vsparse.stages.train.state import TrainingState


class RigL(DropAndGrow):
    """Drops the ⌊f(t) · A⌋ smallest |w| of a layer's A active weights and grows those inactive with the largest |∂L/∂w|.

    f(t) = α/2 · (1 + cos(π t / T_end)) (section 3 of the paper, where α = 0.3, T_end is three quarters of the training, and masks move
    every 100 steps by the gradient of one batch). L is the training loss, with the bounds of a certified objective at this
    epoch's radius; its gradient is averaged over GROWTH_BATCHES batches, since masks move once in an epoch at most.
    """

    removes_channels = False

    def growth(self, state: TrainingState, tools: Tools) -> Mapping[str, Tensor]:
        return self.pattern.items({name: value.abs() for name, value in tools.gradients(GROWTH_BATCHES).items()})
