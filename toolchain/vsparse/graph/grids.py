"""Where and how the int8 file rounds: grids of activations from their ranges, integers of weights and biases.

See docs/numerics.md, section 7.1.

One code for the file that is exported and for the training that simulates it. The scheme is that of Jacob et al., arXiv 1712.05877,
section 2, with the weights one bit short so that no x86 kernel saturates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsparse.errors import InputError, nearest
from vsparse.graph.core import Graph, Node
from vsparse.graph.operators.affine import Affine
from vsparse.graph.operators.arithmetic import Add
from vsparse.graph.operators.moves import Concat
from vsparse.graph.operators.pooling import AveragePool
from vsparse.graph.operators.quantised import FakeQuant, moved_grid
from vsparse.graph.quantised import MAX_WEIGHT, MAX_WEIGHT_TENSORRT, SMALLEST_BEHIND_CLIP, Behind, carried
from vsparse.graph.shapes import show

# Far from where a product of scales could underflow; only a channel that is nearly dead comes near.
SMALLEST_SCALE = 2.0**-30
# A bias above this many steps makes its channel's steps larger; int32 keeps seven bits in reserve for the sum.
LARGEST_BIAS = 2.0**24

_ON_INTEGERS = Affine | Add | AveragePool

Range = tuple[float, float]


@dataclass(frozen=True)
class GridStyle:
    """How a runtime wants its int8 files written.

    Activations have steps from `lowest` to `highest`; with `symmetric` ones zero is the step 0, and the biases stay in float32. With
    `joins` an average, a concatenation and the operands of an addition lie on one scale, and one operand of an addition that a product
    makes for it alone stays in float32, as that runtime adds the other one at the end of the product.
    """

    lowest: int = 0
    highest: int = 255
    largest_weight: int = MAX_WEIGHT
    symmetric: bool = False
    joins: bool = False


# By the contract that a file is certified under (docs/numerics.md, sections 7.1 and 7.5).
STYLES: dict[str, GridStyle] = {
    "int8": GridStyle(),
    "int8-tensorrt": GridStyle(-128, 127, MAX_WEIGHT_TENSORRT, symmetric=True, joins=True),
}


class Gridded(NamedTuple):
    """Nodes with grids between them; for each affine node on integers the grid that its input lies on."""

    nodes: tuple[Node, ...]
    grids: dict[str, FakeQuant]


def with_grids(
    graph: Graph,
    ranges: Mapping[str, Range],
    kind: type[FakeQuant] = FakeQuant,
    style: GridStyle = STYLES["int8"],
    floats: frozenset[str] = frozenset(),
    shares: Mapping[str, float] | None = None,
) -> Gridded:
    """Returns the nodes of a graph with its affine operators, additions and averages on quantised inputs; parameters as they were.

    `ranges` has the least and the greatest value of each activation that `gridded_activations` names; new nodes are of type `kind`. The
    affine nodes `floats` stay in float32, and what only they read is not quantised. `shares`, by activation, says how much of its range a
    grid covers (default: all); activations that share a scale have the least share that one of them has.
    """
    names = {graph.input, *(node.name for node in graph.nodes)}
    wanted = _wanted(graph, floats)
    cut = (
        _joined(graph, ranges, shares or {})
        if style.joins
        else {name: _cut(ends, (shares or {}).get(name, 1.0)) for name, ends in ranges.items()}
    )
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
            scale, zero = grid_of(*cut[name], before.get(name, Behind()).least_scale, style)
            shape, ends = graph.shape_of(name), (style.lowest, style.highest)
            node = kind(name=free, inputs=(name,), shape=shape, scale=scale, zero_point=zero, lowest=ends[0], highest=ends[1])
            nodes.append(node)
            names.add(free)
            grids[free] = node
            quantised[name] = free
        return quantised[name]

    for node in graph.nodes:
        if (isinstance(node, _ON_INTEGERS) and node.name not in floats) or node.name in wanted:
            kept = _added_at_the_end(graph, node) if style.joins else None
            node = replace(node, inputs=tuple(name if i == kept else on_grid(name) for i, name in enumerate(node.inputs)))
        if isinstance(node, Affine) and node.name not in floats:
            grid = grids[node.inputs[0]]
            assert grid is not None
            inputs[node.name] = grid
        nodes.append(node)
        grids[node.name] = moved_grid(node, grids)
        before[node.name] = carried(node, before, scale_of)
    return Gridded(tuple(nodes), inputs)


def gridded_activations(graph: Graph, style: GridStyle = STYLES["int8"], floats: frozenset[str] = frozenset()) -> list[str]:
    """Returns the names of the activations that `with_grids` puts a grid on."""
    names = [graph.input, *(node.name for node in graph.nodes)]
    found = with_grids(graph, dict.fromkeys(names, (0.0, 1.0)), style=style, floats=floats)
    return [node.inputs[0] for node in found.nodes if isinstance(node, FakeQuant)]


def named_layers(graph: Graph, wanted: Sequence[str], key: str) -> frozenset[str]:
    """Returns the affine nodes that names mean: their own, or `first` and `last`, in the order of the network.

    Raises InputError that names `key` where there is no such layer.
    """
    layers = [node.name for node in graph.nodes if isinstance(node, Affine)]
    ends = {"first": layers[:1], "last": layers[-1:]}
    for name in wanted:
        if name not in ends and name not in layers:
            raise InputError(
                f'{key} names "{show(name)}", and the network has no such layer{nearest(name, layers)}; its layers are '
                f"{', '.join(show(one) for one in layers)}, and first and last are understood too"
            )
    return frozenset(name for one in wanted for name in ([one] if one in layers else ends[one]))


def grid_of(least: float, most: float, smallest: float = 0.0, style: GridStyle = STYLES["int8"]) -> tuple[float, int]:
    """Returns the scale, a float32 number, and the zero point of a style for values from `least` to `most`, zero included.

    The scale is at least `smallest`, with a factor of 2 to spare.
    """
    if style.symmetric:
        size = max(-least, most)
        steps = max(size / style.highest, SMALLEST_BEHIND_CLIP) if size > 0 else 1 / style.highest
        return float(np.float32(max(steps, 2 * smallest))), 0
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
def integer_affine(weight: Tensor, bias: Tensor | None, grid: FakeQuant, largest: int = MAX_WEIGHT) -> IntegerAffine:
    """Returns a weight in steps of −largest … largest and a bias in int32 ones, symmetric, for each output; `grid` is its input's.

    Weight steps are as small as the largest weight of the output allows, and as large as the bias needs; zero stays zero.
    """
    weight = weight.double()
    scale = (weight.flatten(1).abs().amax(1) / largest).clamp(min=SMALLEST_SCALE)
    if bias is not None:
        bias = bias.double()
        scale = torch.maximum(scale, bias.abs() / (grid.scale * LARGEST_BIAS))
    scale = scale.float()
    steps = torch.round(weight / scale.double().view(-1, *(1 for _ in weight.shape[1:]))).clamp(-largest, largest)
    bias_scale = scale * scale.new_full((), grid.scale)
    return IntegerAffine(steps, scale, None if bias is None else torch.round(bias / bias_scale.double()), bias_scale)


def unused(name: str, taken: Callable[[str], bool]) -> str:
    """Returns `name`, or `name_2`, `name_3`, … where it is taken."""
    candidate, count = name, 1
    while taken(candidate):
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def _added_at_the_end(graph: Graph, node: Node) -> int | None:
    """Returns which operand of an addition is a product that nothing else reads, the last such, None where none is."""
    readers = graph.consumers()
    made = {one.name: one for one in graph.nodes}
    alone = [i for i, name in enumerate(node.inputs) if isinstance(made.get(name), Affine) and len(readers[name]) == 1]
    return alone[-1] if isinstance(node, Add) and alone else None


def _cut(ends: Range, share: float) -> Range:
    return ends[0] * share, ends[1] * share


def _joined(graph: Graph, ranges: Mapping[str, Range], shares: Mapping[str, float]) -> dict[str, Range]:
    """Returns ranges, cut to their shares, that are one for the activations which share a scale: see `GridStyle.joins`."""
    leader = {name: name for name in (graph.input, *(node.name for node in graph.nodes))}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for node in graph.nodes:
        together = list(node.inputs)
        if isinstance(node, Add):
            kept = _added_at_the_end(graph, node)
            together = [] if kept is not None else together
        elif isinstance(node, AveragePool | Concat) or node.on_quantised == "moves":
            together = [*together, node.name]
        else:
            together = []
        for name in together[1:]:
            leader[find(name)] = find(together[0])
    found: dict[str, Range] = {}
    for name, (least, most) in ranges.items():
        one = find(name)
        before = found.get(one, (least, most))
        found[one] = min(before[0], least), max(before[1], most)
    least_share: dict[str, float] = {}
    for name, share in shares.items():
        least_share[find(name)] = min(least_share.get(find(name), share), share)
    return {name: _cut(found[find(name)], least_share.get(find(name), 1.0)) for name in ranges}


def _wanted(graph: Graph, floats: frozenset[str]) -> set[str]:
    """Returns the nodes that move values which only operators on integers read, through further such nodes or at once.

    What any other operator reads too is quantised behind the move, for the operators on integers alone.
    """
    readers = graph.consumers()
    wanted: set[str] = set()
    nodes: Iterable[Node] = reversed(graph.nodes)
    for node in nodes:
        reads = readers[node.name]
        integers = all((isinstance(one, _ON_INTEGERS) and one.name not in floats) or one.name in wanted for one in reads)
        if node.on_quantised == "moves" and reads and integers:
            wanted.add(node.name)
    return wanted - {graph.output}
