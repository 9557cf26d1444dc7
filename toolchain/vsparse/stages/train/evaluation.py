"""Empirical robustness under an attack: the guide to the best epoch where no bound certifies anything."""

from __future__ import annotations

import torch
from torch import Tensor

from vsparse.draws import Draws
from vsparse.graph import run
from vsparse.graph.ir import Graph
from vsparse.stages.train.bounds.margins import Params, training_box
from vsparse.stages.train.objectives.attack import detached, random_point

# A run of steps this long can cross the box (Madry et al., ICLR 2018, use 2.5 ε / steps).
REACH = 2.5


def attacked(graph: Graph, params: Params, x: Tensor, labels: Tensor, epsilon: float, steps: int, generator: Draws) -> Tensor:
    """Returns for each sample of `x` [batch, …] whether its label is predicted, there and at every point of one attack, bool [batch].

    The attack lowers logit[label] − max of the others, which does not saturate as the cross-entropy does, by `steps` steps of 2.5 ε / steps
    from a random point of the box clipped to [0, 1]; samples that it has broken are left out from then on. Batch norm uses the statistics
    in `params`. A guide for checkpoints, not a verdict: ties and outputs that are not numbers count as broken.
    """
    frozen = detached(params)
    with torch.no_grad():
        robust = _margin(run(graph, frozen, x), labels) > 0
    if epsilon == 0 or steps == 0:
        return robust
    rest = robust.nonzero().flatten()
    box = training_box(x, epsilon)
    # Drawn for the whole batch, so that what one sample gets does not depend on the others.
    point = random_point(box, generator)[rest]
    for step in range(steps + 1):
        going_on = step < steps
        with torch.set_grad_enabled(going_on):
            margins = _margin(run(graph, frozen, point.requires_grad_(going_on)), labels[rest])
            uphill = torch.autograd.grad(margins.sum(), point)[0] if going_on else point
        holds = margins.detach() > 0
        robust[rest[~holds]] = False
        if not going_on or not bool(holds.any()):
            break
        rest = rest[holds]
        moved = point.detach()[holds] - REACH * epsilon / steps * uphill[holds].sign()
        point = moved.clamp(box[0][rest], box[1][rest])
    return robust


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
