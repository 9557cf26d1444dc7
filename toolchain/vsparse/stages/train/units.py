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
    Sigmoid,
    Sub,
    Tanh,
)

# Operators that keep a unit in its place and leave zero behind where it is zero.
UNIT_BY_UNIT = Add | Sub | MulConstant | BatchNorm | Neg | Relu | LeakyRelu | FakeQuant | MaxPool | AveragePool


@dataclass(frozen=True)
class UnitGroup:
    """Units 0 … count − 1 that several tensors share.

    `producers`: (weight, bias or None) whose first axis are the units, those named in `depthwise` last: depthwise convolutions,
    [count, 1, kh, kw], whose filter i reads unit i and makes it anew, so that it comes and goes with the unit. `norms`: (scale,
    bias) of batch norms, `statistics` their (mean, variance). `consumers`: (weight, spread), in whose second axis unit i owns columns
    i·spread … (i+1)·spread − 1 (spread > 1 after a flatten). `constants`: (factor, spread), whose first axis is as that.

    `made_through` and `read_through` say, in the order of producers and consumers, the scale of the batch norm right behind a producer
    and of one that a consumer reads sums through (a pre-activation block's), None where there is none.
    """

    name: str
    count: int
    producers: tuple[tuple[str, str | None], ...]
    norms: tuple[tuple[str, str], ...]
    statistics: tuple[tuple[str, str], ...]
    consumers: tuple[tuple[str, int], ...]
    convolutional: bool
    depthwise: tuple[str, ...] = ()
    constants: tuple[tuple[str, int], ...] = ()
    made_through: tuple[str | None, ...] = ()
    read_through: tuple[str | None, ...] = ()

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

    def touching(self, units: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns bool masks of the entries of weights that make or read one of `units`, bool [count]."""
        found = {
            weight: units.view(-1, *(1 for _ in params[weight].shape[1:])).expand(params[weight].shape) for weight, _ in self.producers
        }
        for weight, mask in self.columns(units, params).items():
            found[weight] = found[weight] | mask if weight in found else mask
        return found

    def columns(self, keep: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns bool masks of the consumers' weights alone."""
        return {
            weight: keep.repeat_interleave(spread).view(1, -1, *(1 for _ in params[weight].shape[2:])).expand(params[weight].shape)
            for weight, spread in self.consumers
        }


def groups_of(graph: Graph) -> list[UnitGroup]:
    """Returns the groups of removable hidden units of a graph, in the order in which they are first made.

    Units tied by residual additions, or by a depthwise convolution with as many filters as channels, form one group (Fang et al.,
    DepGraph, CVPR 2023, section 3). Units that reach the output, the input, another grouped convolution, an added constant, or a
    reshape that is not a flatten, are left out: they stay. So are units whose weight is used by two nodes, and channels whose
    elements a batch norm or an addition treats one by one after a flatten.
    """
    links = _Links(graph)
    used: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.params:
            used[name] = used.get(name, 0) + 1
    groups = []
    affine = [node for node in graph.nodes if isinstance(node, Affine)]
    for root in dict.fromkeys(links.root(node.name) for node in affine):
        if root in links.pinned:
            continue
        rows = [node for node in affine if links.root(node.name) == root]
        filters = [node for node in rows if _depthwise(node, graph)]
        makers = [node for node in rows if node not in filters] + filters
        norms = [node for node in graph.nodes if isinstance(node, BatchNorm) and links.root(node.name) == root]
        readers = [node for node in affine if links.root(node.inputs[0]) == root and node not in filters]
        factors = [node for node in graph.nodes if _sliced(node, graph) and links.root(node.name) == root]
        shared = any(used[name] > 1 for node in [*makers, *norms, *readers, *factors] for name in node.params)
        mixed = len({node.shape[0] for node in [*makers, *norms]}) > 1  # some stand behind a flatten, where units are elements
        if shared or mixed:
            continue
        groups.append(
            UnitGroup(
                name=makers[0].name,
                count=makers[0].shape[0],
                producers=tuple((node.weight, node.bias) for node in makers),
                norms=tuple((node.scale, node.bias) for node in norms),
                statistics=tuple((node.mean, node.variance) for node in norms),
                consumers=tuple((node.weight, graph.params[node.weight].shape[1] // makers[0].shape[0]) for node in readers),
                convolutional=isinstance(makers[0], Conv),
                depthwise=tuple(node.weight for node in filters),
                constants=tuple((name, node.shape[0] // makers[0].shape[0]) for node in factors for name in node.params),
                made_through=tuple(next((norm.scale for norm in norms if norm.inputs[0] == node.name), None) for node in makers),
                read_through=tuple(_norm_before(node, graph) for node in readers),
            )
        )
    return groups


class _Links:
    """Ties activations whose units are the same; a root is the name of one of them."""

    def __init__(self, graph: Graph) -> None:
        self.parent = {name: name for name in [graph.input, *(node.name for node in graph.nodes)]}
        pinned = [graph.input, graph.output]
        for node in graph.nodes:
            if _depthwise(node, graph):
                self.tie(node.name, node.inputs[0])
            elif isinstance(node, Conv) and node.groups > 1:
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


def why_none(graph: Graph) -> str:
    """Returns why no unit of a graph can be removed: which operators keep the hidden ones, or that there are none."""
    affine = [node for node in graph.nodes if isinstance(node, Affine)]
    if len(affine) < 2:
        return "it has no hidden layer"
    # An affine layer makes units and reads them; one with groups ties those that it reads to those that it makes.
    opaque = [node for node in graph.nodes if (_opaque(node, graph) if not isinstance(node, Affine) else _grouped(node))]
    curves = [node for node in opaque if isinstance(node, Sigmoid | Tanh)]
    if curves:
        kinds = " and ".join(dict.fromkeys(type(node).__name__ for node in curves))
        return f'they pass through {kinds} ("{curves[0].name}"), through which units are not followed; with ReLU they could be'
    if opaque:
        kinds = ", ".join(dict.fromkeys(type(node).__name__.removesuffix("Constant") for node in opaque))
        return f'they pass through {kinds} ("{opaque[0].name}"), which ties them to what must stay'
    return "each of them is tied to the input, to the output or to a layer that is used twice"


def _grouped(node: Node) -> bool:
    return isinstance(node, Conv) and node.groups > 1


def _depthwise(node: Node, graph: Graph) -> bool:
    """Whether the node is a convolution whose output i reads input i alone; with one channel it is a plain convolution."""
    return isinstance(node, Conv) and node.groups > 1 and node.groups == node.shape[0] == graph.shape_of(node.inputs[0])[0]


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


def _sliced(node: Node, graph: Graph) -> bool:
    """Whether the node multiplies by a constant with a number of its own for each unit."""
    if not isinstance(node, MulConstant):
        return False
    shape = graph.params[node.constant].shape
    return len(shape) == len(node.shape) and shape[0] == node.shape[0] > 1


def _norm_before(node: Node, graph: Graph) -> str | None:
    """Returns the scale of the batch norm through which a node reads a sum; None where there is none, or a producer owns it."""
    nodes = {other.name: other for other in graph.nodes}
    while node.inputs[0] in nodes:
        node = nodes[node.inputs[0]]
        if isinstance(node, BatchNorm):
            return None if isinstance(nodes.get(node.inputs[0]), Affine) else node.scale
        if isinstance(node, Affine) or len(node.inputs) > 1:
            return None
    return None


def unit_norms(group: UnitGroup, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the l2 norms [count] of what makes each unit and of what reads it.

    Each weight counts times the |γ| of the batch norm between it and the unit, and what makes a unit times the norm of each depthwise
    filter that it passes: a factor that moves from one of them to another changes neither the network nor the product of both norms.
    `params` may hold saliencies instead; a γ that it lacks counts as 1.
    """
    device = params[group.producers[0][0]].device
    incoming, passed = torch.zeros(group.count, device=device), torch.ones(group.count, device=device)
    for (weight, _), scale in zip(group.producers, group.made_through, strict=True):
        squares = params[weight].detach().flatten(1).square().sum(1) * _squared(scale, params)
        if weight in group.depthwise:
            passed = passed * squares
        else:
            incoming = incoming + squares
    outgoing = torch.zeros(group.count, device=device)
    for (weight, spread), scale in zip(group.consumers, group.read_through, strict=True):
        columns = params[weight].detach()
        parts = columns.transpose(0, 1).reshape(group.count, spread * columns.shape[0] * columns[0, 0].numel())
        outgoing = outgoing + parts.square().sum(1) * _squared(scale, params)
    return (incoming * passed).sqrt(), outgoing.sqrt()


def _squared(scale: str | None, params: Mapping[str, Tensor]) -> Tensor | float:
    return params[scale].detach().square() if scale is not None and scale in params else 1.0
