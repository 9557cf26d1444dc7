"""What the kernels cost, measured, and which of them a layer gets: the choice moves time and memory, and no bit of a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vsparse.stages.export.c_source.tiles import BLOCK, MOST_POINTS, MOST_ROWS


@dataclass(frozen=True)
class KernelCosts:
    """Nanoseconds on one machine, as benchmarks/c/kernels.py measures them there.

    `position` is the cost of one term at one vector of `lanes` positions by rows of a tile, `position_tile` that of beginning and storing a
    row of a tile; `point` that of one term at one position for a block of 16 output channels by points of a tile, `point_tile` that of a
    tile; `dense_row` that of one term for 16 rows of a fully connected layer, `listed_row` the same
    where a block of rows has a list of its terms, `sparse_row` that of 16 terms where each row has its own.
    """

    lanes: int = 8
    position: Mapping[int, float] = field(default_factory=lambda: {1: 0.31, 2: 0.54, 3: 0.85, 4: 1.12, 5: 1.27, 6: 1.47})
    position_tile: float = 4.0
    point: Mapping[int, float] = field(default_factory=lambda: {1: 0.90, 2: 0.55, 3: 0.45, 4: 0.40, 5: 0.38, 6: 0.37})
    point_tile: float = 12.0
    dense_row: float = 0.35
    listed_row: float = 0.45
    sparse_row: float = 5.0

    def tile(self, rows: int, terms: int, positions: int) -> float:
        """Returns the time of a tile of `rows` output channels with `terms` terms at all positions."""
        vectors = -(-positions // self.lanes)
        return vectors * (terms * self.position[rows] + rows * self.position_tile / 4) + self.position_tile

    def block(self, terms: int, positions: int) -> float:
        """Returns the time of a block of 16 output channels at all positions."""
        sizes = point_tiles(positions)
        return sum(size * terms * self.point[size] + self.point_tile for size in sizes)


COSTS = KernelCosts()
assert set(COSTS.position) == set(range(1, MOST_ROWS + 1)) and set(COSTS.point) == set(range(1, MOST_POINTS + 1)) and BLOCK == 16


def point_tiles(positions: int) -> list[int]:
    """Returns the sizes of the tiles that cover the positions, as even as they come."""
    count = -(-positions // MOST_POINTS)
    return [(i + 1) * positions // count - i * positions // count for i in range(count)]
