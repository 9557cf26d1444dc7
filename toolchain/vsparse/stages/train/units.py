"""Groups of units that can only be removed together, seen from the weights: who makes a unit, and who reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from vsparse.graph.ir import (
    Add,
    AddConstant,
    Affine,
    AveragePool,
    BatchNorm,
    Clip,
    Conv,
    FakeQuant,
    Graph,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Neg,
    Node,
    Relu,
    Reshape,
    Sub,
)

# Operators that keep a unit in its place and leave zero behind where it is zero.
UNIT_BY_UNIT = Add | Sub | MulConstant | BatchNorm | Neg | Relu | LeakyRelu | FakeQuant | MaxPool | AveragePool


@dataclass(frozen=True)
class Group:
    """Units 0 … count − 1 that several tensors share.

    `producers`: (weight, bias or None) whose first axis are the units. `norms`: (scale, bias) of batch norms. `consumers`:
    (weight, spread), in whose second axis unit i owns columns i·spread … (i+1)·spread − 1 (spread > 1 after a flatten).
    """

    name: str
    count: int
    producers: tuple[tuple[str, str | None], ...]
    norms: tuple[tuple[str, str], ...]
    statistics: tuple[tuple[str, str], ...]
    consumers: tuple[tuple[str, int], ...]
    convolutional: bool

    def masks(self, keep: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns bool masks of every tensor that the units `keep` (bool [count]) leave alive in this group's rows or columns."""
        found: dict[str, Tensor] = {}
        for weight, bias in self.producers:
            found[weight] = keep.view(-1, *(1 for _ in params[weight].shape[1:])).expand(params[weight].shape)
            if bias is not None:
                found[bias] = keep
        for pair in self.norms:
            for name in pair:
                found[name] = keep
        for weight, mask in self.columns(keep, params).items():
            found[weight] = found[weight] & mask if weight in found else mask
        return found

    def columns(self, keep: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns bool masks of the consumers' weights alone."""
        return {
            weight: keep.repeat_interleave(spread).view(1, -1, *(1 for _ in params[weight].shape[2:])).expand(params[weight].shape)
            for weight, spread in self.consumers
        }


def groups_of(graph: Graph) -> list[Group]:
    """Returns the groups of removable hidden units of a graph, in the order in which they are first made.

    Units tied by residual additions form one group. Units that reach the output, the input, a grouped convolution, an
    added constant, or a reshape that is not a flatten, are left out: they stay. So are units whose weight is used by two nodes.
    """
    links = _Links(graph)
    used: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.params:
            used[name] = used.get(name, 0) + 1
    groups = []
    for root in dict.fromkeys(links.root(node.name) for node in graph.nodes if isinstance(node, Affine)):
        makers = [node for node in graph.nodes if isinstance(node, Affine) and links.root(node.name) == root]
        norms = [node for node in graph.nodes if isinstance(node, BatchNorm) and links.root(node.name) == root]
        readers = [node for node in graph.nodes if isinstance(node, Affine) and links.root(node.inputs[0]) == root]
        shared = any(used[name] > 1 for node in [*makers, *norms, *readers] for name in node.params)
        if root in links.pinned or shared:
            continue
        groups.append(
            Group(
                name=makers[0].name,
                count=makers[0].shape[0],
                producers=tuple((node.weight, node.bias) for node in makers),
                norms=tuple((node.scale, node.bias) for node in norms),
                statistics=tuple((node.mean, node.variance) for node in norms),
                consumers=tuple((node.weight, graph.params[node.weight].shape[1] // makers[0].shape[0]) for node in readers),
                convolutional=isinstance(makers[0], Conv),
            )
        )
    return groups


class _Links:
    """Ties activations whose units are the same; a root is the name of one of them."""

    def __init__(self, graph: Graph) -> None:
        self.parent = {name: name for name in [graph.input, *(node.name for node in graph.nodes)]}
        pinned = [graph.input, graph.output]
        for node in graph.nodes:
            if isinstance(node, Conv) and node.groups > 1:
                pinned += [node.name, *node.inputs]
            elif isinstance(node, Affine):
                continue
            else:
                for name in node.inputs:
                    self.tie(node.name, name)
                if _opaque(node, graph):
                    pinned.append(node.name)
        self.pinned = {self.root(name) for name in pinned}

    def root(self, name: str) -> str:
        """Returns the representative of an activation."""
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def tie(self, a: str, b: str) -> None:
        """Says that two activations have the same units."""
        first, second = self.root(a), self.root(b)
        if first != second:
            self.parent[first] = second


def _opaque(node: Node, graph: Graph) -> bool:
    """Whether units cannot be followed through the node, or would leave a constant behind when removed."""
    if isinstance(node, AddConstant):
        return True
    if isinstance(node, Clip):
        return not node.lowest <= 0 <= node.highest
    if isinstance(node, Reshape):
        return len(node.shape) != 1 or prod(graph.shape_of(node.inputs[0])) != node.shape[0]
    if not isinstance(node, UNIT_BY_UNIT):
        return True
    return len({graph.shape_of(name)[0] for name in node.inputs}) > 1


def unit_norms(group: Group, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the l2 norms [count] of what makes each unit (filters, times |γ| of their batch norm) and of what reads it."""
    incoming = torch.zeros(group.count)
    for weight, _ in group.producers:
        incoming = incoming + params[weight].detach().flatten(1).square().sum(1)
    for scale, _ in group.norms:
        incoming = incoming * params[scale].detach().square()
    outgoing = torch.zeros(group.count)
    for weight, spread in group.consumers:
        columns = params[weight].detach()
        outgoing = outgoing + columns.transpose(0, 1).reshape(group.count, spread * columns.shape[0] * columns[0, 0].numel()).square().sum(
            1
        )
    return incoming.sqrt(), outgoing.sqrt()
