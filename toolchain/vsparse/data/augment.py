"""Augmentation of training batches: random shifts and left-right flips."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vsparse.recipe import Data


def augment(x: Tensor, spec: Data, generator: torch.Generator) -> Tensor:
    """Returns a batch in which each image is shifted and mirrored at random.

    A shift is of up to `spec.shift` pixels on each axis; left-right flips, if `spec.flip`, come with probability 1/2. `x` is a float tensor
    [N, C, H, W] on the [0, 1] scale (before normalisation: what a shift uncovers becomes 0). Draws come from `generator` alone; with no
    augmentation asked for, nothing is drawn and `x` itself is returned.
    """
    count, _, height, width = x.shape
    if spec.shift:
        span = 2 * spec.shift + 1
        offset = torch.randint(0, span, (2, count, 1), generator=generator, device=generator.device).to(x.device)
        padded = functional.pad(x, (spec.shift,) * 4)
        rows = (torch.arange(height, device=x.device) + offset[0])[:, :, None]
        columns = (torch.arange(width, device=x.device) + offset[1])[:, None, :]
        samples = torch.arange(count, device=x.device)[:, None, None]
        x = padded[samples, :, rows, columns].permute(0, 3, 1, 2).contiguous()
    if spec.flip:
        mirrored = torch.rand(count, generator=generator, device=generator.device).to(x.device) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    return x
