"""scikit-learn's diabetes data: 442 patients, ten features, and the progression of the disease after a year, bundled."""

from __future__ import annotations

import numpy as np

from vsparse.data.dataset import VALUE, Loaded, Raw


def read() -> Loaded:
    """Returns all samples: float32 [442, 10, 1, 1] with each feature scaled to [0, 1] by its least and greatest value, and targets.

    The target is a number between 25 and 346 (Efron, Hastie, Johnstone and Tibshirani, "Least Angle Regression", Annals of Statistics 32,
    2004). The source has no test split, and no classes.
    """
    from sklearn.datasets import load_diabetes  # a second of import that other datasets do not need

    bunch = load_diabetes(scaled=False)
    features = np.asarray(bunch.data, dtype=np.float64)
    low, high = features.min(axis=0), features.max(axis=0)
    pixels = np.clip((features - low) / (high - low), 0, 1).astype(np.float32)[:, :, None, None]
    targets = np.asarray(bunch.target, dtype=np.float64)
    return Loaded(Raw(pixels, 1.0, np.zeros(len(pixels), np.int64), "scikit-learn's diabetes", targets=targets), None, VALUE)
