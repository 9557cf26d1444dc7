"""One thread, deterministic kernels, no denormals: the same seed gives the same bits, on one machine and version of torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vsparse.compute_device import exact_products
from vsparse.draws import CounterDraws, Draws


@contextmanager
def deterministic(device: torch.device | None = None) -> Iterator[None]:
    """Sets torch to one thread, deterministic algorithms and flushed denormals for the block, and puts back what was.

    Denormals appear in Adam's moments of weights without gradient, where they cost an order of magnitude in time. New tensors
    are not filled first, as torch would by default: nothing here reads what it has not written. On an accelerator products are exact in
    their format (no TF32), and libraries choose their kernels without timing them.
    """
    if device is not None and device.type == "cuda":
        # cuBLAS reads it when it starts; with it, products are the same in every run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(device)
        exact_products()
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
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
    return torch.Generator().manual_seed(_mixed(seed, epoch, purpose))


def counter(seed: int, epoch: int, purpose: int) -> CounterDraws:
    """Returns the same as a counter, which draws on any device."""
    return CounterDraws(_mixed(seed, epoch, purpose))


def drawn(counted: bool, seed: int, epoch: int, purpose: int) -> Draws:
    """Returns `counter` where `counted`, else `generator`."""
    return counter(seed, epoch, purpose) if counted else generator(seed, epoch, purpose)


def _mixed(seed: int, epoch: int, purpose: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + purpose * 0x94D049BB133111EB) % 2**63
