"""Projected gradient descent on the margin, inside a box of float32 numbers, where every iterate is a member, or inside another region.

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

from vsparse.compute_device import reading_back, to_host
from vsparse.graph import Graph, run
from vsparse.stages.verify.spaces import AttackState, BoxSpace, Space

# A margin below this fraction of the logits' size is taken as found: float32 executions that differ in order agree on its sign.
CLEAR = 1e-4


@dataclass(frozen=True)
class Attack:
    """The worst point found for each sample: `inputs` [n, *shape] float32 and its margin [n], z_label minus the largest other logit.

    `pairs` [n, 2] are the b and c it was made with, a hint for whoever decides membership. `visited` holds the worst points of the single
    descents: positions [m] among the samples, points [m, *shape], and their pairs [m, 2].
    """

    inputs: Tensor
    margins: Tensor
    pairs: Tensor
    visited: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()


def pgd(
    graph: Graph,
    params: Mapping[str, Tensor],
    x: NDArray[np.float32],
    region: tuple[Tensor, Tensor] | Space,
    labels: NDArray[np.int64],
    seeds: Sequence[Sequence[int]],
    *,
    steps: int,
    restarts: int,
) -> Attack:
    """Returns the points of least margin that projected gradient descent finds in a box (lower, upper) float32 [n, *shape], or a space.

    The first start is x [n, *shape] itself, the others are random; every second restart lowers the margin to one class, the
    likeliest wrong one, then the next. The step is a fraction of the region's half width that falls from 1/2 to 1/50 over the steps.
    It is computed on the device of `params`; `x`, `labels`, the region and what is returned are on the processor.
    Samples whose margin is clearly negative are left alone from then on. `seeds` gives each sample random numbers of its own.
    """
    device = next((value.device for value in params.values()), torch.device("cpu"))
    space = (BoxSpace(*region) if isinstance(region, tuple) else region).to(device)
    target = torch.from_numpy(labels).to(device)
    best = torch.from_numpy(x).to(device).clone()
    logits = _logits(graph, params, best)
    margins = margin(logits, target)
    pairs = torch.zeros(len(best), 2, dtype=torch.float64, device=device)
    order = _runners_up(logits, target)
    visited: list[tuple[Tensor, Tensor, Tensor]] = []
    open_ = _where(margins > -CLEAR * _size(logits))
    for restart in range(restarts):
        if not len(open_):
            break
        aim = None
        if restart % 2:
            aim = order[open_, (restart // 2) % order.shape[1]]
        there = space.pick(open_)
        start = there.at(best[open_]) if restart == 0 else there.random([seeds[i] for i in to_host(open_).tolist()], restart)
        found, found_margins, found_pairs, sizes = _descend(graph, params, start, there, target[open_], aim, steps)
        visited.append((to_host(open_), to_host(found), to_host(found_pairs)))
        better = _where(found_margins < margins[open_])
        best[open_[better]] = found[better]
        margins[open_[better]] = found_margins[better]
        pairs[open_[better]] = found_pairs[better]
        open_ = open_[_where(margins[open_] > -CLEAR * sizes)]
    return Attack(to_host(best), to_host(margins), to_host(pairs), tuple(visited))


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns z_label - max of the others, [n], for logits [n, classes]; +inf where a logit is not finite (nothing is found there)."""
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return torch.where(torch.isfinite(logits).all(dim=1), own - others, torch.inf)


def _descend(
    graph: Graph, params: Mapping[str, Tensor], state: AttackState, space: Space, labels: Tensor, aim: Tensor | None, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    best, pairs = space.point(state).detach().clone(), space.pairs(state)
    least, size = best.new_full((len(best),), torch.inf), best.new_zeros(len(best))
    for step in range(steps + 1):
        for value in state:
            value.requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            x = space.point(state)
            logits = run(graph, params, x)
            margins = margin(logits, labels)
        better = margins.detach() < least
        best = torch.where(better.view(-1, *[1] * (x.dim() - 1)), x.detach(), best)
        pairs = torch.where(better.unsqueeze(1), space.pairs(state).detach(), pairs)
        least = torch.where(better, margins.detach(), least)
        size = torch.maximum(size, _size(logits.detach()))
        if step == steps or bool(to_host((least < -CLEAR * size).all())):
            break
        loss = margins if aim is None else logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, aim[:, None])[:, 0]
        gradients = torch.autograd.grad(torch.where(torch.isfinite(loss), loss, 0.0).sum(), state)
        fraction = 0.5 * (0.04 ** (step / max(steps - 1, 1)))
        with torch.no_grad():
            state = space.step(state, gradients, fraction)
    return best, least, pairs, size


def _where(mask: Tensor) -> Tensor:
    """Returns the positions at which a mask is true."""
    with reading_back("which samples go on"):
        return mask.nonzero().flatten()


def _logits(graph: Graph, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return run(graph, params, x)


def _size(logits: Tensor) -> Tensor:
    return torch.nan_to_num(logits.abs(), nan=0.0, posinf=0.0).amax(dim=1)


def _runners_up(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the classes other than the label, likeliest first: [n, classes - 1]."""
    others = torch.nan_to_num(logits).scatter(1, labels[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, :-1]
