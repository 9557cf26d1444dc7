"""Sums and affine operators of the runtime's graphs, with what is fused into them, on fingerprints (docs/numerics.md, section 10.2)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Graph
from vsparse.graph.shapes import show
from vsparse.stages.export.runtime_hashes import Hashes, Value
from vsparse.stages.export.runtime_reference import Reference

Attributes = dict[str, Any]
# How many elements decide at first which of several forms of a sum is the file's.
SAMPLE = 64


class Unknown(Exception):
    """An operator, or a use of one, that cannot be told to be the file's; carries the reason."""


class Sums:
    """Each method takes the operator's inputs (activations or constant arrays) and attributes and returns its output."""

    def __init__(self, reference: Reference) -> None:
        self.reference, self.algebra = reference, reference.algebra
        self.graph: Graph = reference.graph

    # What is asked of inputs ------------------------------------------------------------------------------------------

    def numbers(self, value: Any) -> NDArray[np.float32]:
        """Returns a constant of float32 or float16 in float32."""
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise Unknown("reads an activation, or integers, where a constant is wanted")
        return value.astype(np.float32)

    def value(self, value: Any) -> Value:
        """Returns an activation that holds numbers, not the integers of quantised ones."""
        if not isinstance(value, Value):
            raise Unknown("is applied to a constant")
        if value.integers:
            raise Unknown("computes on quantised integers")
        return value

    def integers(self, value: Any) -> list[int]:
        """Returns a constant list of integers."""
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise Unknown("needs constant integers")
        return [int(one) for one in value.reshape(-1)]

    def known(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Returns which elements are elements of the file's network."""
        places = np.searchsorted(self.reference.known, hashes)
        return np.asarray(self.reference.known[np.minimum(places, len(self.reference.known) - 1)] == hashes)

    def is_known(self, hashes: Hashes) -> bool:
        """Returns whether all elements are, padding (0) left out."""
        flat = hashes.reshape(-1)
        first = flat[:: max(1, len(flat) // SAMPLE)]
        return bool((self.known(first) | (first == 0)).all() and (self.known(flat) | (flat == 0)).all())

    # Sums -------------------------------------------------------------------------------------------------------------

    def total(self, operands: list[tuple[Value, int]], start: Hashes | None = None) -> Value:
        """Returns a sum of activations times ±1 and of `start`, terms of a sum.

        An operand may be a sum whose terms the file's network adds up at once. Computing it first is one execution of that, so each
        element takes the form that the file's network has, and the longest where there is none.
        """
        forms: list[Value] = []
        choices = [[value.hashes, value.terms] if value.total is not None else [value.hashes] for value, _ in operands]
        for choice in product(*choices):
            total = np.uint64(0) if start is None else start
            for terms, (_, sign) in zip(choice, operands, strict=True):
                total = total + terms if sign > 0 else total - terms
            forms.append(self.algebra.summed(np.asarray(total)))
            if self.is_known(forms[-1].hashes):
                return forms[-1]
        return self._by_element(forms[::-1])

    def _by_element(self, forms: list[Value]) -> Value:
        hashes, total = forms[0].hashes.copy(), forms[0].terms.copy()
        missing = ~self.known(hashes)
        for form in forms[1:]:
            better = missing & self.known(form.hashes)
            hashes[better], total[better] = form.hashes[better], form.terms[better]
            missing &= ~better
        return Value(hashes, total)

    def plus_constant(self, x: Value, constant: NDArray[np.float32]) -> Value:
        """Returns x + c, in the form that the file's network has."""
        x = self.widened(x, constant)
        forms = [self.algebra.plus(x, terms, constant) for terms in ([x.hashes, x.terms] if x.total is not None else [x.hashes])]
        return next((form for form in forms if self.is_known(form.hashes)), None) or self._by_element(forms[::-1])

    def widened(self, x: Value, constant: NDArray[np.float32]) -> Value:
        """Returns the activation with the further dimensions of size 1 that a constant of more dimensions gives it."""
        shape = np.broadcast_shapes(constant.shape, x.shape)
        if prod(shape) != prod(x.shape):
            raise Unknown("has a constant that makes its input larger")
        return x if shape == x.shape else x.moved(lambda array: array.reshape(shape))

    def add(self, inputs: list[Any], a: Attributes, sign: int = 1) -> Value:
        x, y = inputs
        if isinstance(x, Value) and isinstance(y, Value):
            if x.shape != y.shape:
                raise Unknown("adds activations of different shapes")
            return self.total([(self.value(x), 1), (self.value(y), sign)])
        if isinstance(x, Value):
            return self.plus_constant(self.value(x), sign * self.numbers(y))
        y = self.value(y)
        return self.plus_constant(y if sign > 0 else self.algebra.negated(y), self.numbers(x))

    def subtract(self, inputs: list[Any], a: Attributes) -> Value:
        return self.add(inputs, a, -1)

    def multiply(self, inputs: list[Any], a: Attributes) -> Value:
        x, c = inputs if isinstance(inputs[0], Value) else reversed(inputs)
        return self._scaled(self.algebra.times, x, c)

    def divide(self, inputs: list[Any], a: Attributes) -> Value:
        return self._scaled(self.algebra.divided, *inputs)

    def _scaled(self, how: Callable[[Value, NDArray[Any]], Value], x: Any, c: Any) -> Value:
        constant = self.numbers(c)
        x = self.widened(self.value(x), constant)
        return how(x, constant)

    # Affine operators -------------------------------------------------------------------------------------------------

    def gemm(self, inputs: list[Any], a: Attributes) -> Value:
        c = inputs[2] if len(inputs) > 2 else None
        if a.get("alpha", 1.0) != 1 or (c is not None and a.get("beta", 1.0) != 1) or a.get("transA", 0):
            raise Unknown("multiplies the product by a factor, alpha or beta, or transposes its input")
        weight = self.numbers(inputs[1])
        return self._activated(self._product(self.value(inputs[0]), weight if a.get("transB", 0) else weight.T, c), a)

    def _product(self, x: Value, weight: NDArray[np.float32], c: Any) -> Value:
        """x [batch, in] times weight [out, in], plus c: a constant or an activation."""
        if weight.ndim != 2 or len(x.shape) != 2 or x.shape[1] != weight.shape[1]:
            raise Unknown("multiplies other things than rows and a matrix")
        if isinstance(c, Value):
            if c.shape != (x.shape[0], len(weight)):
                raise Unknown("adds an activation of another shape to its product")
            return self.total([(self.value(c), 1)], self.algebra.linear(x, weight, None).terms)
        bias = None if c is None else self.numbers(c)
        if bias is not None and bias.ndim == 2 and len(bias) != 1:
            raise Unknown("adds another number to each sample")
        return self.algebra.linear(x, weight, None if bias is None else np.broadcast_to(bias.reshape(-1), (len(weight),)))

    def matmul(self, inputs: list[Any], a: Attributes) -> Value:
        if a.get("alpha", 1.0) != 1 or any(a.get(name, 0) for name in ("transA", "transBatchA", "transBatchB")):
            raise Unknown("multiplies the product by a factor (alpha), or transposes its input")
        weight = self.numbers(inputs[1])
        if a.get("transB", 0):
            weight = weight.T
        x = self.value(inputs[0])
        if weight.ndim != 2 or x.shape[-1] != len(weight):
            raise Unknown("multiplies other things than rows and a matrix")
        if len(x.shape) == 2:
            return self._product(x, weight.T, None)
        return self.algebra.summed(self.algebra.products(x.hashes, weight.T))

    def conv(self, inputs: list[Any], a: Attributes) -> Value:
        x, weight = self.value(inputs[0]), self.numbers(inputs[1])
        bias = self.numbers(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else None
        other = self.value(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else None
        return self._activated(self.convolved(x, weight, bias, other, a), a)

    def convolved(
        self, x: Value, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, other: Value | None, a: Attributes
    ) -> Value:
        """Returns a convolution, 1-D or 2-D, plus another activation where there is one; without the activation function."""
        if len(x.shape) == 3 and weight.ndim == 3:
            if other is not None:
                raise Unknown("adds an activation to a 1-D convolution")
            wide = self.convolved(lifted(x), weight[:, :, None], bias, None, lifted_window(a))
            return wide.moved(lambda array: array[:, :, 0])
        if len(x.shape) != 4 or weight.ndim != 4:
            raise Unknown("is neither a 1-D nor a 2-D convolution")
        kernel = (weight.shape[2], weight.shape[3])
        stride, dilation = tuple(a.get("strides", (1, 1))), tuple(a.get("dilations", (1, 1)))
        groups = a.get("group", 1)
        if x.shape[1] != weight.shape[1] * groups or len(weight) % groups:
            raise Unknown("has a weight that does not fit its input")
        made = self.algebra.convolution(x, weight, bias, stride, self._pads(a, x, kernel, stride, dilation), dilation, groups)
        if other is None:
            return made
        if other.shape != made.shape:
            raise Unknown("adds an activation of another shape to its product")
        return self.total([(other, 1)], made.terms)

    def _pads(self, a: Attributes, x: Value, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Any:
        auto = a.get("auto_pad", b"NOTSET")
        if auto in (b"NOTSET", b"VALID"):
            pads = tuple(a.get("pads", (0, 0, 0, 0)))
            if auto == b"VALID" and any(pads):
                raise Unknown("has both pads and auto_pad")
            return pads
        before, after = [], []
        for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
            # As ONNX Runtime computes it: negative where the stride is larger than the kernel, halved towards zero.
            total = (-(-size // s) - 1) * s + d * (k - 1) + 1 - size
            front = int((total + (1 if auto == b"SAME_LOWER" else 0)) / 2)
            before.append(front)
            after.append(total - front)
        return (*before, *after)

    def _activated(self, x: Value, a: Attributes) -> Value:
        """Returns what the activation function of a fused operator makes of its sum."""
        name = a.get("activation", b"").decode(errors="replace")
        params = list(a.get("activation_params", [])) or [a[key] for key in ("activation_alpha", "activation_beta") if key in a]
        if not name:
            return x
        if name == "Relu":
            return self.algebra.clipped(x, 0.0, float("inf"))
        if name == "Clip" and len(params) == 2:
            return self.algebra.clipped(x, float(params[0]), float(params[1]))
        if name == "LeakyRelu" and len(params) >= 1:
            return self.algebra.leaky(x, float(params[0]))
        if name in ("Sigmoid", "Tanh"):
            return self.algebra.function(x, name)
        raise Unknown(f'has the activation "{show(name)}" fused into it')


def lifted(x: Value) -> Value:
    """Returns rows [batch, channels, n] as maps of height 1."""
    return x.moved(lambda array: array[:, :, None])


def lifted_window(a: Attributes) -> Attributes:
    """Returns the attributes of a 1-D window as those of one of height 1."""
    lifted = dict(a)
    for name in ("kernel_shape", "strides", "dilations"):
        if name in a:
            lifted[name] = [1, *a[name]]
    if "pads" in a:
        lifted["pads"] = [0, a["pads"][0], 0, a["pads"][1]]
    return lifted


def channels_first(x: Value) -> Value:
    """Returns [batch, ..., channels] as [batch, channels, ...]."""
    return x.moved(lambda array: np.moveaxis(array, -1, 1))


def channels_last(x: Value) -> Value:
    """Returns [batch, channels, ...] as [batch, ..., channels]."""
    return x.moved(lambda array: np.moveaxis(array, 1, -1))
