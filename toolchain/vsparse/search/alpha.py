"""Optimised slopes and multipliers: projected Adam on the bound of many rows at once.

Xu et al., arXiv 2011.13824 (slopes) and Wang et al., arXiv 2103.06624 (multipliers). Each row keeps its best choice so far, and leaves
the batch as soon as its bound exceeds the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.proof import LEVELS
from vsparse.bounds.region import Region
from vsparse.bounds.rounding import Rounding
from vsparse.compute_device import reading_back, to_host
from vsparse.graph.ir import Conv, Gemm, Graph, Relu
from vsparse.search.dense import AffineRows, DenseRelaxation, applies
from vsparse.search.relaxed import Choice, GraphRelaxation

Net = DenseRelaxation | GraphRelaxation
# A product through a convolution costs about this many times one of a dense matrix.
CONVOLUTION_COST = 9
BETA1, BETA2, TINY = 0.9, 0.999, 1e-12


@dataclass(frozen=True)
class Effort:
    """How much to optimise: steps, size of the first one for slopes and (relative to the coefficients) for multipliers, and its decay."""

    steps: int = 20
    slope_rate: float = 0.15
    multiplier_rate: float = 0.3
    decay: float = 0.93
    check: int = 4


def relax(
    graph: Graph,
    rounding: Rounding,
    params32: Mapping[str, Tensor],
    box: Box | Region,
    boxes: Mapping[str, Box],
    earlier: Net | None = None,
) -> Net:
    """Returns the relaxation that evaluates rows fastest; `boxes` float64 [1, …] enclose the activations for all inputs in `box`.

    `earlier` is a relaxation over the same inputs with wider boxes, parts of which may be reused.
    """
    inputs = prod(graph.input_shape)
    relus = [node.inputs[0] for node in graph.nodes if isinstance(node, Relu)]
    unstable = [int(to_host(((boxes[name][0] < 0) & (boxes[name][1] > 0)).sum())) for name in relus]
    through = sum(sum(unstable[:layer]) * count for layer, count in enumerate(unstable)) + sum(unstable) * inputs
    general = 0
    for node in graph.nodes:
        if isinstance(node, Gemm):
            general += graph.params[node.weight].size
        elif isinstance(node, Conv):
            general += CONVOLUTION_COST * graph.params[node.weight].size * node.shape[1] * node.shape[2]
    if isinstance(box, Region) or not applies(graph) or through > general:
        net: Net = GraphRelaxation(graph, params32, box, boxes)
        net.work = general
    else:
        net = DenseRelaxation(graph, rounding.params, box, boxes, earlier if isinstance(earlier, DenseRelaxation) else None)
        net.work = through
    return net


def pick(form: AffineRows | tuple[Tensor, str], index: Tensor) -> AffineRows | tuple[Tensor, str]:
    """Returns some of the rows of a form; a form of one row stands for any number."""
    if isinstance(form, AffineRows):
        return form if len(form.constant) == 1 else form[index]
    return form if len(form[0]) == 1 else (form[0][index], form[1])


def optimise(
    net: Net, form: AffineRows | tuple[Tensor, str], choice: Choice, threshold: Tensor | float, effort: Effort
) -> tuple[Tensor, Choice]:
    """Returns (best bounds [R], the choices that give them); rows with a bound above the threshold (a number or [R]) are left alone."""
    rows = len(choice)
    device = choice.slopes.device
    thresholds = torch.as_tensor(threshold, dtype=torch.float32, device=device).expand(rows)
    best = torch.full((rows,), -torch.inf, device=device)
    kept = Choice(choice.slopes.clone(), choice.splits, choice.multipliers.clone())
    open_ = torch.arange(rows, device=device)
    x = Choice(choice.slopes.clone(), choice.splits, choice.multipliers.clone())
    part = form
    moments = [torch.zeros_like(x.slopes) for _ in range(4)]
    size = torch.ones(rows, 1, device=device)
    split = bool(to_host(choice.splits.any()))
    for step in range(effort.steps + 1):
        last = step == effort.steps
        found = net.evaluate(part, x, not last)  # type: ignore[arg-type]  # the form is the net's own
        with reading_back("which rows are better than before"):
            better = (found.bound > best[open_]).nonzero().flatten()
        improved = open_[better]
        best[improved] = found.bound[better]
        kept.slopes[improved] = x.slopes[better]
        if split:
            kept.multipliers[improved] = x.multipliers[better]
        if last:
            break
        assert found.to_slopes is not None
        assert found.to_multipliers is not None
        assert found.coefficients is not None
        if step == 0 and split:
            size = found.coefficients.abs().amax(dim=1, keepdim=True)
        rate = effort.decay**step
        x.slopes.add_(_adam(moments[0], moments[1], found.to_slopes, step), alpha=effort.slope_rate * rate).clamp_(0, 1)
        if split:
            change = _adam(moments[2], moments[3], found.to_multipliers, step)
            x.multipliers.addcmul_(change, size, value=effort.multiplier_rate * rate).clamp_(min=0)
        if step % effort.check == effort.check - 1 or step == 0:
            with reading_back("which rows are open"):
                index = (best[open_] <= thresholds[open_]).nonzero().flatten()
            if len(index) < len(open_):
                if not len(index):
                    break
                open_, x, part = open_[index], x[index], pick(part, index)
                moments, size = [moment[index] for moment in moments], size[index]
    return best, kept


def reach(net: Net, form: AffineRows | tuple[Tensor, str], choice: Choice, threshold: float, steps: int) -> tuple[Tensor, Choice]:
    """Returns (best bounds, choices) of rows whose units are all split, so that multipliers are all that is left; `form` has one row.

    Polyak's subgradient method (Polyak, 1969): a step of (threshold − bound)/‖g‖² along the gradient g, slightly over-relaxed, ends above
    the threshold wherever that can be reached, however badly the problem is scaled.
    """
    best = torch.full((len(choice),), -torch.inf, device=choice.slopes.device)
    kept = Choice(choice.slopes, choice.splits, choice.multipliers.clone())
    open_, x = torch.arange(len(choice), device=choice.slopes.device), kept[:]
    x.multipliers = x.multipliers.clone()
    for _ in range(steps):
        found = net.evaluate(form, x, True)  # type: ignore[arg-type]  # the form is the net's own
        assert found.to_multipliers is not None
        with reading_back("which rows are better than before, and which are open"):
            better = (found.bound > best[open_]).nonzero().flatten()
            left = (found.bound <= threshold).nonzero().flatten()
        best[open_[better]] = found.bound[better]
        kept.multipliers[open_[better]] = x.multipliers[better]
        if not len(left):
            break
        gradient = found.to_multipliers[left]
        gradient = torch.where((x.multipliers[left] > 0) | (gradient > 0), gradient, 0.0)
        lacking = (threshold - found.bound[left]) * 1.2 + 1e-6
        step = lacking / gradient.square().sum(1).clamp(min=1e-12)
        open_, x = open_[left], x[left]
        x.multipliers = x.multipliers.addcmul(gradient, step.unsqueeze(1)).clamp_(min=0)
    return best, kept


def _adam(mean: Tensor, square: Tensor, gradient: Tensor, step: int) -> Tensor:
    """Returns Adam's ascent direction, and updates its moments (Kingma and Ba, ICLR 2015)."""
    mean.lerp_(gradient, 1 - BETA1)
    square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    scale = (1 - BETA2 ** (step + 1)) ** 0.5 / (1 - BETA1 ** (step + 1))
    direction: Tensor = mean / square.sqrt().add_(TINY) * scale
    return direction


def quantise(slopes: Tensor) -> Tensor:
    """Returns slopes as the bytes that a proof stores."""
    return (slopes * LEVELS).round_().clamp_(0, LEVELS).to(torch.uint8)


def restore(stored: Tensor) -> Tensor:
    """Returns the slopes that bytes stand for."""
    return stored.to(torch.float32) / LEVELS
