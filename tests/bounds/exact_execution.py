"""The exact value of an operator, in rational arithmetic, on given inputs."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import singledispatch
from typing import Any

import numpy as np

from vsparse.graph.ir import (
    Add,
    AddConstant,
    Affine,
    AveragePool,
    Clip,
    Concat,
    DivConstant,
    FakeQuant,
    Gather,
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

DIGITS = 60  # of e^x, far more than any bound's own rounding


def rationals(values: np.ndarray) -> np.ndarray:
    """Returns float64 values as an array of Fractions, of the same shape."""
    return np.array([Fraction(float(v)) for v in np.asarray(values).reshape(-1)], dtype=object).reshape(np.shape(values))


def exact_node(device: Any, node: Node, *inputs: np.ndarray) -> list[Fraction]:
    """Returns one operator's outputs on the given (deployed) inputs [*shape], flat; `device` has the graph's `params` and `sums`."""
    return list(exact(node, device, *(rationals(x) for x in inputs)).reshape(-1))


def exact_run(graph: Graph, device: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns every activation of one sample in rational arithmetic, as arrays of Fractions."""
    values = {graph.input: rationals(x)}
    for node in graph.nodes:
        values[node.name] = exact(node, device, *(values[name] for name in node.inputs))
    return values


@singledispatch
def exact(node: Node, device: Any, *inputs: np.ndarray) -> np.ndarray:
    """Returns a node's output [*shape] of Fractions for inputs of Fractions."""
    raise AssertionError(f"no exact arithmetic is known for {type(node).__name__}: register it here")


def _array(values: Iterable[Fraction], shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty(int(np.prod(shape)), dtype=object)
    out[:] = list(values)
    return out.reshape(shape)


def _constant(device: Any, node: Any) -> np.ndarray:
    return rationals(np.broadcast_to(device.params[node.constant], node.shape))


@exact.register
def _(node: Affine | AveragePool, device: Any, x: np.ndarray) -> np.ndarray:
    scale = Fraction(1, node.kernel[0] * node.kernel[1]) if isinstance(node, AveragePool) else Fraction(1)
    flat = x.reshape(-1)
    rows = device.sums[node.name]
    return _array((scale * (sum((Fraction(w) * flat[i] for i, w in row), Fraction(0)) + Fraction(bias)) for row, bias in rows), node.shape)


@exact.register
def _(node: Relu, device: Any, x: np.ndarray) -> np.ndarray:
    return np.maximum(x, Fraction(0))


@exact.register
def _(node: LeakyRelu, device: Any, x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, x, x * Fraction(node.slope))


@exact.register
def _(node: Clip, device: Any, x: np.ndarray) -> np.ndarray:
    x = x if np.isinf(node.lowest) else np.maximum(x, Fraction(node.lowest))
    return x if np.isinf(node.highest) else np.minimum(x, Fraction(node.highest))


@exact.register
def _(node: Sigmoid | Tanh, device: Any, x: np.ndarray) -> np.ndarray:
    """Not rational, but right to DIGITS digits."""

    def value(v: Fraction) -> Fraction:
        v = max(min(v, Fraction(400)), Fraction(-400))
        with localcontext() as context:
            context.prec = DIGITS
            if isinstance(node, Sigmoid):
                return Fraction(1 / (1 + (-Decimal(v.numerator) / Decimal(v.denominator)).exp()))
            twice = (2 * Decimal(v.numerator) / Decimal(v.denominator)).exp()
            return Fraction((twice - 1) / (twice + 1))

    return _array((value(v) for v in x.reshape(-1)), node.shape)


@exact.register
def _(node: FakeQuant, device: Any, x: np.ndarray) -> np.ndarray:
    scale, (least, most) = Fraction(node.scale), node.steps
    return _array((scale * max(least, min(most, round(v / scale))) for v in x.reshape(-1)), node.shape)


@exact.register
def _(node: Neg, device: Any, x: np.ndarray) -> np.ndarray:
    return -x


@exact.register
def _(node: Add, device: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x + y


@exact.register
def _(node: Sub, device: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x - y


@exact.register
def _(node: AddConstant, device: Any, x: np.ndarray) -> np.ndarray:
    return x + _constant(device, node)


@exact.register
def _(node: MulConstant, device: Any, x: np.ndarray) -> np.ndarray:
    return x * _constant(device, node)


@exact.register
def _(node: DivConstant, device: Any, x: np.ndarray) -> np.ndarray:
    return x / _constant(device, node)


@exact.register
def _(node: MaxPool, device: Any, x: np.ndarray) -> np.ndarray:
    top, left, _, _ = node.pads
    out = np.empty(node.shape, dtype=object)
    for c, i, j in np.ndindex(*node.shape):
        a, b = i * node.stride[0] - top, j * node.stride[1] - left
        out[c, i, j] = x[c, max(a, 0) : a + node.kernel[0], max(b, 0) : b + node.kernel[1]].max()
    return out


@exact.register
def _(node: Reshape, device: Any, x: np.ndarray) -> np.ndarray:
    return x.reshape(node.shape)


@exact.register
def _(node: Transpose, device: Any, x: np.ndarray) -> np.ndarray:
    return x.transpose(node.order)


@exact.register
def _(node: Concat, device: Any, *inputs: np.ndarray) -> np.ndarray:
    return np.concatenate(inputs, axis=node.axis)


@exact.register
def _(node: Slice, device: Any, x: np.ndarray) -> np.ndarray:
    return x[tuple(slice(i, j, step) for i, j, step in zip(node.starts, node.stops, node.steps, strict=True))]


@exact.register
def _(node: Gather, device: Any, x: np.ndarray) -> np.ndarray:
    return np.stack([x.take(i, axis=node.axis) for i in node.indices], axis=node.axis)


@exact.register
def _(node: Pad, device: Any, x: np.ndarray) -> np.ndarray:
    return np.pad(x, list(zip(node.before, node.after, strict=True)), constant_values=Fraction(node.value))
