"""The layer table of a compression: each layer before and after."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vsparse.graph.cost import LayerCost, layer_table
from vsparse.graph.ir import Affine, Graph, Shape


@dataclass(frozen=True)
class LayerRow:
    """A layer before and after; `nonzero` counts the weights of the packed layer that are not zero; merged layers end at 0."""

    name: str
    type: str
    shape_before: Shape
    shape_after: Shape | None
    weights_before: int
    weights_after: int
    nonzero: int
    macs_before: int
    macs_after: int
    bytes_before: int
    bytes_after: int


def compare_layers(dense: Graph, packed: Graph) -> list[LayerRow]:
    """Returns a row for each layer with parameters; counts are for one sample, bytes for float32 storage."""
    after = {row.name: row for row in layer_table(packed)}
    nonzero = {node.name: int(np.count_nonzero(packed.params[node.weight])) for node in packed.nodes if isinstance(node, Affine)}
    return [_row(row, after.get(row.name), nonzero.get(row.name, 0)) for row in layer_table(dense)]


def _row(before: LayerCost, after: LayerCost | None, nonzero: int) -> LayerRow:
    shape, weights, macs, size = (None, 0, 0, 0) if after is None else (after.shape, after.weights, after.macs, after.bytes)
    return LayerRow(before.name, before.type, before.shape, shape, before.weights, weights, nonzero, before.macs, macs, before.bytes, size)


def total(rows: list[LayerRow]) -> LayerRow:
    """Returns the sums of all rows."""

    def add(field: str) -> int:
        return sum(getattr(row, field) for row in rows)

    return LayerRow(
        name="total",
        type="",
        shape_before=(),
        shape_after=(),
        weights_before=add("weights_before"),
        weights_after=add("weights_after"),
        nonzero=add("nonzero"),
        macs_before=add("macs_before"),
        macs_after=add("macs_after"),
        bytes_before=add("bytes_before"),
        bytes_after=add("bytes_after"),
    )
