"""What the live certificate is computed with, each number rounded up (docs/numerics.md, section 14.2)."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import inf, prod

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.graph.ir import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu, Reshape
from vsparse.stages.export.c_source.layers import bias_of
from vsparse.stages.export.c_source.lives import Lives

# Magnitudes beyond this are not certified; sums of weights, biases and constants beyond it are refused.
LIMIT = 2.0**40
# Terms of one sum: γ stays far below 1, and 4φ below FLOOR.
MOST_TERMS = 2**20
# What is added to the radius of every result but those of sums of products, whose tables hold it.
FLOOR = 2.0**-56
# Half of a sum, rounded up: h of a ReLU that is neither active nor inactive.
HALF_UP = 0.5 + 2.0**-22
# The widths that ends have been rounded to, and a radius made of them.
WIDER = 1 + 2.0**-22
# |k| for the two roundings of an addition of a constant.
CONSTANT = 2.0**-21
# A margin's error, its own roundings included; and by how much of its magnitude the margin that is told is lowered.
ENLARGE, LOWER = 1 + 2.0**-20, 2.0**-22
_UNIT = Fraction(1, 2**24)
# g of the operators with one or two terms.
_FEW = {Add: 2, AddConstant: 3, MulConstant: 3, MaxPool: 2}


def gamma(roundings: int) -> Fraction:
    """Returns γ_n = n·u / (1 − n·u) of float32, exactly (Higham 2002, chapter 3)."""
    return roundings * _UNIT / (1 - roundings * _UNIT)


def float32_up(value: Fraction) -> np.float32:
    """Returns the least float32 number that is at least `value`."""
    nearest = np.float32(float(value))
    return nearest if Fraction(float(nearest)) >= value else np.nextafter(nearest, np.float32(inf))


def terms_of(graph: Graph, node: Conv | Gemm) -> int:
    """Returns the largest number of non-zero weights of a row, at least 1."""
    weight = graph.params[node.weight]
    return max(1, int(np.count_nonzero(weight.reshape(len(weight), -1), axis=1).max(initial=0)))


def need(graph: Graph, node: Node) -> Fraction:
    """Returns the factor g that one reader of an activation needs."""
    roundings = _FEW.get(type(node), 0)
    if isinstance(node, Conv | Gemm):
        roundings = terms_of(graph, node) + 1
    elif isinstance(node, AveragePool):
        roundings = prod(node.kernel) + 2
    return 2 * gamma(roundings) / (1 - gamma(roundings))


def growth(graph: Graph, lives: Lives) -> dict[str, np.float32]:
    """Returns g′ of each array by the name of its root: what its stored radius is enlarged by, for each unit of |c| + r."""
    needs: dict[str, Fraction] = dict.fromkeys(lives.spans, Fraction(0))
    for node in graph.nodes:
        for name in node.inputs:
            root = lives.roots[name]
            needs[root] = max(needs[root], need(graph, node))
    return {root: float32_up((one + 2 * _UNIT) * (1 + Fraction(1, 2**20))) for root, one in needs.items()}


def spread(graph: Graph, node: Conv | Gemm) -> NDArray[np.float32]:
    """Returns σ [out] of a sum of products: what its radius starts with."""
    terms = terms_of(graph, node)
    own, flushed = gamma(terms + 1), Fraction(terms, 2**80)
    return np.array([float32_up((2 * own * abs(Fraction(float(b))) + 4 * flushed) / (1 - own)) for b in bias_of(graph, node)], np.float32)


def of_input(data_range: tuple[float, float]) -> np.float32:
    """Returns what the radius of an input is enlarged by, for the rounding of the region's ends."""
    low, high = (Fraction(end) for end in data_range)
    return float32_up(2 * _UNIT * (max(abs(low), abs(high)) + high - low) + Fraction(FLOOR))


def of_margin(terms: int) -> np.float32:
    """Returns G of rows of so many weights (docs/numerics.md, section 14.3)."""
    return float32_up(8 * gamma(terms + 4))


def folded(graph: Graph) -> Gemm | None:
    """Returns the fully connected layer whose rows are folded into the margins: the last operator, but for reshaping; None: another one."""
    nodes: Mapping[str, Node] = {node.name: node for node in graph.nodes}
    name = graph.output
    while isinstance(nodes.get(name), Reshape):
        name = nodes[name].inputs[0]
    last = nodes.get(name)
    alone = sum(name in node.inputs for node in graph.nodes) == (0 if name == graph.output else 1)
    return last if isinstance(last, Gemm) and alone else None


def require_live_form(graph: Graph, data_range: tuple[float, float]) -> None:
    """Raises InputError for a network or data range that has no live certificate, naming the node."""
    require_range(graph, data_range)
    for node in graph.nodes:
        _require(graph, node)
    require_rows(graph, folded(graph))


def require_rows(graph: Graph, last: Gemm | None) -> None:
    """Raises InputError where the rows of the folded layer, zeros among them, are too long for the error of a margin."""
    if last is not None and len(graph.params[last.weight][0]) >= MOST_TERMS:
        length = len(graph.params[last.weight][0])
        raise InputError(
            f'node "{last.name}" has rows of {length} weights, and a live certificate subtracts rows of up to {MOST_TERMS - 1}'
        )


def require_range(graph: Graph, data_range: tuple[float, float]) -> None:
    """Raises InputError for a data range whose ends are no float32 numbers of an ordinary size, and for a network without classes."""
    for end in data_range:
        if not abs(end) <= LIMIT / 4 or Fraction(float(np.float32(end))) != Fraction(end):
            raise InputError(f"the data range ends at {end}, which is no float32 number up to 2^38; the live certificate needs one")
    if not data_range[0] < data_range[1]:
        raise InputError(f"the data range {data_range} is empty; give (lowest, highest)")
    if prod(graph.shape_of(graph.output)) < 2:
        raise InputError("the network has one output and no classes; leave deploy.live out")


def _require(graph: Graph, node: Node) -> None:
    known = (Conv, Gemm, AveragePool, Relu, Reshape, *_FEW)
    if not isinstance(node, known):
        raise InputError(f'node "{node.name}" is a {type(node).__name__}, which has no interval form in C; leave deploy.live out')
    most, terms = 0.0, 1
    if isinstance(node, Conv | Gemm):
        weight = graph.params[node.weight].astype(np.float64)
        most = float(np.abs(weight).reshape(len(weight), -1).sum(axis=1).max(initial=0))
        most, terms = max(most, float(np.abs(bias_of(graph, node)).max(initial=0))), terms_of(graph, node)
    elif isinstance(node, AddConstant | MulConstant):
        most = float(np.abs(graph.params[node.constant]).max(initial=0))
    elif isinstance(node, AveragePool):
        terms = prod(node.kernel)
    if not most * (1 + 2.0**-20) <= LIMIT:
        raise InputError(f'node "{node.name}" has weights that add up to {most:.3g}, beyond the 2^40 of a live certificate; rescale it')
    if terms >= MOST_TERMS:
        raise InputError(f'node "{node.name}" adds {terms} terms, and a live certificate bounds sums of up to {MOST_TERMS - 1}')
