"""Interval bounds of large sums of products: the centre in float64, the radius and the error of a device in one float32 sum, rounded up.

What float32 computes here is a sum of products of non-negative numbers, enlarged by all that it may have lost, and it is added outward: it
can widen a box and never narrow it (docs/numerics.md, section 5.5). It is never more than a part of E that it widens it by.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.bounds import paths, shifted
from vsparse.bounds.ball import Box
from vsparse.bounds.convolution import Geometry, convolved
from vsparse.bounds.float64 import TINY
from vsparse.contract import SMALLEST_NORMAL, Contract
from vsparse.graph import columns
from vsparse.graph.ir import Conv, Gemm, Node
from vsparse.graph.scaling import is_scaling

UNIT32 = 2.0**-24
# Conversion to float32, to nearest: a number times this is converted to one that is not below it.
ABOVE32 = 1 + 2.0**-22
# More than one product or sum loses to underflow, whether subnormal numbers are kept or not.
FLUSHED32 = 2.0**-120
# Environment variables by which kernels of float32 products read their operands in fewer bits, and what they say where those do not.
SHORTER = ("DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE", "MKL_BLAS_COMPUTE_MODE")
WHOLE = ("", "STRICT", "STANDARD")
# How much the largest factor of an operator's rows may exceed the smallest for all of them to be taken as one.
EVEN = 1.05
# Least channels for which products by taps are faster than columns.
SHIFTED_CHANNELS = 32


@dataclass(frozen=True)
class WideSum:
    """A large operator: |W| in float32, which is exact, and how its error E follows from s = |W|m.

    E is at most `factor` [out] · s + `floor` [out] · max m + `constant` [out], float64's own rounding `pad` · (s + `bias` [out]).
    `grown` times a float32 sum of this length, plus `lost` [out], is at least the exact one.
    """

    magnitude: Tensor
    factor: Tensor
    floor: Tensor
    constant: Tensor
    bias: Tensor
    pad: float
    grown: float
    lost: Tensor

    @property
    def one_factor(self) -> float | None:
        """The largest factor, where the smallest one is hardly below it; None elsewhere."""
        most, least = (float(end) + self.pad for end in (self.factor.max(), self.factor.min()))
        return most if 0 < most < 1 and most <= EVEN * least else None


def is_wide(node: Node, contract: Contract, device: torch.device, weight: Tensor) -> bool:
    """Returns whether a sum of products is taken in float32: large enough, of float32 parameters, under a contract that errs by more.

    A weight that is subnormal in float32 could be read as zero, so that its products with large inputs were lost: none may be.
    """
    if not isinstance(node, Conv | Gemm) or (isinstance(node, Conv) and is_scaling(node, weight)):
        return False
    plain = contract.storage == contract.accumulate == "fp32" and contract.order == "any" and device.type == "cpu"
    terms = weight[0].numel()
    large = plain and node.size * terms >= paths.WIDE_PRODUCTS and (terms + 2) * UNIT32 < 0.25
    return large and not bool(((weight != 0) & (weight.abs() < SMALLEST_NORMAL["fp32"])).any())


def whole_float32() -> bool:
    """Returns whether products of float32 matrices are sums of float32 products here, and not of operands that are cut to fewer bits."""
    asked = (os.environ.get(name, "").upper() for name in SHORTER)
    backends: Any = torch.backends  # torch leaves these untyped; before 2.9 there was one setting for all
    settings = [
        getattr(part, "fp32_precision", "none") for part in (backends, backends.mkldnn, getattr(backends.mkldnn, "matmul", backends.mkldnn))
    ]
    whole = torch.get_float32_matmul_precision() == "highest" and all(mode in ("none", "ieee") for mode in settings)
    return whole and all(mode in WHOLE for mode in asked)


def wide_sum(magnitude: Tensor, factor: Tensor, floor: Tensor, constant: Tensor, bias: Tensor, pad: float) -> WideSum:
    """Returns the record of an operator with weights of this magnitude, float64 [out, …], all of them float32 numbers."""
    terms = magnitude[0].numel()
    grown = (1 + 2.0**-20) / (1 - (terms + 2) * UNIT32)
    lost = (magnitude.flatten(1).amax(dim=1) + 1) * (terms * FLUSHED32)
    return WideSum(magnitude.float(), factor, floor, constant, bias, pad, grown, lost)


def magnitude_sums(node: Node, wide: WideSum, m: Tensor) -> Tensor:
    """Returns at least Σ|w|m, float64 [batch, *node.shape], for m >= 0 float64 [batch, *input shape]."""
    parts = [_float32_sum(node, wide, part) for part in torch.split(m, _at_once(node, wide, m))]
    return torch.cat(parts).double() * wide.grown + _per_output(node, wide.lost)


def wide_interval(node: Node, wide: WideSum, weight: Tensor, bias: Tensor | None, box: Box, largest: float) -> Box | None:
    """Returns the box of a large operator as executed, `weight` and `bias` in float64; None where a magnitude may reach `largest`."""
    lower, upper = box
    if not bool(torch.isfinite(lower.amin()) & torch.isfinite(upper.amax())):
        return None
    most = max(float(upper.amax()), -float(lower.amin()))
    one = wide.one_factor
    fixed = wide.constant + wide.floor * most + wide.bias * wide.pad + wide.lost * 2 + TINY
    fixed = _per_output(node, fixed * (1 + 2.0**-20)).unsqueeze(0)
    low = lower.new_empty(len(lower), *node.shape)
    up = torch.empty_like(low)
    step = _at_once(node, wide, lower)
    reached = []  # tensors, whose maxima are no numbers where one of them is none
    for start in range(0, len(lower), step):
        here = slice(start, start + step)
        l, u = lower[here], upper[here]
        m, width = torch.maximum(u, -l), u - l
        centre = _applied(node, weight, (l + u).mul_(0.5), bias)
        if one is not None:
            error = torch.add(fixed, _float32_sum(node, wide, width.mul_(0.5).add_(m, alpha=one)), alpha=wide.grown)
            largest_error = error.amax()
            reached.append(largest_error / one + largest_error)
        else:
            radius, size = (_float32_sum(node, wide, x) for x in (width.mul_(0.5), m))
            error = torch.add(fixed, radius, alpha=wide.grown)
            error.addcmul_(size.double(), _per_output(node, (wide.factor + wide.pad) * wide.grown))
            reached.append(size.amax().double() * wide.grown + error.amax())
        torch.sub(centre, error, out=low[here])
        torch.add(centre, error, out=up[here])
    # Written so that it is false for what is not a number.
    within = (torch.stack(reached).amax() + wide.bias.amax()) * 1.02 < largest
    return (low, up) if bool(within) and most * 1.02 < largest else None


def _float32_sum(node: Node, wide: WideSum, x: Tensor) -> Tensor:
    """Returns |W| times x >= 0, float64, in float32: each result a sum of products of x moved up, and of exact zeros."""
    y = (x * ABOVE32).float()
    if isinstance(node, Gemm):
        return F.linear(y, wide.magnitude)
    assert isinstance(node, Conv)
    top, left, bottom, right = node.pads
    if node.stride == (1, 1) and node.groups == 1 and wide.magnitude.shape[1] >= SHIFTED_CHANNELS:
        return shifted.convolved(wide.magnitude, y, node.pads, node.dilation)
    return columns.convolution(F.pad(y, (left, right, top, bottom)), wide.magnitude, None, node.stride, (0, 0), node.dilation, node.groups)


def _applied(node: Node, weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """Returns weight times x plus bias in float64."""
    if isinstance(node, Gemm):
        return F.linear(x, weight, bias)
    assert isinstance(node, Conv)
    return convolved(Geometry(node.stride, node.pads, node.dilation, node.groups), weight, x, bias)


def _at_once(node: Node, wide: WideSum, x: Tensor) -> int:
    """Returns how many samples are worked on at once: columns and maps of these stay near the caches."""
    if isinstance(node, Gemm):
        return max(1, len(x))
    return max(1, paths.WIDE_BYTES // (8 * max(wide.magnitude[0].numel() * node.shape[1] * node.shape[2], x[0].numel(), node.size)))


def _per_output(node: Node, value: Tensor) -> Tensor:
    return value.view(-1, *(1 for _ in node.shape[1:]))


def affine_parameters(node: Node, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Returns W and b of an affine operator."""
    assert isinstance(node, Conv | Gemm)
    return params[node.weight], None if node.bias is None else params[node.bias]
