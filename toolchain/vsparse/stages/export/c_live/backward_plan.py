"""What a backward pass over interval bounds passes, keeps and is charged for: one plan for the C and its simulation.

The bound, its charges and their proof: docs/numerics.md, section 16. Nothing here depends on the kernels of an inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from math import prod

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import AddConstant, Affine, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu, Reshape
from vsparse.stages.export.c_live.constants import FLOOR, float32_up, gamma, terms_of
from vsparse.stages.export.c_source.layers import bias_of

# What a radius or an offset is enlarged by for its own few roundings, and the share of a magnitude that one rounding is charged with.
UP, ONE_ROUNDING = 1 + 2.0**-21, 2.0**-22
# Sums over elements are kept in so many lanes, element i in lane i mod 8, which are added as a tree.
LANES = 8
# Upper slopes beyond this, that is centres above zero by more than rounding, take the lower slope 1, as on the host.
HALF = 0.5 + 2.0**-21
# Sums that all of a pass adds up to: three for each node, and a few.
_SPARE = Fraction(1, 2**10)
_UNIT = Fraction(1, 2**24)
# Indexes of elements are kept as float32 numbers.
MOST_INDEXES = 2**23
# What is kept of an operator, where that is not its cost alone.
_KEPT: dict[type[Node], tuple[str, ...]] = {Relu: ("slope", "offset"), MaxPool: ("cost", "best", "top")}


def depth(count: int) -> int:
    """Returns at most how many roundings a term of a sum of so many elements in lanes meets, its own two included."""
    return -(-count // LANES) + 6


@dataclass(frozen=True)
class CoefficientGrid:
    """Where the coefficients of a convolution's padded input are added up: by phases of the strides, so that outputs are one run.

    Input (c, Y, X), padding included, lies at c · `step` + ((Y mod sy) · sx + X mod sx) · rows · pitch + (Y / sy) · pitch + X / sx.
    `offsets` int64 [in/groups · kh · kw] are those of output (0, 0) for the weights of a filter; output (y, x) lies y · pitch + x behind.
    `run` is the length of all outputs, `size` that of all channels.
    """

    rows: int
    pitch: int
    step: int
    run: int
    size: int
    offsets: NDArray[np.int64]


def grid_of(graph: Graph, node: Conv) -> CoefficientGrid:
    """Returns the grid of a convolution."""
    _, channels, kh, kw = graph.params[node.weight].shape
    (sy, sx), (dy, dx), (_, height, width) = node.stride, node.dilation, node.shape
    rows, pitch = height + (kh - 1) * dy // sy, width + (kw - 1) * dx // sx
    step = sy * sx * rows * pitch
    offsets = [
        c * step + ((y * dy % sy) * sx + x * dx % sx) * rows * pitch + y * dy // sy * pitch + x * dx // sx
        for c in range(channels)
        for y in range(kh)
        for x in range(kw)
    ]
    size = graph.shape_of(node.inputs[0])[0] * step
    return CoefficientGrid(rows, pitch, step, (height - 1) * pitch + width, size, np.array(offsets, np.int64))


@dataclass(frozen=True)
class BackwardPlan:
    """One pass: `walk` are the operators that coefficients pass, last first, the first `head` of them in front of `stop`.

    `stop` is the activation behind which operators are linear and have one input each: rows of the margins are bounded there by intervals
    first. `ends` are the activations whose coefficients are bounded by their interval; `joins` those that several operators read. Sizes
    are by the name of an activation (`key`), and `offsets` are those of what the interval pass keeps, in floats.
    """

    graph: Graph
    walk: tuple[Node, ...]
    head: int
    stop: str
    ends: tuple[str, ...]
    joins: tuple[str, ...]
    offsets: Mapping[str, int] = field(default_factory=dict)
    floats: int = 0

    def size_of(self, name: str) -> int:
        """Returns the elements of an activation."""
        return prod(self.graph.shape_of(name))

    def is_relu(self, name: str) -> bool:
        """Returns whether no element of an activation is negative, as a ReLU made it."""
        return any(isinstance(node, Relu) and node.name == self.key(name) for node in self.graph.nodes)

    def key(self, name: str) -> str:
        """Returns the activation whose elements these are: reshaping moves none."""
        return key_of({node.name: node for node in self.graph.nodes}, name)


def key_of(nodes: Mapping[str, Node], name: str) -> str:
    """Returns the activation that a name stands for, by what it was before it was reshaped."""
    while isinstance(nodes.get(name), Reshape):
        name = nodes[name].inputs[0]
    return name


def plan_of(graph: Graph) -> BackwardPlan:
    """Returns the plan of a network whose operators all have an interval form in C."""
    nodes = {node.name: node for node in graph.nodes}
    key = partial(key_of, nodes)
    needed, readers = {key(graph.output)}, dict[str, int]()
    walk: list[Node] = []
    for node in reversed(graph.nodes):
        if node.name not in needed or isinstance(node, Reshape) or _ends_there(graph, node):
            continue
        walk.append(node)
        for name in map(key, node.inputs):
            needed.add(name)
            readers[name] = readers.get(name, 0) + 1
    stop, head = key(graph.output), 0
    for node in walk:
        if node.name != stop or not isinstance(node, Affine | AveragePool | AddConstant | MulConstant) or readers[key(node.inputs[0])] > 1:
            break
        stop, head = key(node.inputs[0]), head + 1
    others = [name for name in (graph.input, *nodes) if name in needed and (name not in nodes or _ends_there(graph, nodes[name]))]
    ends = tuple(dict.fromkeys((stop, *others)))
    joins = tuple(name for name, count in readers.items() if count > 1)
    plan = BackwardPlan(graph, tuple(walk), head, stop, ends, joins)
    sizes = {**{f"c {name}": plan.size_of(name) for name in ends}, **{f"r {name}": plan.size_of(name) for name in ends}}
    sizes |= {f"join {name}": plan.size_of(name) for name in joins}
    for node in walk:
        kinds = _KEPT.get(type(node), ("cost",))
        sizes |= {f"{kind} {node.name}": node.size for kind in kinds}
    sizes["margins"] = plan.size_of(graph.output)
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // 16) * 16
    return BackwardPlan(graph, plan.walk, head, stop, ends, joins, offsets, end)


def _ends_there(graph: Graph, node: Node) -> bool:
    """Returns whether coefficients of an operator's result are bounded there: pools of so many elements that float32 has no index."""
    return isinstance(node, MaxPool) and prod(graph.shape_of(node.inputs[0])) >= MOST_INDEXES


def fan_in(graph: Graph, node: Node) -> int:
    """Returns at most how many products are added up to one coefficient of an operator's input."""
    if isinstance(node, Gemm):
        return max(1, int(np.count_nonzero(graph.params[node.weight], axis=0).max(initial=0)))
    assert isinstance(node, Conv | AveragePool | MaxPool)
    if isinstance(node, AveragePool | MaxPool):
        return prod(-(-k // s) for k, s in zip(node.kernel, node.stride, strict=True))
    out, _, *kernel = graph.params[node.weight].shape
    most: int = out // node.groups
    for size, stride, dilation in zip(kernel, node.stride, node.dilation, strict=True):
        most *= int(np.bincount([k * dilation % stride for k in range(size)]).max())
    return most


def cost_of(graph: Graph, node: Conv | Gemm | AveragePool) -> tuple[np.float32, np.float32]:
    """Returns (factor, constant) of what a unit of |coefficient| of a sum costs, by the sum of magnitudes of its terms."""
    back, spare = gamma(fan_in(graph, node) + 3), 1 / (1 - gamma(depth(node.size)))
    if isinstance(node, AveragePool):
        terms, of_bias = prod(node.kernel), Fraction(0)
    else:
        terms = terms_of(graph, node)
        positions = prod(node.shape[1:])
        roundings = depth(positions) + node.shape[0] + 2 if positions > 1 else depth(node.size)
        most = Fraction(float(np.abs(bias_of(graph, node)).max(initial=0)))
        of_bias = (gamma(terms + 1) + gamma(roundings)) * most
    own = gamma(terms + 2)
    up = spare * Fraction(UP)
    flushed = Fraction(4 * terms, 2**80) + Fraction(FLOOR)
    return float32_up((own + back) / (1 - gamma(terms + 3)) * up), float32_up((of_bias + flushed) * up)


def of_pool(graph: Graph, node: MaxPool) -> np.float32:
    """Returns what a unit of |coefficient| of a maximum costs for each unit of the magnitude of the input that it is passed to."""
    return float32_up(gamma(fan_in(graph, node)) / (1 - gamma(depth(node.size))) * Fraction(UP))


def of_constant(node: AddConstant) -> np.float32:
    """Returns what a unit of |coefficient| of an addition of a constant costs for each unit of its magnitude."""
    return float32_up((gamma(depth(node.size)) + 2 * _UNIT) / (1 - gamma(depth(node.size))) * Fraction(UP))


def spare_of(size: int) -> np.float32:
    """Returns the factor of a ReLU's offsets: their own roundings, and those of the sum that they are taken in."""
    return float32_up(Fraction(UP) * Fraction(UP) / (1 - gamma(depth(size))))


def of_end(size: int) -> np.float32:
    """Returns what the radius of an activation that ends a pass is enlarged by, for each unit of |c| + r."""
    own = gamma(depth(size))
    return float32_up((own / (1 - own) + 4 * _UNIT) * Fraction(UP))


def total_of(plan: BackwardPlan) -> tuple[np.float32, np.float32]:
    """Returns (factor, constant) of the error of a bound: for each unit of the magnitudes of its parts, and what underflow costs."""
    parts = 3 * len(plan.walk) + len(plan.ends) + 4 * len(plan.joins) + 8
    flushed = Fraction(0)
    for node in plan.walk:
        flushed += Fraction(node.size + sum(plan.size_of(name) for name in node.inputs), 2**42)
        if isinstance(node, Affine):
            flushed += Fraction(int(np.count_nonzero(plan.graph.params[node.weight])) * prod(node.shape[1:]), 2**84)
        elif isinstance(node, AveragePool):
            flushed += Fraction(node.size * prod(node.kernel), 2**84)
    return float32_up(2 * gamma(parts) * (1 + _SPARE)), float32_up(flushed + Fraction(FLOOR))
