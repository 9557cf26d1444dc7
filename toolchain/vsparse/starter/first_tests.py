"""First tests of tables and windows, before a network is trained: do the inputs tell classes apart, or the number to predict, at all?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsparse.data import Splits

# Features of a fit, and how much of their variance it is regularised by.
MOST_FEATURES, RIDGE = 512, 1e-2


def _features(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the values of a row; of windows [n, C, 1, T] their means, deviations and spectra, which do not depend on the phase."""
    if x.shape[3] == 1:
        flat = x.reshape(len(x), -1).astype(np.float64)
    else:
        rows = x[:, :, 0].astype(np.float64) if x.shape[2] == 1 else x.reshape(len(x), x.shape[1], -1).astype(np.float64)
        spectrum = np.abs(np.fft.rfft(rows - rows.mean(2, keepdims=True), axis=2))
        flat = np.concatenate([rows.mean(2), rows.std(2), spectrum.reshape(len(x), -1)], axis=1)
    return flat[:, :: max(1, -(-flat.shape[1] // MOST_FEATURES))]


def _standardised(splits: Splits, train: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns features of training and validation samples, by mean and deviation of the former."""
    known, asked = _features(train), _features(splits.validation.inputs())
    mean, std = known.mean(0), known.std(0)
    std = np.where(std > 0, std, 1.0)
    return (known - mean) / std, (asked - mean) / std


def nearest_mean_accuracy(splits: Splits, train: NDArray[np.float32]) -> float:
    """Returns the fraction of validation samples whose nearest class mean, in standardised features, is that of their own class."""
    known, asked = _standardised(splits, train)
    labels = splits.train.labels
    means = np.stack([known[labels == label].mean(axis=0) for label in range(len(splits.train.classes))])
    distances = (means**2).sum(axis=1) - 2 * asked @ means.T
    return float((distances.argmin(axis=1) == splits.validation.labels).mean())


def linear_explained(splits: Splits, train: NDArray[np.float32]) -> float:
    """Returns the share of the variance of validation targets that a linear fit with a little regularisation explains; below 0: none."""
    known, asked = _standardised(splits, train)
    targets, wanted = splits.train.targets, splits.validation.targets
    if targets is None or wanted is None:
        return 0.0
    ridge = RIDGE * len(known) * np.eye(known.shape[1])
    weights = np.linalg.solve(known.T @ known + ridge, known.T @ (targets - targets.mean()))
    errors = wanted - (targets.mean() + asked @ weights)
    spread = ((wanted - wanted.mean()) ** 2).sum()
    return float(1 - (errors**2).sum() / spread) if spread > 0 else 0.0
