"""The definition of percentile that every latency of an artifact uses."""

from __future__ import annotations

from collections.abc import Sequence

from vsparse.errors import InputError


def percentile(samples: Sequence[float], p: float) -> float:
    """Returns the p-th percentile, always one of the samples: sorted[max(n − 1 − int((1 − p/100)·n), 0)].

    The same definition as trtexec's and the device script's, so that numbers of one table compare; written as (100 − p)·n/100, which
    is exact for whole p. Raises InputError for no samples and for p outside 0 to 100.
    """
    if not samples or not 0 <= p <= 100:
        raise InputError(f"the {p}th percentile of {len(samples)} samples is not defined; give at least one sample and 0 to 100")
    ordered = sorted(samples)
    return ordered[max(len(ordered) - 1 - int((100 - p) * len(ordered) / 100), 0)]
