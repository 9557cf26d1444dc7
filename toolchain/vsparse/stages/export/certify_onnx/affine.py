"""Intervals through sums of products: both ends in one product with a block weight, or centre and radius with W and |W|.

The charges and the proof that they are enough are in docs/numerics.md, section 15.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vsparse.errors import InputError
from vsparse.graph.core import Shape
from vsparse.graph.shapes import show
from vsparse.stages.export.certify_onnx.rounded import CONSTANT_FLOOR, ETA, SLOPE_FLOOR, UNIT, UP, Float32s, Numbers, down32, growth, up32
from vsparse.stages.export.certify_onnx.writer import EndPair, TwinWriter

# Up to this many multiply-accumulates the block weight, with four times as many, takes less time than the nodes of centre and radius.
BLOCK_MACS = 2**18
# Covers the rounding of float64 where a charge is added to a weight.
OUTWARD = 1 + 2.0**-50


@dataclass(frozen=True)
class ChargedSum:
    """A sum of products that is bounded: z = weight · x + bias, and what its execution may add, |e| <= slope · m + constant for |x| <= m.

    `weight` and `slope` are float64 [out, in] or [out, in/groups, kh, kw], `bias` and `constant` float64 [out]. `kind` is Gemm or Conv,
    `attributes` those of the ONNX operator, `shape` that of one sample of z. `over(slope, m)` returns slope · m [*shape] in float64.
    """

    name: str
    kind: str
    weight: Numbers
    bias: Numbers
    slope: Numbers
    constant: Numbers
    shape: Shape
    over: Callable[[Numbers, Numbers], Numbers]
    groups: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one execution, weights of zero included."""
        return int(self.weight[0].size * np.prod(self.shape))

    def rows(self, value: Numbers) -> Numbers:
        """Returns the sums [out] of a weight's rows."""
        total: Numbers = value.reshape(len(value), -1).sum(1)
        return total


@dataclass(frozen=True)
class BlockSum:
    """The weights and biases of one end over the stacked ends of the input: [out, 2·in, …] and [out]."""

    weight: Float32s
    bias: Float32s


@dataclass(frozen=True)
class CentreRadius:
    """What centre and radius are made with: centre = half·S + bias, radius = radius_weight·(D + growth·|S|) + radius_bias.

    S is the sum of the ends and D their difference; the ends of the result are centre ± radius.
    """

    half: Float32s
    bias: Float32s
    radius_weight: Float32s
    radius_bias: Float32s
    growth: Float32s


def bounded(w: TwinWriter, one: ChargedSum, x: EndPair, hint: str) -> EndPair:
    """Adds what bounds a sum of products over the ends `x` of its input, and returns the ends of the result."""
    require_finite(one)
    if in_blocks(one, x):
        upper, lower = block_sums(one, x)
        weight, bias = np.concatenate([upper.weight, lower.weight]), np.concatenate([upper.bias, lower.bias])
        stacked = product(w, one, w.stack(x, hint).stacked, weight, bias, f"{hint}.both")
        return EndPair(one.shape, stacked=stacked)
    centre, radius = centre_and_radius(w, one, x, hint)
    upper_end, lower_end = w.op("Add", [centre, radius], f"{hint}.upper"), w.op("Sub", [centre, radius], f"{hint}.lower")
    return EndPair(one.shape, upper=upper_end, lower=lower_end)


def in_blocks(one: ChargedSum, x: EndPair) -> bool:
    """Whether both ends are bounded by one product: errors must not need the magnitudes of ends that may have any sign."""
    return one.groups == 1 and one.macs <= BLOCK_MACS and (x.nonnegative or x.limit is not None)


def product(w: TwinWriter, one: ChargedSum, source: str, weight: Float32s, bias: Float32s, hint: str, groups: int = 1) -> str:
    """Adds the operator of `one` with another weight and bias."""
    names = [source, w.constant(f"{hint}.weight", weight), w.constant(f"{hint}.bias", bias)]
    attributes = dict(one.attributes)
    if one.kind == "Conv":
        attributes |= {"kernel_shape": list(weight.shape[2:]), "group": groups}
    return w.op(one.kind, names, hint, **attributes)


def block_sums(one: ChargedSum, x: EndPair) -> tuple[BlockSum, BlockSum]:
    """Returns the block weights of the upper and of the lower end over the stacked ends of the input."""
    if x.nonnegative:
        return _charged_blocks(one, 1), _charged_blocks(one, -1)
    assert x.limit is not None
    return _limited_blocks(one, x.limit, 1), _limited_blocks(one, x.limit, -1)


def _charged_blocks(one: ChargedSum, side: int) -> BlockSum:
    """Ends that are at least 0: errors, those of this product included, are relative to the upper end, so that weights can hold them."""
    magnitude, support = np.abs(one.weight), (one.weight != 0) | (one.slope != 0)
    positive, negative = np.maximum(one.weight, 0), np.minimum(one.weight, 0)
    own = growth(2 * longest_row(support) + 2, show(one.name))
    room = UP / (1 - own - 2.0**-20)
    charge = np.where(support, (one.slope + own * magnitude + SLOPE_FLOOR) * room, 0.0)
    constant = one.constant + own * (np.abs(one.bias) + one.constant) + underflow(one, magnitude + charge)
    constant = (constant + 2.0**-52 * np.abs(one.bias)) * room
    if side > 0:
        blocks = (up32((positive + charge) * OUTWARD), up32(negative))
        return BlockSum(np.concatenate(blocks, axis=1), up32(one.bias + constant))
    blocks = (down32((negative - charge) * OUTWARD), down32(positive))
    return BlockSum(np.concatenate(blocks, axis=1), down32(one.bias - constant))


def _limited_blocks(one: ChargedSum, limit: Numbers, side: int) -> BlockSum:
    """Ends whose magnitudes are known beforehand: errors are constants."""
    magnitude, support = np.abs(one.weight), (one.weight != 0) | (one.slope != 0)
    positive, negative = np.maximum(one.weight, 0), np.minimum(one.weight, 0)
    own = growth(longest_row(support) + 2, show(one.name))
    first, second = (positive, negative) if side > 0 else (negative, positive)
    stored = [value.astype(np.float32) for value in (first, second)]
    inexact = sum(np.abs(part.astype(np.float64) - value) for part, value in zip(stored, (first, second), strict=True))
    room = UP / (1 - own - 2.0**-20)
    charge = np.where(support, one.slope + own * magnitude + 2 * inexact + SLOPE_FLOOR, 0.0) * room
    spread = one.over(charge, limit).reshape(one.shape[0], -1).max(1)
    constant = spread * UP + one.constant + own * (np.abs(one.bias) + one.constant) + underflow(one, magnitude + charge)
    constant = (constant + 2.0**-52 * np.abs(one.bias)) * room
    bias = up32(one.bias + constant) if side > 0 else down32(one.bias - constant)
    # The upper end of the input stands first: positive weights of the upper end, negative ones of the lower end, read it.
    return BlockSum(np.concatenate(stored, axis=1), bias)


def centre_and_radius(w: TwinWriter, one: ChargedSum, x: EndPair, hint: str, single_reader: bool = False) -> tuple[str, str]:
    """Adds centre and radius of a sum of products, and returns their names; with `single_reader` one addition alone reads both."""
    total, width = sums_of_ends(w, x, hint)
    parts = centre_radius_parts(one, single_reader)
    spread = radius_source(w, size_of_sum(w, x, total, hint), width, parts.growth, hint)
    centre = product(w, one, total, parts.half, parts.bias, f"{hint}.centre", one.groups)
    return centre, product(w, one, spread, parts.radius_weight, parts.radius_bias, f"{hint}.radius", one.groups)


def sums_of_ends(w: TwinWriter, x: EndPair, hint: str) -> tuple[str, str]:
    """Adds sum and difference of the two ends."""
    ends = [(x := w.pair(x, hint)).upper, x.lower]
    return w.op("Add", ends, f"{hint}.sum"), w.op("Sub", ends, f"{hint}.width")


def size_of_sum(w: TwinWriter, x: EndPair, total: str, hint: str) -> str:
    """Adds |S|, the magnitude of the sum of the ends."""
    return total if x.nonnegative else w.op("Abs", [total], f"{hint}.size")


def radius_source(w: TwinWriter, size: str, width: str, rate: Float32s, hint: str) -> str:
    """Adds D + growth·|S|, which one product with |W| maps: the width of the input, and what both executions may err."""
    charged = w.op("Mul", [size, w.constant(f"{hint}.growth", rate)], f"{hint}.charge")
    return w.op("Add", [width, charged], f"{hint}.spread")


def centre_radius_parts(one: ChargedSum, single_reader: bool) -> CentreRadius:
    """Returns the constants of centre and radius, with the errors of both executions in the radius."""
    magnitude, support = np.abs(one.weight), (one.weight != 0) | (one.slope != 0)
    terms = longest_row(support)
    own = growth((2 if single_reader else 1) * terms + 6, show(one.name))
    room = UP / ((1 - own) ** 2 * (1 - 3 * UNIT))
    half, bias = (one.weight / 2).astype(np.float32), one.bias.astype(np.float32)
    wide = np.where(support, (magnitude / 2 + one.slope / 2) * (1 + 2 * UNIT) + SLOPE_FLOOR, 0.0) * room
    radius_weight = up32(wide)
    inexact = np.abs(half.astype(np.float64) - one.weight / 2)
    needed = one.slope / 2 * (1 + 2 * UNIT) + magnitude / 2 * (own + 2 * UNIT) + inexact * 2 + 2 * ETA
    ratio = np.divide(needed * room, radius_weight.astype(np.float64), out=np.zeros_like(needed), where=support)
    rate = up32(np.array(max(float(ratio.max(initial=0.0)) * UP, UNIT)))
    inexact_bias = np.abs(bias.astype(np.float64) - one.bias) + 2.0**-52 * np.abs(one.bias)
    constant = one.constant + own * np.abs(one.bias) + inexact_bias + underflow(one, magnitude + wide)
    return CentreRadius(half, bias, radius_weight, up32(constant * room), rate)


def longest_row(support: np.ndarray[Any, Any]) -> int:
    """Returns how many terms the longest row of a weight has that are not left out, `support` bool [out, …]."""
    return int(support.reshape(len(support), -1).sum(1).max(initial=0))


def underflow(one: ChargedSum, weights: Numbers) -> Numbers:
    """What underflow may cost a row, beside what is relative to the input: far more than each of its operations can lose."""
    lost: Numbers = CONSTANT_FLOOR + 32 * ETA * (one.rows(weights) + one.weight[0].size + 8)
    return lost


def require_finite(one: ChargedSum) -> None:
    """Raises InputError where an execution of the network may overflow whatever the input is."""
    for value in (one.weight, one.bias, one.slope, one.constant):
        if not np.isfinite(value).all():
            raise InputError(f'node "{show(one.name)}" has no bound on its rounding; leave deploy.live out')
