"""What bounds of one process may take: memory, by how many samples are bounded at once, and work, by how far they are refined."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TypedDict

from vsparse.graph.ir import Graph
from vsparse.recipe import Verify

MIB = 2**20
# Multiplications in the unit of verify.refine_work.
GIGA = 1e9
# Bytes for each unit of a sample: its interval and its refined box, what a coefficient costs there, the relaxation of a ReLU, windows of
# these, and what is at hand while they are computed.
UNIT_BYTES = 128
# Pieces of a backward pass have this part of the memory.
PIECES = 4


class RefinementLimits(TypedDict):
    """Arguments of `refine`."""

    memory_limit_bytes: int
    work: float


@dataclass(frozen=True)
class Allowance:
    """`memory` in MiB, `work` in thousand million multiplications for one sample (recipe keys `verify.memory` and `verify.refine_work`)."""

    memory: int = Verify().memory
    work: float = Verify().refine_work

    def parts(self, graph: Graph, count: int) -> list[slice]:
        """Returns which of `count` samples are bounded at once: as many as the memory holds, at least one."""
        units = prod(graph.input_shape) + sum(node.size for node in graph.nodes)
        at_once = max(1, self.memory * MIB * (PIECES - 1) // PIECES // (UNIT_BYTES * units))
        return [slice(start, min(start + at_once, count)) for start in range(0, count, at_once)]

    def of_refinement(self) -> RefinementLimits:
        """Returns what a refinement is told."""
        return {"memory_limit_bytes": self.memory * MIB // PIECES, "work": self.work * GIGA}


# What is allowed where nothing is said.
USUAL = Allowance()
