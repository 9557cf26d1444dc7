"""Packs a network to the units its final masks keep, so that the remaining epochs train only what is left, and unpacks it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from vsparse.errors import InputError
from vsparse.graph.builder import Builder
from vsparse.graph.ir import Conv, Graph, Reshape
from vsparse.stages.train.masks import Masks
from vsparse.stages.train.units import UnitGroup, groups_of


@dataclass(frozen=True)
class Packing:
    """The packed graph, and for each tensor the rows and columns (int64, or None for all) that it has of the full one."""

    full: Graph
    graph: Graph
    rows: dict[str, Tensor]
    columns: dict[str, Tensor]

    def pack(self, name: str, value: Tensor) -> Tensor:
        """Returns the part of a full tensor that the packed network has."""
        if name in self.rows:
            value = value[self.rows[name]]
        if name in self.columns:
            value = value[:, self.columns[name]]
        return value.clone()

    def unpack(self, name: str, value: Tensor) -> Tensor:
        """Returns a full tensor with the packed values in their places and exact zeros elsewhere."""
        shape = self.full.params[name].shape
        result = torch.zeros(shape, dtype=value.dtype, device=value.device)
        if name in self.columns:
            wide = torch.zeros(value.shape[0], *shape[1:], dtype=value.dtype, device=value.device)
            wide[:, self.columns[name]] = value
            value = wide
        if name in self.rows:
            result[self.rows[name]] = value
            return result
        return value.clone()


def pack(graph: Graph, masks: Masks) -> Packing:
    """Returns the packing of a graph to the units that structured masks keep; InputError where they keep none of a group."""
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for group in groups_of(graph):
        kept = torch.nonzero(masks.groups[group.name]).flatten().cpu()  # indexes tensors on any device
        if not len(kept):
            raise InputError(f'the masks leave no unit of "{group.name}", and a network cannot be packed to none; keep at least one')
        for name in _row_tensors(group):
            rows[name] = kept
        for places, tensors in ((rows, group.constants), (columns, group.consumers)):
            for name, spread in tensors:
                places[name] = (kept[:, None] * spread + torch.arange(spread)).flatten()
    draft = Packing(graph, graph, rows, columns)
    return replace(draft, graph=_packed_graph(graph, {n: draft.pack(n, torch.from_numpy(v)) for n, v in graph.params.items()}))


def _row_tensors(group: UnitGroup) -> list[str]:
    names = [name for pair in group.producers for name in pair if name is not None]
    return names + [name for pair in (*group.norms, *group.statistics) for name in pair]


def _packed_graph(graph: Graph, params: Mapping[str, Tensor]) -> Graph:
    builder = Builder(graph.input, graph.input_shape)
    builder.params = {name: value.numpy() for name, value in params.items()}
    for node in graph.nodes:
        if isinstance(node, Reshape) and len(node.shape) == 1:
            node = replace(node, shape=(prod(builder.shapes[node.inputs[0]]),))
        if isinstance(node, Conv):  # a depthwise one has fewer groups now; with one channel left it is a plain convolution
            node = replace(node, groups=builder.shapes[node.inputs[0]][0] // builder.params[node.weight].shape[1])
        builder.add(node)
    return builder.graph(graph.output)
