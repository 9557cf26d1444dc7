"""What an accelerator's memory is too small for at once, in parts: fewer samples, then smaller pieces of work for one sample.

Parts change the shapes of products, and with them the last bits of a bound, never whether it holds.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.bounds import paths
from vsparse.errors import InputError
from vsparse.graph import columns
from vsparse.search import relu_branching

Positions = NDArray[np.intp]
A = TypeVar("A")
T = TypeVar("T")
# How often the pieces of work of one sample are halved before it is given up.
HALVINGS = 7
NOT_HELD = "does not fit into the accelerator's memory"


def in_parts(work: Callable[[Positions], Positions], positions: Positions, told: Callable[[int], str]) -> Positions:
    """Returns work(positions), which is what it leaves open; where memory is short, of halves of the positions, down to a single one.

    A single one is tried again with ever smaller pieces of work; InputError with what `told` calls it where the smallest do not fit.
    """
    found = _tried(work, positions)
    if found is None and len(positions) > 1:
        return np.concatenate([in_parts(work, half, told) for half in np.array_split(positions, 2)])
    return in_smaller_pieces(lambda: work(positions), told(int(positions[0]))) if found is None else found


def in_smaller_pieces(work: Callable[[], T], what: str) -> T:
    """Returns work(), tried with ever smaller pieces of work while memory is short; InputError, which names `what`, in the end."""
    for halvings in range(HALVINGS + 1):
        with _halved(halvings):
            found = _tried(lambda _: (work(),), None)
        if found is not None:
            return found[0]
    raise InputError(
        f"{what} {NOT_HELD}, though it was bounded alone and in the smallest pieces; lower "
        'verify.branch_batch where it is set, or --jobs where several processes share the device, or set verify.device = "cpu"'
    )


def _tried(work: Callable[[A], T], argument: A) -> T | None:
    """Returns what work makes of its argument, or None where the device has no memory for it."""
    try:
        return work(argument)
    except torch.OutOfMemoryError:
        pass  # the error holds on to frames, and they to tensors, until this block is left
    gc.collect()
    torch.cuda.empty_cache()
    return None


@contextmanager
def _halved(times: int) -> Iterator[None]:
    """Halves the pieces of work on an accelerator so often for the block."""
    before = paths.DEVICE_WORKING_SET, columns.COLUMN_BYTES, relu_branching.DEVICE_BATCH
    paths.DEVICE_WORKING_SET, columns.COLUMN_BYTES, relu_branching.DEVICE_BATCH = (max(1, value >> times) for value in before)
    try:
        yield
    finally:
        paths.DEVICE_WORKING_SET, columns.COLUMN_BYTES, relu_branching.DEVICE_BATCH = before
