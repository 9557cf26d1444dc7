"""Which output channels share a tile, and which of a layer's terms a tile takes: those that one of its rows has a weight for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from vsparse.stages.export.c_source.costs import KernelCosts
from vsparse.stages.export.c_source.tiles import MOST_ROWS

# A tile that needs at least this share of all terms takes all, and shares its list of offsets with the others.
FULL = 0.9


@dataclass(frozen=True)
class ChannelTile:
    """Output channels `rows` of a layer, all of `group`, with the terms `columns` (of a row of the weight, ascending; all where `full`)."""

    rows: tuple[int, ...]
    columns: NDArray[np.int64]
    group: int
    full: bool


def tiles_of(weight: NDArray[np.float32], groups: int, positions: int, costs: KernelCosts) -> tuple[list[ChannelTile], float]:
    """Returns the cheapest tiles found for a weight [out, terms], and what they cost in nanoseconds.

    Rows of a group are tried in their own order and sorted by where their weights are; of either order the best cuts are found exactly.
    """
    per_group, terms = len(weight) // groups, weight.shape[1]
    tiles: list[ChannelTile] = []
    total = 0.0
    for group in range(groups):
        first = group * per_group
        kept = weight[first : first + per_group] != 0
        orders = [np.arange(per_group)]
        if per_group > 1 and not kept.all():
            orders.append(np.lexsort(np.packbits(kept, axis=1).T[::-1]))
        cost, cuts = min((_cut(kept, order, positions, costs) for order in orders), key=lambda found: found[0])
        total += cost
        for rows in cuts:
            (columns,) = np.nonzero(kept[rows].any(axis=0))
            full = groups == 1 and len(columns) >= FULL * terms
            columns = np.arange(terms) if full else columns
            tiles.append(ChannelTile(tuple((first + rows).tolist()), columns, group, full))
    return tiles, total


def _cut(kept: NDArray[np.bool_], order: NDArray[np.int64], positions: int, costs: KernelCosts) -> tuple[float, list[NDArray[np.int64]]]:
    """Returns the least cost of cutting rows, in this order, into tiles, and the rows of each tile."""
    best = [0.0] + [inf] * len(order)
    size = [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        union = np.zeros(kept.shape[1], dtype=bool)
        for rows in range(1, min(MOST_ROWS, end) + 1):
            union = union | kept[order[end - rows]]
            cost = best[end - rows] + costs.tile(rows, int(np.count_nonzero(union)), positions)
            if cost < best[end]:
                best[end], size[end] = cost, rows
    cuts, end = [], len(order)
    while end:
        cuts.append(order[end - size[end] : end])
        end -= size[end]
    return best[-1], cuts[::-1]


def even_cuts(rows: int, terms: int, positions: int, costs: KernelCosts) -> list[int]:
    """Returns the cheapest sizes of tiles, each an even number of rows and the largest first, for an even number of rows with all terms."""
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for end in range(2, rows + 1, 2):
        sizes = range(2, min(MOST_ROWS, end) + 1, 2)
        cost = {size: best[(end - size) // 2][0] + costs.tile(size, terms, positions) for size in sizes}
        size = min(sizes, key=lambda one: cost[one])
        best.append((cost[size], [*best[(end - size) // 2][1], size]))
    return sorted(best[-1][1], reverse=True)


def by_kernel(tiles: Iterable[ChannelTile]) -> dict[tuple[int, bool], list[ChannelTile]]:
    """Returns the tiles that one call computes: as many rows, and with all terms or with lists of their own."""
    found: dict[tuple[int, bool], list[ChannelTile]] = {}
    for tile in tiles:
        found.setdefault((len(tile.rows), tile.full), []).append(tile)
    return found
