"""Seeded splits: stratified by class, and by whole groups where samples come in groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError

TEST, VALIDATION = 1, 2  # purposes: each draws from a stream of its own, so that one split does not steer the other


def hold_out(
    labels: NDArray[np.int64], groups: NDArray[np.int64] | None, fraction: float, seed: int, purpose: int, source: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the sorted indices of what stays and of what is held out, int64 each.

    Of every class round(fraction · n) units are held out, at least one and never all; a unit is a sample, or a whole group where `groups`
    is given (a group belongs to the class of its first sample). A class with one unit keeps it. Raises InputError where nothing would be
    held out, and for a seed outside [0, 2^32). NumPy's legacy RandomState draws, because its streams are frozen for ever (NEP 19).
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"the seed {seed} is outside the range from 0 to 2^32 - 1; choose another")
    random = np.random.RandomState([seed, purpose])
    if groups is None:
        unit_of_sample, unit_labels = np.arange(len(labels)), labels
    else:
        _, first, unit_of_sample = np.unique(groups, return_index=True, return_inverse=True)
        unit_labels = labels[first]
    held = np.zeros(len(unit_labels), dtype=bool)
    for label in np.unique(unit_labels):
        units = np.flatnonzero(unit_labels == label)
        count = min(max(1, int(np.floor(fraction * len(units) + 0.5))), len(units) - 1)
        held[random.permutation(units)[:count]] = True
    if not held.any():
        what = "tracks" if groups is not None else "samples"
        raise InputError(f"{source} has one of its {what} a class, so none can be held out; add {what}")
    chosen = held[unit_of_sample]
    return np.flatnonzero(~chosen).astype(np.int64), np.flatnonzero(chosen).astype(np.int64)
