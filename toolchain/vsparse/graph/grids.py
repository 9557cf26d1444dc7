"""Where and how the int8 file rounds: grids of activations from their ranges, integers of weights and biases.

See docs/numerics.md, section 7.1.

One code for the file that is exported and for the training that simulates it. The scheme is that of Jacob et al., arXiv 1712.05877,
section 2, with the weights one bit short so that no x86 kernel saturates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsparse.graph.core import Graph, Node
from vsparse.graph.operators.affine import Affine
from vsparse.graph.operators.arithmetic import Add
from vsparse.graph.operators.pooling import AveragePool
from vsparse.graph.operators.quantised import FakeQuant, moved_grid
from vsparse.graph.quantised import MAX_WEIGHT, SMALLEST_BEHIND_CLIP, Behind, carried

# Far from where a product of scales could underflow; only a channel that is nearly dead comes near.
SMALLEST_SCALE = 2.0**-30
# A bias above this many steps makes its channel's steps larger; int32 keeps seven bits in reserve for the sum.
LARGEST_BIAS = 2.0**24

_ON_INTEGERS = Affine | Add | AveragePool

Range = tuple[float, float]


class Gridded(NamedTuple):
    """Nodes with grids between them; for each affine node the grid that its input lies on."""

    nodes: tuple[Node, ...]
    grids: dict[str, FakeQuant]


def with_grids(graph: Graph, ranges: Mapping[str, Range], kind: type[FakeQuant] = FakeQuant) -> Gridded:
    """Returns the nodes of a graph with its affine operators, additions and averages on quantised inputs; parameters as they were.

    `ranges` has the least and the greatest value of each activation that `gridded_activations` names; new nodes are of type `kind`.
    """
    names = {graph.input, *(node.name for node in graph.nodes)}
    wanted = _wanted(graph)
    nodes: list[Node] = []
    grids: dict[str, FakeQuant | None] = {}
    quantised: dict[str, str] = {}
    inputs: dict[str, FakeQuant] = {}
    before: dict[str, Behind] = {}

    def scale_of(name: str) -> float:
        grid = grids.get(name)
        return 0.0 if grid is None else grid.scale

    def on_grid(name: str) -> str:
        if grids.get(name) is not None:
            return name
        if name not in quantised:
            free = unused(f"{name}.int8", lambda one: one in names)
            scale, zero_point = grid_of(*ranges[name], before.get(name, Behind()).least_scale)
            node = kind(name=free, inputs=(name,), shape=graph.shape_of(name), scale=scale, zero_point=zero_point, lowest=0, highest=255)
            nodes.append(node)
            names.add(free)
            grids[free] = node
            quantised[name] = free
        return quantised[name]

    for node in graph.nodes:
        if isinstance(node, _ON_INTEGERS) or node.name in wanted:
            node = replace(node, inputs=tuple(on_grid(name) for name in node.inputs))
        if isinstance(node, Affine):
            grid = grids[node.inputs[0]]
            assert grid is not None
            inputs[node.name] = grid
        nodes.append(node)
        grids[node.name] = moved_grid(node, grids)
        before[node.name] = carried(node, before, scale_of)
    return Gridded(tuple(nodes), inputs)


def gridded_activations(graph: Graph) -> list[str]:
    """Returns the names of the activations that `with_grids` puts a grid on."""
    names = [graph.input, *(node.name for node in graph.nodes)]
    found = with_grids(graph, dict.fromkeys(names, (0.0, 1.0)))
    return [node.inputs[0] for node in found.nodes if isinstance(node, FakeQuant)]


def grid_of(least: float, most: float, smallest: float = 0.0) -> tuple[float, int]:
    """Returns the scale, a float32 number, and the zero point of uint8 for values from `least` to `most`, zero included.

    The scale is at least `smallest`, with a factor of 2 to spare.
    """
    least, most = min(0.0, least), max(0.0, most)
    # An activation that is always zero gets the steps of one from 0 to 1: tiny ones would leave no room for the biases.
    scale = float(np.float32(max((most - least) / 255, SMALLEST_BEHIND_CLIP, 2 * smallest) if most > least else max(1 / 255, 2 * smallest)))
    return scale, int(np.clip(np.rint(-least / scale), 0, 255))


class IntegerAffine(NamedTuple):
    """Integers (as floats) and float32 scales, one for each output, of a weight [out, …] and a bias [out]."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    bias_scale: Tensor

    def floats(self) -> tuple[Tensor, Tensor | None]:
        """Returns the float32 weight and bias that DequantizeLinear makes of them."""
        weight = self.weight.float() * self.weight_scale.view(-1, *(1 for _ in self.weight.shape[1:]))
        return weight, None if self.bias is None else self.bias.float() * self.bias_scale


@torch.no_grad()
def integer_affine(weight: Tensor, bias: Tensor | None, grid: FakeQuant) -> IntegerAffine:
    """Returns a weight in steps of −64 … 64 and a bias in int32 ones, symmetric, for each output; `grid` is that of the layer's input.

    Weight steps are as small as the largest weight of the output allows, and as large as the bias needs; zero stays zero.
    """
    weight = weight.double()
    scale = (weight.flatten(1).abs().amax(1) / MAX_WEIGHT).clamp(min=SMALLEST_SCALE)
    if bias is not None:
        bias = bias.double()
        scale = torch.maximum(scale, bias.abs() / (grid.scale * LARGEST_BIAS))
    scale = scale.float()
    steps = torch.round(weight / scale.double().view(-1, *(1 for _ in weight.shape[1:]))).clamp(-MAX_WEIGHT, MAX_WEIGHT)
    bias_scale = scale * scale.new_full((), grid.scale)
    return IntegerAffine(steps, scale, None if bias is None else torch.round(bias / bias_scale.double()), bias_scale)


def unused(name: str, taken: Callable[[str], bool]) -> str:
    """Returns `name`, or `name_2`, `name_3`, … where it is taken."""
    candidate, count = name, 1
    while taken(candidate):
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def _wanted(graph: Graph) -> set[str]:
    """Returns the nodes that move values which only operators on integers read, through further such nodes or at once.

    What any other operator reads too is quantised behind the move, for the operators on integers alone.
    """
    readers = graph.consumers()
    wanted: set[str] = set()
    nodes: Iterable[Node] = reversed(graph.nodes)
    for node in nodes:
        reads = readers[node.name]
        if node.on_quantised == "moves" and reads and all(isinstance(one, _ON_INTEGERS) or one.name in wanted for one in reads):
            wanted.add(node.name)
    return wanted - {graph.output}
