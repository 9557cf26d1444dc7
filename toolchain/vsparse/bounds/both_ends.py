"""Backward bounds on windows that hold on both sides: one row of coefficients bounds its activation from below, and from above as well.

A row that is passed back takes a line below or above each ReLU by the sign of its coefficient. What it may be off by there has a bound of
its own, so that the sum of these, the slack, is how far the activation may be above what the row says: most units of a large network
become stable by one row instead of two (docs/numerics.md, section 5.5). Maps lie with the position first and the rows of all
windows last, so that the taps of one row of a kernel are one product of matrices without any columns being made.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.float64 import TINY, UNIT64, gamma64
from vsparse.bounds.rules import Params
from vsparse.graph.ir import Add, Conv, Node, Relu, Slice

# Sums that a row adds up: its constant, what is charged, and the slack.
SUMS = 3
# What every term of the constant and of the slack is charged for the rounding of these sums, relative to its magnitude: at least γ64 of
# their length.
LOST = 2.0**-30
# Products of a few outputs are made for all rows of a kernel at once, and added up after that.
FEW_OUTPUTS = 16
# Bytes of the widest map of a piece of work: near the caches.
PIECE = 2**22
# A single place, whose windows are made once, may have so many times the rows of a piece.
MOST_ROWS = 8


class Lines(NamedTuple):
    """A relaxed ReLU as maps [batch, channels, height, width]: the slopes of the lines below and above it, the constant of the line above,
    and how far the ReLU may be above the line below."""

    lower: Tensor
    upper: Tensor
    over: Tensor
    gap: Tensor


def relu_lines(box: Box, lower_slope: Tensor, upper_slope: Tensor, intercept: Tensor) -> Lines:
    """Returns the lines of a ReLU over the box of its input [batch, channels, height, width], from its relaxation.

    ReLU(z) − s·z is convex and so largest at an end of the box; a·z + b − ReLU(z) is concave, and at 0, where it is largest, it is b.
    """
    lower, upper = box
    crosses = ~((lower >= 0) | (upper <= 0))
    gap = torch.maximum(-lower * lower_slope, upper - upper * lower_slope)
    return Lines(lower_slope, upper_slope, intercept, torch.where(crosses, gap, 0.0))


def plain_terms(cost: Tensor, bias: Tensor | None) -> Tensor:
    """Returns what one coefficient of an activation adds to each of the three sums, of its positive part and of its negative part:
    [batch, 6, channels, height, width]. `cost` is that of the activation, `bias` what its operator adds."""
    b = torch.zeros_like(cost) if bias is None else bias.expand_as(cost)
    charged, nothing = (cost + LOST * b.abs()) * (1 + 2 * LOST), torch.zeros_like(cost)
    return torch.stack([b, charged, nothing, b, -charged, nothing], dim=1)


def relu_terms(own: Tensor, lines: Lines, cost: Tensor, bias: Tensor | None) -> Tensor:
    """Returns `plain_terms` of a ReLU, whose `own` cost is charged, and of the activation that it alone reads (`cost`, `bias`), followed by
    its slopes below and above: [batch, 8, channels, height, width]."""
    b = torch.zeros_like(cost) if bias is None else bias.expand_as(cost)
    each = cost + LOST * b.abs()
    below = (own + lines.lower * each) * (1 + 2 * LOST)
    above = (own + lines.upper * each + LOST * lines.over) * (1 + 2 * LOST)
    positive, negative = [lines.lower * b, below, lines.gap], [lines.over + lines.upper * b, -above, -lines.over]
    return torch.stack([*positive, *negative, lines.lower, lines.upper], dim=1)


def source_terms(box: Box, cost: Tensor) -> Tensor:
    """Returns `plain_terms` of the source, whose coefficients meet its box: the centre, and the radius as a charge."""
    lower, upper = box
    centre = (lower + upper) * 0.5
    radius = torch.maximum(upper - centre, centre - lower) * (1 + 4 * UNIT64) + TINY
    return plain_terms(cost + radius, centre)


def supported(chain: list[Node], params: Params, elements: int) -> bool:
    """Returns whether all nodes of a chain on windows with so many elements can be passed here."""
    # Each term is in at most as many additions as there are terms, two for each element, and has at most two dozen roundings of its own.
    longest = 2 * elements + 4 * len(chain) + 64
    return gamma64(longest, torch.device("cpu")) * (1 + 2.0**-20) <= LOST and all(
        isinstance(node, Relu | Add | Slice)
        or (isinstance(node, Conv) and node.groups == 1 and tuple(node.dilation) == (1, 1) and params[node.weight].dim() == 4)
        for node in chain
    )


class BothEnds:
    """Bounds of single units on windows.

    `chain` are the nodes on their windows, target first, ending at `source` of `shape`. `terms` holds those of every activation that is
    charged, and the slopes of each ReLU after them, as views [batch, rows, columns, 6 or 8, height, width, channels] with 0 in the padding;
    `masked` says for activations, bool [positions, height · width], where they are padding.
    """

    def __init__(
        self,
        chain: list[Node],
        params: Params,
        source: str,
        shape: tuple[int, ...],
        terms: Mapping[str, Tensor],
        masked: Mapping[str, Tensor],
    ) -> None:
        self.chain, self.params, self.source, self.terms, self.masked = chain, params, source, terms, masked
        self.shapes: dict[str, tuple[int, ...]] = {source: shape} | {node.name: node.shape for node in chain}
        self.target = chain[0]
        self.most = max(1, PIECE // (8 * max(map(prod, self.shapes.values()))))

    def bound(self, samples: Tensor, units: Tensor, signs: Tensor, positions: int, width: int) -> Tensor:
        """Returns lower and upper bounds [n, 2] of sign · z for sample [n], flat unit [n] and sign [n] of a target with so many positions,
        in rows of `width`."""
        place, where = torch.unique(samples * positions + units % positions, return_inverse=True)
        order = where.argsort(stable=True)
        counts = torch.bincount(where, minlength=len(place))
        starts = counts.cumsum(0) - counts
        found = signs.new_zeros(len(samples), 2)
        # Places with the most units first, so that few rows of a block are empty.
        by_count = counts.argsort(descending=True, stable=True)
        begin = 0
        while begin < len(place):
            most = int(counts[by_count[begin]])
            chosen = by_count[begin : begin + max(1, self.most // most)]
            begin += len(chosen)
            for first in range(0, most, MOST_ROWS * self.most):
                rank = torch.arange(first, min(most, first + MOST_ROWS * self.most)).expand(len(chosen), -1)
                valid = rank < counts[chosen].unsqueeze(1)
                pair = order[(starts[chosen].unsqueeze(1) + rank)[valid]]
                at = valid.nonzero(as_tuple=True)
                rows = signs.new_zeros(self.target.shape[0], *rank.shape)
                rows[units[pair] // positions, at[0], at[1]] = signs[pair]
                key = place[chosen]
                lower, upper = self._rows(key // positions, key % positions, width, rows)
                found[pair] = torch.stack([lower[valid], upper[valid]], dim=1)
        return found

    def _rows(self, samples: Tensor, position: Tensor, width: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns lower and upper bounds [n, R] of rows [channels, n, R] of the target at one position of one sample each."""
        where = (samples, position // width, position % width)
        count, each = rows.shape[1:]
        sums = rows.new_zeros(count, SUMS, each)
        # [height, width, channels, n, R] by activation
        passing: dict[str, Tensor] = {self.target.name: rows.reshape(1, 1, *rows.shape)}

        def charge(name: str, above: Tensor, below: Tensor) -> Tensor:
            vectors = self.terms[name][where]
            for start, a in ((0, above), (SUMS, below)):
                sums.baddbmm_(vectors[:, start : start + SUMS].flatten(2), a.reshape(-1, count, each).transpose(0, 1))
            return vectors[:, 2 * SUMS :]

        def hand_on(name: str, a: Tensor) -> None:
            passing[name] = passing[name] + a if name in passing else a

        for node in self.chain:
            a = passing.pop(node.name)
            if node.name in self.masked:
                outside = self.masked[node.name][position].t().reshape(*a.shape[:2], 1, count, 1)
                a = a.masked_fill(outside, 0.0)
            if isinstance(node, Relu):
                above, below = a.clamp(min=0), a.clamp(max=0)
                lower, upper = charge(node.name, above, below).permute(1, 2, 3, 4, 0).unsqueeze(5)
                hand_on(node.inputs[0], above.mul_(lower).addcmul_(below, upper))
                continue
            if node.name in self.terms:
                charge(node.name, a.clamp(min=0), a.clamp(max=0))
            if isinstance(node, Conv):
                flat = a.flatten(3)
                back = transposed(self.params[node.weight], flat, (node.stride[0], node.stride[1]))
                hand_on(node.inputs[0], back.view(*back.shape[:3], count, each))
            elif isinstance(node, Slice):
                whole = a.new_zeros(*self.shapes[node.inputs[0]][1:], *a.shape[2:])
                whole[node.starts[1] : node.stops[1], node.starts[2] : node.stops[2]] = a
                hand_on(node.inputs[0], whole)
            else:
                for name in node.inputs:
                    hand_on(name, a)
        a = passing[self.source]
        charge(self.source, a.clamp(min=0), a.clamp(max=0))
        constant, cost, slack = sums.unbind(1)
        # All terms but those charged have paid for their rounding; these lose no more than LOST of their own sum.
        lower = constant - cost * (1 + 2 * LOST) - TINY
        upper = constant + (cost + slack * LOST) * (1 + 2 * LOST) + slack + TINY
        infinity = torch.inf
        return torch.nan_to_num(lower, nan=-infinity, posinf=-infinity, neginf=-infinity), torch.nan_to_num(
            upper, nan=infinity, posinf=infinity, neginf=infinity
        )


def transposed(weight: Tensor, a: Tensor, stride: tuple[int, int]) -> Tensor:
    """Returns the transpose of a convolution without padding, applied to a [h, w, out, n]: [(h − 1)·stride + kh, …, in, n].

    `weight` is [out, in, kh, kw]. Each result is a sum of the products that the convolution has, and of exact zeros.
    """
    if a.shape[:2] == (1, 1):  # no two taps meet
        down, across, into = weight.shape[2], weight.shape[3], weight.shape[1]
        return (weight.permute(2, 3, 1, 0).reshape(-1, len(weight)) @ a[0, 0]).view(down, across, into, -1)
    if stride == (1, 1):
        return _by_kernel_rows(weight, a)
    height, width, _, count = a.shape
    kernel = weight.shape[2:]
    found = a.new_zeros((height - 1) * stride[0] + kernel[0], (width - 1) * stride[1] + kernel[1], weight.shape[1], count)
    for down in range(min(stride[0], kernel[0])):
        for across in range(min(stride[1], kernel[1])):
            part = _by_kernel_rows(weight[:, :, down :: stride[0], across :: stride[1]], a)
            found[down :: stride[0], across :: stride[1]][: part.shape[0], : part.shape[1]] = part
    return found


def _by_kernel_rows(weight: Tensor, a: Tensor) -> Tensor:
    """Returns `transposed` of stride 1: for each row of the kernel, one product of matrices a position, of all taps of that row.

    Maps have a row's reach of zeros after each of their rows, and before the first, so that the inputs of the taps of one row lie one
    behind the other at every position.
    """
    height, width, channels, count = a.shape
    _, into, down, across = weight.shape
    whole, reach = width + across - 1, across - 1
    flat = a
    if reach:
        flat = a.new_zeros(reach + height * whole, channels, count)
        flat[reach:].view(height, whole, channels, count)[:, :width] = a
    else:
        flat = a.reshape(height * width, channels, count)
    stacked = flat.as_strided((height * whole, across * channels, count), (channels * count, count, 1))
    # [kh, in, kw · out], the last tap of a row first.
    matrices = weight.flip(3).permute(2, 1, 3, 0).reshape(down, into, across * channels)
    found = a.new_zeros((height + down - 1) * whole, into, count)
    if down * into <= FEW_OUTPUTS:
        maps = torch.bmm(matrices.reshape(1, down * into, -1).expand(len(stacked), -1, -1), stacked)
        for i in range(down):
            found[i * whole : (i + height) * whole] += maps[:, i * into : (i + 1) * into]
    else:
        for i in range(down):
            found[i * whole : (i + height) * whole].baddbmm_(matrices[i].expand(len(stacked), -1, -1), stacked)
    return found.view(height + down - 1, whole, into, count)
