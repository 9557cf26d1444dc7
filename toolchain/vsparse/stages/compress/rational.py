"""Evaluation of a graph in exact rational arithmetic, on integers with one common scale for each activation."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import gcd, isfinite, lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import (
    Add,
    AddConstant,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv,
    DivConstant,
    FakeQuant,
    Graph,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Neg,
    Node,
    Pad,
    Relu,
    Reshape,
    Sigmoid,
    Slice,
    Sub,
    Tanh,
    Transpose,
)
from vsparse.stages.compress.state import apply_masks

Integers = NDArray[Any]  # object array of Python integers


@dataclass(frozen=True)
class Exact:
    """The value `integers · scale`, exactly."""

    integers: Integers
    scale: Fraction

    def reshape(self, shape: tuple[int, ...]) -> Exact:
        """Returns the same values in another shape."""
        return Exact(self.integers.reshape(shape), self.scale)

    def fractions(self) -> list[Fraction]:
        """Returns the values as a flat list."""
        return [value * self.scale for value in self.integers.reshape(-1).tolist()]


def from_floats(values: NDArray[np.floating[Any]]) -> Exact:
    """Returns finite binary floating-point values as they are."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    integers = (mantissa * 2.0**53).astype(np.int64)
    exponent = exponent.astype(np.int64) - 53
    lowest = int(exponent[integers != 0].min(initial=0))
    shifts = np.where(integers == 0, 0, exponent - lowest)
    return Exact(integers.astype(object) << shifts.astype(object), Fraction(2) ** lowest)


def from_fractions(values: list[Fraction]) -> Exact:
    """Returns rationals over their least common denominator."""
    denominator = lcm(*(value.denominator for value in values)) if values else 1
    integers = np.array([value.numerator * (denominator // value.denominator) for value in values], dtype=object)
    return Exact(integers, Fraction(1, denominator))


def _aligned(a: Exact, b: Exact) -> tuple[Integers, Integers, Fraction]:
    """Returns both values over their greatest common scale."""
    left, right = a.scale.numerator * b.scale.denominator, b.scale.numerator * a.scale.denominator
    common = gcd(left, right)
    return a.integers * (left // common), b.integers * (right // common), Fraction(common, a.scale.denominator * b.scale.denominator)


def _sum(a: Exact, b: Exact) -> Exact:
    left, right, scale = _aligned(a, b)
    return Exact(left + right, scale)


def _padded(x: Integers, pads: tuple[int, int, int, int], value: int = 0) -> Integers:
    top, left, bottom, right = pads
    channels, height, width = x.shape
    result = np.full((channels, height + top + bottom, width + left + right), value, dtype=object)
    result[:, top : top + height, left : left + width] = x
    return result


def _window(x: Integers, row: int, column: int, stride: tuple[int, int], size: tuple[int, ...]) -> Integers:
    """Returns the positions that tap (row, column) meets, as [..., size]."""
    return x[..., row : row + stride[0] * (size[0] - 1) + 1 : stride[0], column : column + stride[1] * (size[1] - 1) + 1 : stride[1]]


def _affine(node: Affine, weight: Integers, x: Integers) -> Integers:
    result = np.zeros(node.shape, dtype=object)
    if not isinstance(node, Conv):
        for row in range(node.shape[0]):
            used = np.flatnonzero(weight[row])
            result[row] = sum((weight[row, used] * x[used]).tolist())
        return result
    x = _padded(x, node.pads)
    per_group = node.shape[0] // node.groups
    for out, channel, row, column in np.argwhere(weight).tolist():
        source = x[(out // per_group) * weight.shape[1] + channel]
        tap = _window(source, row * node.dilation[0], column * node.dilation[1], node.stride, node.shape[1:])
        result[out] = result[out] + weight[out, channel, row, column] * tap
    return result


def _pool(node: MaxPool | AveragePool, x: Exact) -> Exact:
    integers = _padded(x.integers, node.pads, x.integers.min()) if isinstance(node, MaxPool) else x.integers
    windows = [_window(integers, r, c, node.stride, node.shape[1:]) for r in range(node.kernel[0]) for c in range(node.kernel[1])]
    total = windows[0]
    for window in windows[1:]:
        total = np.maximum(total, window) if isinstance(node, MaxPool) else total + window
    return Exact(total, x.scale if isinstance(node, MaxPool) else x.scale / len(windows))


def has_exact_values(graph: Graph) -> bool:
    """Returns whether every operator maps rational numbers to rational ones that can be told here."""
    return not any(isinstance(node, Sigmoid | Tanh | FakeQuant) for node in graph.nodes)


def _curve(node: LeakyRelu | Clip, x: Exact) -> Exact:
    if isinstance(node, LeakyRelu):
        slope = Fraction(node.slope)
        return Exact(np.where(x.integers > 0, x.integers * slope.denominator, x.integers * slope.numerator), x.scale / slope.denominator)
    for end, pick in ((node.lowest, np.maximum), (node.highest, np.minimum)):
        if isfinite(end):
            left, right, scale = _aligned(x, from_fractions([Fraction(end)]))
            x = Exact(pick(left, right), scale)
    return x


def _moved(node: Transpose | Concat | Slice | Pad, inputs: list[Exact]) -> Exact:
    x = inputs[0]
    if isinstance(node, Transpose):
        return Exact(x.integers.transpose(node.order), x.scale)
    if isinstance(node, Slice):
        places = tuple(slice(i, j, step) for i, j, step in zip(node.starts, node.stops, node.steps, strict=True))
        return Exact(x.integers[places], x.scale)
    if isinstance(node, Pad):
        values, filled, scale = _aligned(x, from_fractions([Fraction(node.value)]))
        padded = np.full(node.shape, filled[0], dtype=object)  # np.pad would put in machine integers, which wrap around
        padded[tuple(slice(i, i + size) for i, size in zip(node.before, values.shape, strict=True))] = values
        return Exact(padded, scale)
    for other in inputs[1:]:
        left, right, scale = _aligned(x, other)
        x = Exact(np.concatenate([left, right], axis=node.axis), scale)
    return x


def _apply(node: Node, graph: Graph, biases: dict[str, list[Fraction]], inputs: list[Exact]) -> Exact:
    x = inputs[0]
    if isinstance(node, Affine):
        weight = from_floats(graph.params[node.weight])
        result = Exact(_affine(node, weight.integers, x.integers), weight.scale * x.scale)
        if node.bias is None:
            return result
        bias = from_fractions(biases[node.bias]) if node.bias in biases else from_floats(graph.params[node.bias])
        return _sum(result, bias.reshape((-1, *(1 for _ in node.shape[1:]))))
    if isinstance(node, Relu):
        return Exact(np.where(x.integers > 0, x.integers, 0), x.scale)
    if isinstance(node, Add):
        return _sum(x, inputs[1])
    if isinstance(node, AddConstant):
        return _sum(x, from_floats(graph.params[node.constant])).reshape(node.shape)
    if isinstance(node, MulConstant):
        factor = from_floats(graph.params[node.constant])
        return Exact(x.integers * factor.integers, x.scale * factor.scale).reshape(node.shape)
    if isinstance(node, Reshape):
        return x.reshape(node.shape)
    if isinstance(node, MaxPool | AveragePool):
        return _pool(node, x)
    if isinstance(node, DivConstant):
        divisors = [1 / Fraction(value) for value in graph.params[node.constant].astype(np.float64).reshape(-1).tolist()]
        factor = from_fractions(divisors).reshape(graph.params[node.constant].shape)
        return Exact(x.integers * factor.integers, x.scale * factor.scale).reshape(node.shape)
    if isinstance(node, Sub):
        return _sum(x, Exact(inputs[1].integers, -inputs[1].scale))
    if isinstance(node, Neg):
        return Exact(-x.integers, x.scale)
    if isinstance(node, LeakyRelu | Clip):
        return _curve(node, x)
    if isinstance(node, Transpose | Concat | Slice | Pad):
        return _moved(node, inputs)
    raise TypeError(f"{node.name} has type {type(node).__name__}, which has no exact evaluation")


def evaluate(graph: Graph, x: NDArray[np.floating[Any]], biases: dict[str, list[Fraction]] | None = None) -> list[Fraction]:
    """Returns the exact outputs for one input x [*input_shape], floating point taken at face value.

    `biases` gives exact values for biases by parameter name, in place of the float32 ones. Cost: about 0.1 µs for each
    multiply-accumulate with a non-zero weight.
    """
    values = {graph.input: from_floats(x)}
    for node in apply_masks(graph, {}).nodes:
        values[node.name] = _apply(node, graph, biases or {}, [values[name] for name in node.inputs])
    return values[graph.output].fractions()
