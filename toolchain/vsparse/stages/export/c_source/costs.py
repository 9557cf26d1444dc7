"""What the kernels cost on a machine, and from it what a layer would: the choice moves time and memory, and no bit of a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vsparse.stages.export.c_source.tiles import MOST_POINTS
from vsparse.target import MeasuredCosts


@dataclass(frozen=True)
class KernelCosts:
    """Nanoseconds, as benchmarks/c/kernels.py measures them on the machine that is to execute model.c.

    `position`, by rows of a tile, is one term at one vector of `lanes` positions; `store` is beginning and storing one row at one vector;
    `point`, by points of a tile, is one term at one position for a block of 16 output channels; `dense_row` one term for 16 rows of a fully
    connected layer, `listed_row` the same where a block of rows has a list of its terms, `sparse_row` 16 terms where each row has its own.
    """

    lanes: int
    position: Mapping[int, float]
    store: float
    point: Mapping[int, float]
    dense_row: float
    listed_row: float
    sparse_row: float

    def tile(self, rows: int, terms: int, positions: int) -> float:
        """Returns the time of a tile of `rows` output channels with `terms` terms at all positions."""
        return -(-positions // self.lanes) * (terms * self.position[rows] + rows * self.store)

    def block(self, terms: int, positions: int) -> float:
        """Returns the time of a block of 16 output channels at all positions; an output is stored alone there."""
        return sum(size * (terms * self.point[size] + 16 * self.store) for size in point_tiles(positions))


# An x86-64 core with AVX2 (EPYC 7003), -O3 -ffp-contract=off -march=native: "costs" of benchmarks/c/kernels.json.
COSTS = KernelCosts(
    lanes=8,
    position=MappingProxyType({1: 0.309, 2: 0.538, 3: 0.722, 4: 0.965, 5: 1.164, 6: 1.338}),
    store=0.39,
    point=MappingProxyType({1: 0.917, 2: 0.528, 3: 0.501, 4: 0.49, 5: 0.426, 6: 0.404}),
    dense_row=0.804,
    listed_row=0.892,
    sparse_row=3.912,
)


def costs_of(measured: MeasuredCosts | None) -> KernelCosts:
    """Returns the costs that a target states, or those of `COSTS` where it states none."""
    if measured is None:
        return COSTS
    return KernelCosts(
        measured.lanes,
        dict(enumerate(measured.position, 1)),
        measured.store,
        dict(enumerate(measured.point, 1)),
        measured.dense_row,
        measured.listed_row,
        measured.sparse_row,
    )


def point_tiles(positions: int) -> list[int]:
    """Returns the sizes of the tiles that cover the positions, as even as they come."""
    count = -(-positions // MOST_POINTS)
    return [(i + 1) * positions // count - i * positions // count for i in range(count)]
