"""One thread, deterministic kernels, no denormals: the same seed gives the same bits, on one machine and version of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic() -> Iterator[None]:
    """Sets torch to one thread, deterministic algorithms and flushed denormals for the block, and puts back what was.

    Denormals appear in Adam's moments of weights without gradient, where they cost an order of magnitude in time. New tensors
    are not filled first, as torch would by default: nothing here reads what it has not written.
    """
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # set by the module's own class
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)


def generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """Returns the generator of one purpose in one epoch, a function of its arguments alone, so that it needs no saved state."""
    mixed = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + purpose * 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(mixed)
