"""Sums and affine operators of the runtime's graphs, with what is fused into them, on fingerprints (docs/numerics.md, section 10.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse.graph.operators import OPERATORS
from vsparse.graph.shapes import show
from vsparse.stages.export.runtime_context import MICROSOFT, Attributes, RuntimeContext, Unknown, lifted, lifted_window, runs
from vsparse.stages.export.runtime_functions import described
from vsparse.stages.export.runtime_hashes import Fingerprint


@runs("Add")
def runtime_add(r: RuntimeContext, inputs: list[Any], a: Attributes, sign: int = 1) -> Fingerprint:
    x, y = inputs
    if isinstance(x, Fingerprint) and isinstance(y, Fingerprint):
        if x.shape != y.shape:
            raise Unknown("adds activations of different shapes")
        return r.total([(r.value(x), 1), (r.value(y), sign)])
    if isinstance(x, Fingerprint):
        return r.plus_constant(r.value(x), sign * r.numbers(y))
    y = r.value(y)
    return r.plus_constant(y if sign > 0 else r.algebra.negated(y), r.numbers(x))


@runs("Sub")
def runtime_subtract(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    return runtime_add(r, inputs, a, -1)


@runs("Mul")
def runtime_multiply(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    x, c = inputs if isinstance(inputs[0], Fingerprint) else reversed(inputs)
    return _scaled(r, r.algebra.times, x, c)


@runs("Div")
def runtime_divide(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    return _scaled(r, r.algebra.divided, *inputs)


def _scaled(r: RuntimeContext, how: Callable[[Fingerprint, NDArray[Any]], Fingerprint], x: Any, c: Any) -> Fingerprint:
    constant = r.numbers(c)
    x = r.widened(r.value(x), constant)
    return how(x, constant)


@runs("Gemm", (MICROSOFT, "FusedGemm"))
def runtime_gemm(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    c = inputs[2] if len(inputs) > 2 else None
    if a.get("alpha", 1.0) != 1 or (c is not None and a.get("beta", 1.0) != 1) or a.get("transA", 0):
        raise Unknown("multiplies the product by a factor, alpha or beta, or transposes its input")
    weight = r.numbers(inputs[1])
    return activated(r, product_of(r, r.value(inputs[0]), weight if a.get("transB", 0) else weight.T, c), a)


def product_of(r: RuntimeContext, x: Fingerprint, weight: NDArray[np.float32], c: Any) -> Fingerprint:
    """x [batch, in] times weight [out, in], plus c: a constant or an activation."""
    if weight.ndim != 2 or len(x.shape) != 2 or x.shape[1] != weight.shape[1]:
        raise Unknown("multiplies other things than rows and a matrix")
    if isinstance(c, Fingerprint):
        if c.shape != (x.shape[0], len(weight)):
            raise Unknown("adds an activation of another shape to its product")
        return r.total([(r.value(c), 1)], r.algebra.linear(x, weight, None).terms)
    bias = None if c is None else r.numbers(c)
    if bias is not None and bias.ndim == 2 and len(bias) != 1:
        raise Unknown("adds another number to each sample")
    return r.algebra.linear(x, weight, None if bias is None else np.broadcast_to(bias.reshape(-1), (len(weight),)))


@runs("MatMul", (MICROSOFT, "FusedMatMul"))
def runtime_matmul(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    if a.get("alpha", 1.0) != 1 or any(a.get(name, 0) for name in ("transA", "transBatchA", "transBatchB")):
        raise Unknown("multiplies the product by a factor (alpha), or transposes its input")
    weight = r.numbers(inputs[1])
    if a.get("transB", 0):
        weight = weight.T
    x = r.value(inputs[0])
    if weight.ndim != 2 or x.shape[-1] != len(weight):
        raise Unknown("multiplies other things than rows and a matrix")
    if len(x.shape) == 2:
        return product_of(r, x, weight.T, None)
    return r.algebra.summed(r.algebra.products(x.hashes, weight.T))


@runs("Conv", (MICROSOFT, "FusedConv"))
def runtime_conv(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    x, weight = r.value(inputs[0]), r.numbers(inputs[1])
    bias = r.numbers(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else None
    other = r.value(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else None
    return activated(r, convolved(r, x, weight, bias, other, a), a)


def convolved(
    r: RuntimeContext,
    x: Fingerprint,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    other: Fingerprint | None,
    a: Attributes,
) -> Fingerprint:
    """Returns a convolution, 1-D or 2-D, plus another activation where there is one; without the activation function."""
    if len(x.shape) == 3 and weight.ndim == 3:
        if other is not None:
            raise Unknown("adds an activation to a 1-D convolution")
        wide = convolved(r, lifted(x), weight[:, :, None], bias, None, lifted_window(a))
        return wide.moved(lambda array: array[:, :, 0])
    if len(x.shape) != 4 or weight.ndim != 4:
        raise Unknown("is neither a 1-D nor a 2-D convolution")
    kernel = (weight.shape[2], weight.shape[3])
    stride, dilation = tuple(a.get("strides", (1, 1))), tuple(a.get("dilations", (1, 1)))
    groups = a.get("group", 1)
    if x.shape[1] != weight.shape[1] * groups or len(weight) % groups:
        raise Unknown("has a weight that does not fit its input")
    made = r.algebra.convolution(x, weight, bias, stride, pads_of(r, a, x, kernel, stride, dilation), dilation, groups)
    if other is None:
        return made
    if other.shape != made.shape:
        raise Unknown("adds an activation of another shape to its product")
    return r.total([(other, 1)], made.terms)


def pads_of(
    r: RuntimeContext, a: Attributes, x: Fingerprint, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Any:
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


def activated(r: RuntimeContext, x: Fingerprint, a: Attributes) -> Fingerprint:
    """Returns what the activation function of a fused operator makes of its sum."""
    name = a.get("activation", b"").decode(errors="replace")
    params = list(a.get("activation_params", [])) or [a[key] for key in ("activation_alpha", "activation_beta") if key in a]
    if not name:
        return x
    if name == "Relu":
        return r.algebra.clipped(x, 0.0, float("inf"))
    if name == "Clip" and len(params) == 2:
        return r.algebra.clipped(x, float(params[0]), float(params[1]))
    if name == "LeakyRelu" and len(params) >= 1:
        return r.algebra.leaky(x, float(params[0]))
    if name in OPERATORS and OPERATORS[name].only == "function":
        return r.algebra.function(x, described(name, _attributes_of_fused(name, a)))
    raise Unknown(f'has the activation "{show(name)}" fused into it')


def _attributes_of_fused(name: str, a: Attributes) -> Attributes:
    """Returns the attributes of a fused function, as its own operator has them; Unknown unless each is there, once.

    FusedGemm has each under its own name behind `activation_`, Conv all in one list, in the order of their names.
    """
    known = sorted(onnx.defs.get_schema(name).attributes)
    listed = list(a.get("activation_params", []))
    named = {key.removeprefix("activation_"): a[key] for key in a if key.startswith("activation_") and key != "activation_params"}
    if sorted(named) == known and not listed:
        return named
    if len(listed) == len(known) and not named:
        return dict(zip(known, listed, strict=True))
    raise Unknown(f'has the activation "{show(name)}" fused into it, and not with the numbers that it takes ({", ".join(known) or "none"})')
