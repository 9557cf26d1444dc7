"""A split as tensors, for batches without workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vsparse.compute_device import reading_back
from vsparse.data import Dataset
from vsparse.stages.train.answer_scale import AnswerScale

PROCESSOR = torch.device("cpu")


@dataclass
class Samples:
    """A split as tensors: pixels in their stored type, labels int64; batches become float32 in [0, 1] as they are needed.

    Of regression `labels` are the targets, float32, in standard deviations from the mean (`vsparse.stages.train.answer_scale`).
    """

    pixels: Tensor
    scale: Tensor
    labels: Tensor

    @classmethod
    def of(cls, split: Dataset, device: torch.device = PROCESSOR, scale: AnswerScale | None = None) -> Samples:
        """Returns the split on a device, or without copying its pixels on the processor; `scale` is that of a regression's targets."""
        pixels, labels = torch.from_numpy(split.pixels), torch.from_numpy(split.labels)
        if scale is not None and split.targets is not None:
            labels = scale.standardised(split.targets)
        # Divided by a tensor: CUDA would multiply by the reciprocal of a number, which rounds otherwise.
        with reading_back("a split moves at once"):
            return cls(pixels.to(device), torch.full((), split.scale, device=device), labels.to(device))

    def inputs(self, index: Tensor | slice) -> Tensor:
        """Returns a float32 batch [n, C, H, W]: pixels / scale, one division each."""
        return self.pixels[index].to(torch.float32) / self.scale
