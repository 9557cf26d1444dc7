"""Limits of a search over one region, and its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vsparse.bounds.proof import BoundProof

# Called with the number of domains bounded so far and the lowest bound among those that are open.
SearchProgress = Callable[[int, float], None]


@dataclass(frozen=True)
class Limits:
    """When to give up: domains bounded, wall-clock seconds (none: results depend on no clock), memory; `jobs` threads share the domains.

    `at_once` is how many domains are split at once, 0: as many as suits the device that bounds are computed on.
    With more than one job the last bits of a result may differ from run to run.
    """

    domains: int = 100_000
    seconds: float | None = None
    memory_bytes: int = 2**30
    jobs: int = 1
    at_once: int = 0


@dataclass
class SearchResult:
    """The result of a search.

    `proved`: row · output > threshold holds on the whole region, decided in float64, and `lower` is the bound that was proved; otherwise
    `lower` is the last bound of the search, which proves nothing. `proof` holds tightened intermediate bounds and trees (none: curves other
    than ReLU were split, which proofs do not have).
    `counterexample`: a float32 input [*shape] of the region at which float32 arithmetic finds row · output <= threshold.
    """

    proved: bool
    lower: float
    domains: int = 0
    proof: BoundProof | None = None
    counterexample: Tensor | None = None
    timed_out: bool = False
