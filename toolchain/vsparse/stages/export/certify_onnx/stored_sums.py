"""Intervals of a network that stores float16: what its inputs and its sums of products lose, bounded in float32.

The charges and the proof that they are enough are in docs/numerics.md, section 15.8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vsparse.graph.shapes import show
from vsparse.stages.export.certify_onnx.affine import (
    BLOCK_MACS,
    ChargedSum,
    longest_row,
    product,
    radius_source,
    require_finite,
    size_of_sum,
    sums_of_ends,
    underflow,
)
from vsparse.stages.export.certify_onnx.rounded import SLOPE_FLOOR, UNIT, UP, Float32s, Numbers, growth, up32
from vsparse.stages.export.certify_onnx.writer import EndPair, TwinWriter

# Where charges are at most this share of their weights, one number for a whole layer may cover them.
MOST_RATIO = 2.0**-9
# What adds the operator of a sum with another weight and bias: of source, weight, bias and a name, the name of the result.
Multiplied = Callable[[str, Float32s, Float32s, str], str]


@dataclass(frozen=True)
class StorageRounding:
    """What it costs to store a value in a format narrower than that it is computed in: `unit` times its magnitude, and `floor`."""

    unit: float
    floor: float


@dataclass(frozen=True)
class StoredSum:
    """What the ends of a stored sum are made with: centre = half·S + bias ± (width·D + size·|S| + constant + relative·|centre|).

    S is the sum of the ends of the input and D their difference. With `rate` in place of `size` width·(D + rate·|S|) stands for both.
    """

    half: Float32s
    bias: Float32s
    width: Float32s
    size: Float32s | None
    rate: Float32s | None
    constant: Float32s
    relative: float


def magnitude(w: TwinWriter, x: EndPair, hint: str) -> str:
    """Adds the largest magnitude between the two ends."""
    if x.nonnegative:
        return x.upper
    sizes = [w.op("Abs", [end], f"{hint}.size") for end in (x.upper, x.lower)]
    return w.op("Max", sizes, f"{hint}.largest")


def stored(w: TwinWriter, storage: StorageRounding, x: EndPair, hint: str) -> EndPair:
    """Adds ends moved outward by what it costs to store a value between those of `x`."""
    pair = w.pair(x, hint)
    rate, floor = up32(np.array(storage.unit + growth(10, show(hint)))), up32(np.array(storage.floor * (1 + 2.0**-20)))
    relative = w.op("Mul", [magnitude(w, pair, hint), w.constant(f"{hint}.unit", rate)], f"{hint}.relative")
    error = w.op("Add", [relative, w.constant(f"{hint}.floor", floor)], f"{hint}.error")
    upper, lower = w.op("Add", [pair.upper, error], f"{hint}.upper"), w.op("Sub", [pair.lower, error], f"{hint}.lower")
    return EndPair(x.shape, upper=upper, lower=lower)


def of_unstored(one: ChargedSum, storage: StorageRounding) -> ChargedSum:
    """Returns the sum over an input that is stored first: over its ends before that, with what storing costs among its errors."""
    size, support = np.abs(one.weight), (one.weight != 0) | (one.slope != 0)
    slope = np.where(support, (one.slope * (1 + storage.unit) + size * storage.unit) * UP, 0.0)
    return replace(one, slope=slope, constant=(one.constant + one.rows(size + one.slope) * storage.floor) * UP)


def bounded_and_stored(w: TwinWriter, one: ChargedSum, storage: StorageRounding | None, x: EndPair, hint: str) -> EndPair:
    """Adds what bounds a sum of products over the ends `x` of its input, once it is stored, and returns the ends of the result."""
    require_finite(one)
    if storage is not None and x.nonnegative and one.groups == 1 and one.macs <= BLOCK_MACS:
        return _in_one_product(w, one, storage, x, hint)
    parts = stored_parts(one, storage)

    def multiplied(source: str, weight: Float32s, bias: Float32s, name: str) -> str:
        return product(w, one, source, weight, bias, name, one.groups)

    centre, radius = centre_and_radius(w, parts, x, multiplied, hint)
    return _ends(w, one, centre, radius, parts.relative, hint)


def _ends(w: TwinWriter, one: ChargedSum, centre: str, radius: str, relative: float, hint: str) -> EndPair:
    """Adds the ends centre ± (radius + relative·|centre|)."""
    if relative:
        rate = w.constant(f"{hint}.unit", up32(np.array(relative)))
        error = w.op("Mul", [w.op("Abs", [centre], f"{hint}.largest"), rate], f"{hint}.relative")
        radius = w.op("Add", [radius, error], f"{hint}.stored")
    upper_end, lower_end = w.op("Add", [centre, radius], f"{hint}.upper"), w.op("Sub", [centre, radius], f"{hint}.lower")
    return EndPair(one.shape, upper=upper_end, lower=lower_end)


def _in_one_product(w: TwinWriter, one: ChargedSum, storage: StorageRounding, x: EndPair, hint: str) -> EndPair:
    """Adds centre and radius as one product with the stacked ends, which are at least 0: errors are relative to the upper one."""
    size, support = np.abs(one.weight), (one.weight != 0) | (one.slope != 0)
    own = growth(2 * longest_row(support) + 12, show(one.name))
    room = (1 + storage.unit) * UP / (1 - own) ** 2
    half, bias = (one.weight / 2).astype(np.float32), one.bias.astype(np.float32)
    inexact = np.abs(half.astype(np.float64) - one.weight / 2)
    of_upper = np.where(support, size / 2 + one.slope + 2 * own * size + 2 * inexact + SLOPE_FLOOR, 0.0) * room
    of_lower = up32(-size / 2 * (1 + storage.unit) / UP)  # towards 0, which makes the radius larger
    inexact_bias = np.abs(bias.astype(np.float64) - one.bias) + 2.0**-52 * np.abs(one.bias)
    lost = one.constant + own * np.abs(one.bias) + inexact_bias + 2 * underflow(one, 2 * size + one.slope)
    constant = up32(lost * room + storage.floor * UP / (1 - own) ** 2)
    weight = np.concatenate([np.concatenate([half, half], axis=1), np.concatenate([up32(of_upper), of_lower], axis=1)])
    both = product(w, one, w.stack(x, hint).stacked, weight, np.concatenate([bias, constant]), f"{hint}.both")
    pair = w.pair(EndPair(one.shape, stacked=both), f"{hint}.parts")
    return w.stack(_ends(w, one, pair.upper, pair.lower, (storage.unit + 2 * UNIT) * UP / (1 - own) ** 2, hint), hint)


def centre_and_radius(w: TwinWriter, parts: StoredSum, x: EndPair, multiplied: Multiplied, hint: str) -> tuple[str, str]:
    """Adds centre and radius but for what is relative to the centre; `multiplied` adds weight · source + bias under a name."""
    total, width = sums_of_ends(w, x, hint)
    size = size_of_sum(w, x, total, hint)
    centre = multiplied(total, parts.half, parts.bias, f"{hint}.centre")
    if parts.size is None:
        assert parts.rate is not None
        spread = radius_source(w, size, width, parts.rate, hint)
        return centre, multiplied(spread, parts.width, parts.constant, f"{hint}.radius")
    radius = multiplied(width, parts.width, parts.constant, f"{hint}.radius")
    charges = multiplied(size, parts.size, np.zeros_like(parts.constant), f"{hint}.charges")
    return centre, w.op("Add", [radius, charges], f"{hint}.charged")


def stored_parts(one: ChargedSum, storage: StorageRounding | None) -> StoredSum:
    """Returns the constants of a stored sum, with the errors of both executions in the radius; without `storage` nothing is stored."""
    size, support = np.abs(one.weight), (one.weight != 0) | (one.slope != 0)
    own = growth(3 * longest_row(support) + 12, show(one.name))
    unit, floor = (0.0, 0.0) if storage is None else (storage.unit, storage.floor)
    room = (1 + unit) * UP / ((1 - own) ** 2 * (1 - 3 * UNIT))
    half, bias = (one.weight / 2).astype(np.float32), one.bias.astype(np.float32)
    width = up32(np.where(support, (size / 2 + one.slope / 2) * (1 + 2 * UNIT) + SLOPE_FLOOR, 0.0) * room)
    inexact = np.abs(half.astype(np.float64) - one.weight / 2)
    charge: Numbers = one.slope / 2 * (1 + 2 * UNIT) + size / 2 * (own + 2 * UNIT) + inexact * 2 + SLOPE_FLOOR
    charge = np.where(support, charge, 0.0) * room
    inexact_bias = np.abs(bias.astype(np.float64) - one.bias) + 2.0**-52 * np.abs(one.bias)
    lost = one.constant + own * np.abs(one.bias) + inexact_bias + 2 * underflow(one, 2 * size + one.slope)
    constant = up32(lost * room + floor * UP / (1 - own) ** 2)
    relative = 0.0 if storage is None else (unit + 2 * UNIT) * UP / (1 - own) ** 2
    ratio = np.divide(charge, width.astype(np.float64), out=np.zeros_like(charge), where=support)
    largest = float(ratio.max(initial=0.0))
    if one.macs > BLOCK_MACS and largest <= MOST_RATIO:
        return StoredSum(half, bias, width, None, up32(np.array(max(largest * UP, UNIT))), constant, relative)
    return StoredSum(half, bias, width, up32(charge), None, constant, relative)
