"""Attacks of training: sign-gradient ascent of a loss inside a box, once (FGSM) or in steps with restarts (PGD).

Every attack ascends an `AttackLoss`, a function of points [batch, …] to one loss per sample [batch], with the parameters detached: only
gradients with respect to the input are computed, and nothing of the attack is recorded for the training step. With batch norm it uses the
statistics of the clean pass, so that samples do not influence each other and an attack is a function of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.draws import Draws, uniform
from vsparse.draws import normal as normal_draws
from vsparse.graph.ir import Graph
from vsparse.recipe_train import LossSpec
from vsparse.stages.train.bounds.margins import Box, Params
from vsparse.stages.train.objectives.divergence import divergence
from vsparse.stages.train.objectives.precision import forward

AttackLoss = Callable[[Tensor], Tensor]
Start = Callable[[Box, Draws], Tensor]

# Step of FGSM from a random start, as a fraction of the radius (Wong, Rice and Kolter, ICLR 2020, section 4).
RANDOM_START_STEP = 1.25
# Standard deviation of the first step away from a point where the divergence is flat.
NEAR = 0.001


def cross_entropy_value(graph: Graph, params: Params, labels: Tensor, amp: bool = False) -> AttackLoss:
    """Returns the function from points [batch, …] to the cross-entropy of each, [batch], with the parameters detached."""
    frozen = detached(params)
    return lambda points: F.cross_entropy(forward(graph, frozen, points, amp), labels, reduction="none")


def divergence_value(graph: Graph, params: Params, clean: Tensor, amp: bool = False) -> AttackLoss:
    """Returns the function from points to KL(p_clean ‖ p_point), [batch], for logits `clean` [batch, classes]; parameters detached."""
    frozen, reference = detached(params), clean.detach()
    return lambda points: divergence(reference, forward(graph, frozen, points, amp))


def detached(params: Params) -> dict[str, Tensor]:
    """Returns the same values without their gradients."""
    return {name: value.detach() for name, value in params.items()}


def random_point(box: Box, generator: Draws) -> Tensor:
    """Returns a point drawn uniformly from a box (lower, upper), in it whatever the rounding."""
    lower, upper = box
    fraction = uniform(generator, tuple(lower.shape), lower.device, lower.dtype)
    # It is at most 1 − u and the difference at most (1 + u) times the true one, u = 2⁻²⁴: the sum is never rounded to above upper.
    return lower + fraction * (upper - lower)


def near(x: Tensor) -> Start:
    """Returns the start x + 0.001 · N(0, I), clamped to the box (TRADES, Zhang et al., ICML 2019, algorithm 1)."""
    return lambda box, generator: (x + NEAR * normal(x, generator)).clamp(*box)


def normal(x: Tensor, generator: Draws) -> Tensor:
    """Returns standard normal numbers of the shape, dtype and device of `x`."""
    return normal_draws(generator, tuple(x.shape), x.device, x.dtype)


def ascend(value: AttackLoss, start: Tensor, box: Box, steps: int, length: float | Tensor) -> Tensor:
    """Returns x_steps with x_{i+1} = clamp(x_i + length · sign ∇value(x_i)) to the box, x_0 = start; detached, also under no_grad."""
    x = start.detach()
    for _ in range(steps):
        with torch.enable_grad():
            x.requires_grad_(True)
            (gradient,) = torch.autograd.grad(value(x).sum(), x)
        x = (x.detach() + length * gradient.sign()).clamp(*box)
    return x


def fgsm(value: AttackLoss, x: Tensor, box: Box, epsilon: float, generator: Draws | None = None) -> Tensor:
    """Returns clamp(x + ε · sign ∇value(x)) to the box (Goodfellow et al., ICLR 2015, section 4).

    With a generator it starts at a random point of the box instead and steps 1.25 ε (Wong et al., ICLR 2020, algorithm 3).
    """
    if generator is None:
        return ascend(value, x, box, 1, epsilon)
    return ascend(value, random_point(box, generator), box, 1, RANDOM_START_STEP * epsilon)


def pgd(value: AttackLoss, box: Box, epsilon: float | Tensor, spec: LossSpec, generator: Draws, start: Start = random_point) -> Tensor:
    """Returns for each sample the end point of largest value of `attack_restarts` runs of `attack_steps` steps of length `attack_step` · ε.

    Each run begins at a point that `start` draws, by default anywhere in the box (Madry et al., ICLR 2018, section 2.1). A further run
    draws what the earlier ones left in the generator, so the value of no sample falls with the number of runs. In a box that is no ball,
    `epsilon` is the half width of each coordinate, of the box's shape.
    """
    length = spec.attack_step * epsilon
    best = ascend(value, start(box, generator), box, spec.attack_steps, length)
    if spec.attack_restarts == 1:
        return best
    with torch.no_grad():
        most = value(best)
        for _ in range(spec.attack_restarts - 1):
            found = ascend(value, start(box, generator), box, spec.attack_steps, length)
            height = value(found)
            higher = height > most
            best = torch.where(higher.view(-1, *(1 for _ in best.shape[1:])), found, best)
            most = torch.where(higher, height, most)
    return best
