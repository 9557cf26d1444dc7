"""Functions of one number, pools and sums over axes in the runtime's graphs, on fingerprints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vsparse.graph import LeakyRelu
from vsparse.stages.export.runtime_context import (
    MICROSOFT,
    NCHWC,
    Attributes,
    RuntimeContext,
    Unknown,
    channels_first,
    channels_last,
    lifted,
    lifted_window,
    runs,
)
from vsparse.stages.export.runtime_functions import described
from vsparse.stages.export.runtime_hashes import Fingerprint
from vsparse.stages.export.runtime_sums import pads_of
from vsparse.stages.export.runtime_windows import HashArray


@dataclass(frozen=True)
class Negative:
    """Which elements of an activation are below zero."""

    of: Fingerprint


@runs("Relu")
def runtime_relu(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    return r.algebra.clipped(r.value(inputs[0]), 0.0, float("inf"))


@runs("LeakyRelu")
def runtime_leaky_relu(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    return r.algebra.leaky(r.value(inputs[0]), float(a.get("alpha", np.float32(0.01))))


@runs("PRelu")
def runtime_prelu(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    slopes = r.numbers(inputs[1])
    if (slopes != slopes.flat[0]).any():
        raise Unknown("has several slopes")
    return r.algebra.leaky(r.value(inputs[0]), float(slopes.flat[0]))


@runs("Less")
def runtime_less(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Negative:
    """x < 0: a part of what LeakyRelu becomes where the runtime has no kernel for it (float16)."""
    zero = r.numbers(inputs[1])
    if zero.size != 1 or zero.any():
        raise Unknown("compares with another number than zero")
    return Negative(r.value(inputs[0]))


@runs("Where")
def runtime_where(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    """slope · x where x < 0, else x; the slope is the one constant with which the product is what it is."""
    chosen, scaled, x = inputs[0], r.value(inputs[1]), r.value(inputs[2])
    if isinstance(chosen, Negative) and np.array_equal(chosen.of.hashes, x.hashes):
        for node in r.graph.nodes:
            if isinstance(node, LeakyRelu):
                product = r.algebra.times(x, np.array(node.slope, np.float32))
                if np.array_equal(product.hashes, scaled.hashes):
                    return r.algebra.leaky(x, node.slope)
    raise Unknown("chooses between activations, and not as a LeakyRelu of the file does")


@runs("Clip")
def runtime_clip(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    ends = [float(a.get("min", -np.inf)), float(a.get("max", np.inf))]
    for i, one in enumerate(inputs[1:]):
        if one is not None:
            if (end := r.numbers(one)).size != 1:
                raise Unknown("clips to several numbers")
            ends[i] = float(end.reshape(()))
    return r.algebra.clipped(r.value(inputs[0]), ends[0], ends[1])


@runs("Max")
def runtime_max(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    """With one number, half of a Clip, which has no kernel on float16 and is executed as Max and Min."""
    return r.algebra.clipped(*_with_number(r, inputs), float("inf"))


@runs("Min")
def runtime_min(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    """With one number, half of a Clip."""
    x, number = _with_number(r, inputs)
    return r.algebra.clipped(x, -float("inf"), number)


def _with_number(r: RuntimeContext, inputs: list[Any]) -> tuple[Fingerprint, float]:
    activations = [one for one in inputs if isinstance(one, Fingerprint)]
    numbers = [one for one in inputs if isinstance(one, np.ndarray)]
    if len(activations) != 1 or len(numbers) != 1 or numbers[0].size != 1:
        raise Unknown("is taken of other than an activation and one number")
    return r.value(activations[0]), float(r.numbers(numbers[0]).reshape(()))


def function_by_name(r: RuntimeContext, kind: str, inputs: list[Any], a: Attributes) -> Fingerprint:
    """Returns the value of a function of one number of which nothing is known but its name and its attributes."""
    if len(inputs) != 1:
        raise Unknown("has more inputs than a function of one number")
    return r.algebra.function(r.value(inputs[0]), described(kind, a))


@runs("Neg")
def runtime_negate(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    return r.algebra.negated(r.value(inputs[0]))


@runs("MaxPool", (NCHWC, "MaxPool"))
def runtime_max_pool(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    if not isinstance(inputs[0], Fingerprint):
        raise Unknown("is applied to a constant")
    return _pooled(r, inputs[0], a, lambda x, kernel, stride, pads: r.algebra.maximum(x, kernel, stride, pads))


@runs((MICROSOFT, "NhwcMaxPool"))
def runtime_nhwc_max_pool(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    return runtime_max_pool(r, inputs, {**a, "channels_last": 1})


@runs("AveragePool", (NCHWC, "AveragePool"))
def runtime_average_pool(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    counts = bool(a.get("count_include_pad", 0))
    return _pooled(r, r.value(inputs[0]), a, lambda x, kernel, stride, pads: r.algebra.average(x, kernel, stride, pads, counts))


def _pooled(r: RuntimeContext, x: Fingerprint, a: Attributes, pool: Callable[..., Fingerprint]) -> Fingerprint:
    if a.get("channels_last", 0):
        inner = _pooled(r, channels_first(x), {**a, "channels_last": 0}, pool)
        return channels_last(inner)
    if len(x.shape) == 3:
        return _pooled(r, lifted(x), lifted_window(a), pool).moved(lambda array: array[:, :, 0])
    if len(x.shape) != 4 or a.get("storage_order", 0) or any(one != 1 for one in a.get("dilations", ())):
        raise Unknown("is a pool of another kind than 1-D and 2-D without dilations")
    kernel = tuple(a["kernel_shape"])
    stride = tuple(a.get("strides", (1, 1)))
    pads = pads_of(r, a, x, kernel, stride, (1, 1))
    for i, size in enumerate(x.shape[2:]):
        if a.get("ceil_mode", 0) and (size + pads[i] + pads[i + 2] - kernel[i]) % stride[i]:
            raise Unknown("has a last window that reaches outside (ceil_mode)")
    return pool(x, kernel, stride, pads)


@runs("GlobalAveragePool", (NCHWC, "GlobalAveragePool"))
def runtime_global_average(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    x = r.value(inputs[0])
    if a.get("channels_last", 0):
        return channels_last(runtime_global_average(r, [channels_first(x)], {}))
    if len(x.shape) == 3:
        return runtime_global_average(r, [lifted(x)], a).moved(lambda array: array[:, :, 0])
    return r.algebra.average(x, (x.shape[2], x.shape[3]), (1, 1))


@runs("ReduceSum")
def runtime_reduce_sum(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    return _reduced(r, inputs, a)[0]


@runs("ReduceMean")
def runtime_reduce_mean(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    total, count = _reduced(r, inputs, a)
    return total if count == 1 else r.algebra.divided(total, np.array(count, np.float32))


def _reduced(r: RuntimeContext, inputs: list[Any], a: Attributes) -> tuple[Fingerprint, int]:
    x = r.value(inputs[0])
    axes = a.get("axes") if len(inputs) < 2 or inputs[1] is None else r.integers(inputs[1])
    if not axes and a.get("noop_with_empty_axes", 0):
        return x, 1
    gone = tuple(sorted({axis % len(x.shape) for axis in axes or range(len(x.shape))}))
    if 0 in gone and not r.reference.one_sample:
        raise Unknown("works along the batch")
    count = int(np.prod([x.shape[i] for i in gone]))

    def reduce(array: HashArray) -> HashArray:
        return np.asarray(array.sum(axis=gone, keepdims=bool(a.get("keepdims", 1)), dtype=np.uint64))

    return (x.moved(reduce), 1) if count == 1 else (r.algebra.summed(reduce(x.hashes)), count)
