"""A dataset that is learnt in a few steps."""

from __future__ import annotations

import numpy as np

from vsparse.data import Dataset


def blobs(count: int, seed: int, channels: int = 1, side: int = 4) -> Dataset:
    """Three classes of square images, each with its own bright quarter, and noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    pixels = rng.integers(0, 60, (count, channels, side, side))
    half = side // 2
    for index, label in enumerate(labels):
        top, left = divmod(int(label), 2)
        pixels[index, :, half * top : half * (top + 1), half * left : half * (left + 1)] += 180
    return Dataset(pixels.astype(np.uint8), 255.0, labels.astype(np.int64), ("a", "b", "c"), None)
