"""A file against its reading, on points of the boxes that a query asks about."""

from __future__ import annotations

import numpy as np

from vsparse.graph import Reading
from vsparse.reading import Asked, ReadingEvidence, check_reading
from vsparse.reading.points import SAMPLES
from vsparse.vnnlib import Query


def compare_with_query(data: bytes, reading: Reading, query: Query, model: str, *, optimised: bool) -> ReadingEvidence:
    """Executes the file on points of the first cases, and of what else `check_reading` tries; `model` is its name in errors,
    `optimised` as in `check_reading`.

    Raises what `check_reading` raises. `query` declares as many inputs as the network has.
    """
    asked = Asked()
    if query.cases:
        ends = [case.box.outward() for case in query.cases[:SAMPLES]]
        with np.errstate(over="ignore"):
            lower, upper = (
                np.stack([end[side] for end in ends]).astype(np.float32).reshape(len(ends), *reading.graph.input_shape) for side in (0, 1)
            )
        asked = Asked(lower, upper)
    return check_reading(data, reading, where=f"model {model}", asked=asked, optimised=optimised)
