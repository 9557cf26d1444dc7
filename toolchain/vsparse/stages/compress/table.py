"""The layer table of a compression: each layer before and after."""

from __future__ import annotations

import numpy as np

from vsparse.artifact.layers import LayerRow
from vsparse.graph.cost import LayerCost, layer_table
from vsparse.graph.ir import Affine, Graph


def compare_layers(dense: Graph, packed: Graph) -> list[LayerRow]:
    """Returns a row for each layer with parameters; counts are for one sample, bytes for float32 storage."""
    after = {row.name: row for row in layer_table(packed)}
    nonzero = {node.name: int(np.count_nonzero(packed.params[node.weight])) for node in packed.nodes if isinstance(node, Affine)}
    return [_row(row, after.get(row.name), nonzero.get(row.name, 0)) for row in layer_table(dense)]


def _row(before: LayerCost, after: LayerCost | None, nonzero: int) -> LayerRow:
    return LayerRow(
        name=before.name,
        type=before.type,
        shape_before=before.shape,
        shape_after=None if after is None else after.shape,
        weights_before=before.weights,
        weights_after=0 if after is None else after.weights,
        nonzero=nonzero,
        macs_before=before.macs,
        macs_after=0 if after is None else after.macs,
        bytes_before=before.bytes,
        bytes_after=0 if after is None else after.bytes,
    )


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
