"""Projected gradient descent on the margin, inside a box of float32 numbers, so that every iterate is a member of the region.

Madry et al., ICLR 2018, with the margin loss of Carlini and Wagner (2017, loss f6) instead of the cross-entropy, and restarts that aim
at single classes (Gowal et al., "An Alternative Surrogate Loss for PGD-based Adversarial Testing", 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.graph import Graph, run

# A margin below this share of the logits' size is taken as found: float32 executions that differ in order agree on its sign.
CLEAR = 1e-4


@dataclass(frozen=True)
class Attack:
    """The worst point found for each sample: `inputs` [n, *shape] float32 and its margin [n], z_label minus the largest other logit."""

    inputs: Tensor
    margins: Tensor


def pgd(
    graph: Graph,
    params: Mapping[str, Tensor],
    x: NDArray[np.float32],
    box: tuple[Tensor, Tensor],
    labels: NDArray[np.int64],
    seeds: Sequence[Sequence[int]],
    *,
    steps: int,
    restarts: int,
) -> Attack:
    """Returns the points of least margin that projected gradient descent finds in `box` = (lower, upper) float32 [n, *shape].

    The first start is x [n, *shape] itself, the others are uniform in the box; every second restart lowers the margin to one class, the
    likeliest wrong one, then the next. The step is a share of the box's half width that falls from 1/2 to 1/50 over the steps. Samples
    whose margin is clearly negative are left alone from then on. `seeds` gives each sample random numbers of its own.
    """
    lower, upper = box
    target = torch.from_numpy(labels)
    best = torch.from_numpy(x).clone()
    logits = _logits(graph, params, best)
    margins = margin(logits, target)
    order = _runners_up(logits, target)
    open_ = (margins > -CLEAR * _size(logits)).nonzero().flatten()
    for restart in range(restarts):
        if not len(open_):
            break
        aim = None
        if restart % 2:
            aim = order[open_, (restart // 2) % order.shape[1]]
        start = best[open_] if restart == 0 else _uniform(lower, upper, open_, seeds, restart)
        found, found_margins, sizes = _descend(graph, params, start, (lower[open_], upper[open_]), target[open_], aim, steps)
        better = found_margins < margins[open_]
        best[open_[better]] = found[better]
        margins[open_[better]] = found_margins[better]
        open_ = open_[margins[open_] > -CLEAR * sizes]
    return Attack(best, margins)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns z_label - max of the others, [n], for logits [n, classes]; +inf where a logit is not finite (nothing is found there)."""
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return torch.where(torch.isfinite(logits).all(dim=1), own - others, torch.inf)


def _descend(
    graph: Graph, params: Mapping[str, Tensor], start: Tensor, box: tuple[Tensor, Tensor], labels: Tensor, aim: Tensor | None, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    lower, upper = box
    half = (upper - lower) / 2
    x = start.clone()
    best, least = x.clone(), torch.full((len(x),), torch.inf)
    size = torch.zeros(len(x))
    for step in range(steps + 1):
        x.requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            logits = run(graph, params, x)
            margins = margin(logits, labels)
        better = margins.detach() < least
        best[better] = x.detach()[better]
        least = torch.where(better, margins.detach(), least)
        size = torch.maximum(size, _size(logits.detach()))
        if step == steps or bool((least < -CLEAR * size).all()):
            break
        loss = margins if aim is None else logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, aim[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(loss[torch.isfinite(loss)].sum(), x)
        share = 0.5 * (0.04 ** (step / max(steps - 1, 1)))
        with torch.no_grad():
            x = torch.minimum(torch.maximum(x - share * half * torch.nan_to_num(gradient).sign(), lower), upper)
    return best, least, size


def _logits(graph: Graph, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return run(graph, params, x)


def _size(logits: Tensor) -> Tensor:
    return torch.nan_to_num(logits.abs(), nan=0.0, posinf=0.0).amax(dim=1)


def _runners_up(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the classes other than the label, likeliest first: [n, classes - 1]."""
    others = torch.nan_to_num(logits).scatter(1, labels[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, :-1]


def _uniform(lower: Tensor, upper: Tensor, index: Tensor, seeds: Sequence[Sequence[int]], restart: int) -> Tensor:
    """Returns a uniform point of each box, from random numbers that depend on the sample and the restart alone."""
    shape = tuple(lower.shape[1:])
    shares = np.stack([np.random.default_rng([*seeds[i], restart]).random(shape, dtype=np.float32) for i in index.tolist()])
    low, high = lower[index], upper[index]
    return torch.minimum(torch.maximum(low + torch.from_numpy(shares) * (high - low), low), high)
