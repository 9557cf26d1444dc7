"""A split as tensors, for batches without workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vsparse.data import Dataset


@dataclass
class Samples:
    """A split as tensors: pixels in their stored type, labels int64; batches become float32 in [0, 1] as they are needed."""

    pixels: Tensor
    scale: float
    labels: Tensor

    @classmethod
    def of(cls, split: Dataset) -> Samples:
        """Returns the split without copying its pixels."""
        return cls(torch.from_numpy(split.pixels), split.scale, torch.from_numpy(split.labels))

    def inputs(self, index: Tensor | slice) -> Tensor:
        """Returns a float32 batch [n, C, H, W]: pixels / scale, one division each."""
        return self.pixels[index].to(torch.float32) / self.scale
