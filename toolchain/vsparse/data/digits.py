"""scikit-learn's digits: 1,797 handwritten digits of 8 × 8 pixels with values from 0 to 16, bundled, nothing to download."""

from __future__ import annotations

import numpy as np

from vsparse.data.dataset import Loaded, Raw

CLASSES = tuple(str(digit) for digit in range(10))


def read() -> Loaded:
    """Returns all samples, uint8 [1797, 1, 8, 8] with scale 16; the source has no test split (Alpaydin & Kaynak, UCI, 1998, test part)."""
    from sklearn.datasets import load_digits  # a second of import that other datasets do not need

    bunch = load_digits()
    pixels = np.asarray(bunch.images).astype(np.uint8)[:, None]
    return Loaded(Raw(pixels, 16.0, np.asarray(bunch.target).astype(np.int64), "scikit-learn's digits"), None, CLASSES)
