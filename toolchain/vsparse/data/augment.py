"""Augmentation of training batches: random crops, shifts and left-right flips."""

from __future__ import annotations

import torch
from torch import Tensor

from vsparse.draws import Draws, integers, uniform
from vsparse.recipe import Data


def augment(x: Tensor, spec: Data, generator: Draws) -> Tensor:
    """Returns a batch in which each image is cropped, shifted and mirrored at random.

    A crop is a window of the image's own size, anywhere in the image padded by `spec.crop` pixels that repeat the nearest edge pixel. A
    shift is of up to `spec.shift` pixels on each axis; what it uncovers becomes 0. Left-right flips, if `spec.flip`, come with probability
    1/2. `x` is a float tensor [N, C, H, W] on the [0, 1] scale, before normalisation. Draws come from `generator` alone; with no
    augmentation asked for, nothing is drawn and `x` itself is returned.
    """
    if spec.crop:
        x = _moved(x, spec.crop, generator, repeat_edges=True)
    if spec.shift:
        x = _moved(x, spec.shift, generator, repeat_edges=False)
    if spec.flip:
        mirrored = uniform(generator, (len(x),), x.device) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    return x


def _moved(x: Tensor, most: int, generator: Draws, repeat_edges: bool) -> Tensor:
    """Returns each image moved by up to `most` pixels on each axis; what comes in repeats the edge, or is 0."""
    count, _, height, width = x.shape
    offset = integers(generator, 2 * most + 1, (2, count, 1), x.device) - most
    rows, columns = (torch.arange(size, device=x.device) + each for size, each in zip((height, width), offset, strict=True))
    samples = torch.arange(count, device=x.device)[:, None, None]
    # An index past an edge reads the edge itself.
    inside = rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    moved = x[samples, :, *inside].permute(0, 3, 1, 2).contiguous()
    if repeat_edges:
        return moved
    filled = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    return torch.where(filled, moved, 0.0)
