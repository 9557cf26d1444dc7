"""Sparse evolutionary training (SET; Mocanu et al., Nature Communications 9, 2018): random growth."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vsparse.stages.train.sparsifiers.base import Tools
from vsparse.stages.train.sparsifiers.dynamic import DropAndGrow
from vsparse.stages.train.state import TrainingState


class Set(DropAndGrow):
    """After every period a fraction ζ of the weights, those closest to zero, goes, and as many random ones come.

    The paper (its algorithm 1) does so after each epoch with ζ = 0.3, from an Erdős–Rényi random mask, and takes the smallest positive
    and the largest negative weights. Here ζ = `train.sparse.drop` falls by RigL's cosine, so that the mask can freeze, and
    grown weights start at 0 and not at random values, as in Evci et al. (ICML 2020), who compare with SET in that form.
    """

    removes_channels = False

    def growth(self, state: TrainingState, tools: Tools) -> Mapping[str, Tensor]:
        generator = tools.generator()
        return {name: torch.rand(shape, generator=generator) for name, shape in self.pattern.shapes().items()}
