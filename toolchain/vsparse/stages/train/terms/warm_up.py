"""The warm-up regulariser of Shi et al.: keeps bounds tight and ReLUs balanced while the radius grows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vsparse.graph.ir import Affine, Graph, Relu

TOLERANCE = 0.5
_TINY = 1e-12


def warm_up_regulariser(graph: Graph, enclosure: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Returns the sum of the tightness and the ReLU balance terms over all ReLUs (a scalar; multiply it by λ·(1 − ε/ε_max)).

    `enclosure` maps activations to (lower, upper), each [batch, *shape]. Tightness: relu(τ − width₀/width_i)/τ, the mean width of
    the box entering the first affine layer against that at each ReLU. Balance: relu(τ − ratio)/τ for the ratio, inverted where
    above 1, of the active to the inactive neurons' contributions to mean and to variance of the centres. τ = 0.5; each term
    is averaged over the ReLUs (Shi et al., NeurIPS 2021, section 3.3, equations 7 to 9). A ReLU without active or without
    inactive neurons has no balance term.
    """
    first = next((node for node in graph.nodes if isinstance(node, Affine)), None)
    relus = [node for node in graph.nodes if isinstance(node, Relu) and node.inputs[0] in enclosure]
    if first is None or not relus:
        return next(iter(enclosure.values()))[0].new_zeros(())
    lower, upper = enclosure[first.inputs[0]]
    input_width = (upper - lower).mean()
    total = input_width.new_zeros(())
    for node in relus:
        statistics: Tensor = _Statistics.apply(*enclosure[node.inputs[0]])  # type: ignore[no-untyped-call]  # torch leaves it untyped
        width, active, inactive, active_spread, inactive_spread = statistics.unbind()
        total = total + torch.relu(TOLERANCE - input_width / width.clamp(min=_TINY))
        total = total + _imbalance(active, -inactive)
        total = total + _imbalance(active_spread, inactive_spread)
    return total / (TOLERANCE * len(relus))


def _imbalance(active: Tensor, inactive: Tensor) -> Tensor:
    """Returns relu(τ − min(a/b, b/a)), or 0 where one side is empty; without a look at the values where a device would be waited for."""
    small, large = torch.minimum(active, inactive), torch.maximum(active, inactive)
    if small.device.type != "cpu":
        there = small > _TINY
        return torch.where(there, torch.relu(TOLERANCE - small / torch.where(there, large, 1)), 0)
    # Where a look costs nothing, it saves what nobody needs.
    if float(small.detach()) <= _TINY:
        return small.new_zeros(())
    return torch.relu(TOLERANCE - small / large)


class _Statistics(torch.autograd.Function):
    """The means that the terms are made of, [5], in a few passes over the bounds.

    Of the width; over active and over inactive neurons of the centre c, and of (c − μ)², μ the mean of all centres. Each is
    a mean over all neurons.
    """

    @staticmethod
    def forward(ctx: Any, lower: Tensor, upper: Tensor) -> Tensor:
        centre = lower.add(upper).mul_(0.5).flatten()
        mean = centre.mean()
        active, inactive = lower.flatten().gt(0).to(centre.dtype), upper.flatten().lt(0).to(centre.dtype)
        offset = centre - mean
        # Sums of the centres follow from those of the offsets by the counts.
        on, off = offset * active, offset * inactive
        sums = torch.stack([on.sum(), off.sum()])
        counts = torch.stack([active.sum(), inactive.sum()])
        squares = torch.stack([on.dot(offset), off.dot(offset)])
        ctx.save_for_backward(active, inactive, on, off, sums)
        ctx.shape = lower.shape
        means = sums + mean * counts
        width = upper.mean() - lower.mean()
        return torch.cat([width[None] * len(centre), means, squares]) / len(centre)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        active, inactive, on, off, sums = ctx.saved_tensors
        size = len(active)
        width, first, second, first_square, second_square = (gradient / size).unbind()
        # d(c − μ)² · a / dc = 2 (c − μ) a, less through μ its mean; the means of the centres have no μ.
        through = -2 * (first_square * sums[0] + second_square * sums[1]) / size
        centre = on.mul(2 * first_square).addcmul_(off, 2 * second_square).addcmul_(active, first).addcmul_(inactive, second).add_(through)
        half = centre.mul_(0.5).view(ctx.shape)
        return half - width, half + width
