"""Projected gradient descent towards unsafe outputs of a query, many starts at once, inside a box of float32 numbers.

Madry et al., ICLR 2018. The loss of a start is the violation of one unsafe conjunction: the largest of its rows' margins, which is at most
0 where the outputs are unsafe. Half of the starts see a gradient through inactive ReLUs too, at first: where a network is flat, as a
well-trained one is around its samples, the true gradient is zero or leads nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vsparse.bounds import Box
from vsparse.compute_device import to_host
from vsparse.graph import Graph, Relu, apply, run
from vsparse.search.specification import Specification

STARTS = 60
STEPS = 100
# How many points that look unsafe are replayed after one step, those of the largest violation first.
REPLAYS = 4
# The slope of an inactive ReLU in the gradient of these starts; it falls to 0 over this fraction of the steps.
LEAK, LEAKY_FRACTION = 0.1, 0.7


def attack(
    graph: Graph,
    params: Mapping[str, Tensor],
    box: Box,
    boxes: Mapping[str, Box],
    specification: Specification,
    accept: Callable[[Tensor], bool],
    *,
    rounds: int,
    seed: int,
    deadline: float,
    steps: int = STEPS,
    best: list[tuple[float, Tensor]] | None = None,
) -> Tensor | None:
    """Returns a float32 input [*shape] of `box` = (lower, upper), float32 [1, *shape], that `accept` takes as unsafe, or None.

    The first starts are the centre and random corners, the others uniform; each aims at one group, those nearest to unsafe at the centre
    most often. Stops after `rounds` of starts, or at `deadline` (of `time.monotonic`). `best` gets the least violation of each round, with
    its point. It is computed on the device of `params`, where `box`, `boxes` and `specification` are; points are told on the processor.
    """
    lower, upper = box
    half = (upper - lower) * 0.5
    unstable = {
        node.name: ((boxes[node.inputs[0]][0] < 0) & (boxes[node.inputs[0]][1] > 0)).to(lower.dtype)
        for node in graph.nodes
        if isinstance(node, Relu)
    }
    centre = torch.minimum(torch.maximum(lower + half, lower), upper)
    with torch.no_grad():
        nearest = specification.best(specification.margins(run(graph, params, centre)))[0]
        order = torch.nan_to_num(to_host(nearest), nan=torch.inf).argsort(stable=True)
    for number in range(rounds):
        dice = np.random.default_rng([seed, number])
        fractions = torch.from_numpy(dice.random((STARTS, *graph.input_shape), dtype=np.float32))
        # A third corners, the others anywhere.
        fractions[: STARTS // 3] = fractions[: STARTS // 3].round()
        fractions = fractions.to(lower.device)
        x = torch.minimum(torch.maximum(lower + fractions * (upper - lower), lower), upper)
        if number == 0:
            x[0] = centre[0]
        # 0 0 1 0 1 2 0 1 2 3 …: every group has its turn, the nearest ones more.
        turns = [k for most in range(1, STARTS) for k in range(most)][: STARTS * 4]
        aim = order[torch.tensor([turns[(i + number * 7) % len(turns)] for i in range(STARTS)]) % len(order)]
        aim = aim.to(lower.device)
        found = _descend(graph, params, x, (lower, upper, half), unstable, specification, aim, accept, steps, deadline, best)
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
    unstable: Mapping[str, Tensor],
    specification: Specification,
    aim: Tensor,
    accept: Callable[[Tensor], bool],
    steps: int,
    deadline: float,
    best: list[tuple[float, Tensor]] | None,
) -> Tensor | None:
    least, point = torch.inf, to_host(x[0])
    lower, upper, half = box
    leaky = (torch.arange(len(x), device=x.device) % 2).to(x.dtype).view(-1, *[1] * (x.dim() - 1)) * LEAK
    for step in range(steps + 1):
        x.requires_grad_(True)
        slopes = leaky * max(0.0, 1 - step / (LEAKY_FRACTION * steps))
        violations = specification.best(specification.margins(_run_leaky(graph, params, x, unstable, slopes)))
        nearest = to_host(torch.nan_to_num(violations.detach(), nan=torch.inf).amin(1))
        for i in nearest.argsort()[:REPLAYS].tolist():
            if float(nearest[i]) <= 0 and accept(found := to_host(x[i])):
                return found
        i = int(nearest.argmin())
        if float(nearest[i]) < least:
            least, point = float(nearest[i]), to_host(x[i])
        if step == steps or monotonic() > deadline:
            if best is not None:
                best.append((least, point))
            return None
        loss = violations.gather(1, aim.unsqueeze(1))
        (gradient,) = torch.autograd.grad(torch.where(torch.isfinite(loss), loss, 0.0).sum(), x)
        fraction = 0.5 * (0.02 ** (step / max(steps - 1, 1)))
        with torch.no_grad():
            x = torch.minimum(torch.maximum(x - fraction * half * torch.nan_to_num(gradient).sign(), lower), upper)
    return None


class _LeakyGradient(torch.autograd.Function):
    """ReLU, with a gradient of `slope`, of the shape of z, where it is inactive."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(z, slope)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        z, slope = ctx.saved_tensors
        return grads[0] * torch.where(z > 0, torch.ones_like(slope), slope), None


def _run_leaky(graph: Graph, params: Mapping[str, Tensor], x: Tensor, unstable: Mapping[str, Tensor], slopes: Tensor) -> Tensor:
    """Returns what `run` does; the gradient passes inactive ReLUs that are `unstable` with the slopes [batch, 1, …]."""
    values = {graph.input: x}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        if isinstance(node, Relu):
            slope = slopes.view(-1, *[1] * (inputs[0].dim() - 1)) * unstable[node.name]
            values[node.name] = _LeakyGradient.apply(inputs[0], slope)  # type: ignore[no-untyped-call]
        else:
            values[node.name] = apply(node, params, *inputs)
    return values[graph.output]
