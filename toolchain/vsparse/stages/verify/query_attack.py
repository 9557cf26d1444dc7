"""Projected gradient descent towards unsafe outputs of a query, many starts at once, inside a box of float32 numbers.

Madry et al., ICLR 2018. The loss of a start is the violation of one unsafe conjunction: the largest of its rows' margins, which is at most
0 where the outputs are unsafe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from vsparse.bounds import Box
from vsparse.graph import Graph, run
from vsparse.search.goal import Goal

STARTS = 48
STEPS = 60
# How many points that look unsafe are replayed after one step, those of the largest violation first.
REPLAYS = 4


def attack(
    graph: Graph,
    params: Mapping[str, Tensor],
    box: Box,
    goal: Goal,
    accept: Callable[[Tensor], bool],
    *,
    rounds: int,
    seed: int,
    deadline: float,
    steps: int = STEPS,
) -> Tensor | None:
    """Returns a float32 input [*shape] of `box` = (lower, upper), float32 [1, *shape], that `accept` takes as unsafe, or None.

    The first starts are the centre and random corners, the others uniform; each aims at one group, those nearest to unsafe at the centre
    most often. Stops after `rounds` of starts, or at `deadline` (of `time.monotonic`).
    """
    lower, upper = box
    half = (upper - lower) * 0.5
    centre = torch.minimum(torch.maximum(lower + half, lower), upper)
    with torch.no_grad():
        order = torch.nan_to_num(goal.best(goal.margins(run(graph, params, centre)))[0], nan=torch.inf).argsort(stable=True)
    for number in range(rounds):
        dice = np.random.default_rng([seed, number])
        shares = torch.from_numpy(dice.random((STARTS, *graph.input_shape), dtype=np.float32))
        # A third corners, the others anywhere.
        shares[: STARTS // 3] = shares[: STARTS // 3].round()
        x = torch.minimum(torch.maximum(lower + shares * (upper - lower), lower), upper)
        if number == 0:
            x[0] = centre[0]
        # 0 0 1 0 1 2 0 1 2 3 …: every group has its turn, the nearest ones more.
        turns = [k for most in range(1, STARTS) for k in range(most)][: STARTS * 4]
        aim = order[torch.tensor([turns[(i + number * 7) % len(turns)] for i in range(STARTS)]) % len(order)]
        found = _descend(graph, params, x, (lower, upper, half), goal, aim, accept, steps, deadline)
        if found is not None:
            return found
        if monotonic() > deadline:
            break
    return None


def _descend(
    graph: Graph,
    params: Mapping[str, Tensor],
    x: Tensor,
    box: tuple[Tensor, Tensor, Tensor],
    goal: Goal,
    aim: Tensor,
    accept: Callable[[Tensor], bool],
    steps: int,
    deadline: float,
) -> Tensor | None:
    lower, upper, half = box
    for step in range(steps + 1):
        x.requires_grad_(True)
        violations = goal.best(goal.margins(run(graph, params, x)))
        nearest = torch.nan_to_num(violations.detach(), nan=torch.inf).amin(1)
        for i in nearest.argsort()[:REPLAYS].tolist():
            if float(nearest[i]) <= 0 and accept(x[i].detach()):
                return x[i].detach()
        if step == steps or monotonic() > deadline:
            return None
        loss = violations.gather(1, aim.unsqueeze(1))
        (gradient,) = torch.autograd.grad(loss[torch.isfinite(loss)].sum(), x)
        share = 0.5 * (0.02 ** (step / max(steps - 1, 1)))
        with torch.no_grad():
            x = torch.minimum(torch.maximum(x - share * half * torch.nan_to_num(gradient).sign(), lower), upper)
    return None
