"""TAPS and STAPS: interval bounds through the first part of the network, attacks in the latent box through the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.errors import InputError
from vsparse.graph import run
from vsparse.graph.ir import Clip, Graph, LeakyRelu, Relu
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.fast_interval import Wanted
from vsparse.stages.train.bounds.margins import Box, Margins, Params, training_box
from vsparse.stages.train.objectives.attack import detached, pgd
from vsparse.stages.train.objectives.clean import clean_pass
from vsparse.stages.train.objectives.expressive import mixed
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch
from vsparse.stages.train.objectives.precision import forward
from vsparse.stages.train.objectives.sabr import propagated_box

CONNECTOR = 0.5
_TINY = 1e-12


class LatentAttackObjective(Objective):
    """κ · CE(f(x), y) + (1 − κ) · L_IBP · L_TAPS (Mao et al., NeurIPS 2023, section 3).

    L_IBP = CE(−z̲, y) with the interval bounds z̲_j of logit_y − logit_j over B(x, ε). L_TAPS = CE(−ẑ, y) with ẑ_j = logit_y − logit_j at the
    point of the latent box (the interval bounds of the activation where the network is cut) at which an attack on this very margin ended:
    one point for each other class (multi-estimator PGD). Its gradient reaches the box by `connect`. The product's gradient is
    2α · L_IBP · ∇L_TAPS + (2 − 2α) · L_TAPS · ∇L_IBP; 5 : 1, the published weights, are α = 5/6. Until ε has its full value, L_IBP stands
    for the product, as published. The attacked part holds the last `block` ReLUs and the layers between.
    """

    certified = True
    validated_by = "crown"
    report = "Trained for certification, with interval bounds, then an attack on their result (TAPS), inside the loss."

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.spec, self.graph, self.margins = spec, graph, Margins(graph)
        self.attacked_part = attacked_part(graph, spec.loss.block)

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        clean = clean_pass(self.graph, params, batch)
        if batch.kappa == 1 and not batch.enclosure:
            return Loss(clean.loss, clean.statistics)
        # Both ways have the activation where the network is cut, which is never one that a ReLU alone reads.
        wanted: Wanted = "relu" if batch.enclosure else "output"
        enclosure = self.margins.enclosure(clean.params, self.box(clean.params, batch), wanted, self.spec.loss.relu_shrink)
        if batch.kappa == 1:
            return Loss(clean.loss, clean.statistics, enclosure)
        robust = F.cross_entropy(-self.margins.lower(clean.params, enclosure, batch.labels), batch.labels)
        if batch.epsilon >= batch.epsilon_max:
            found = F.cross_entropy(-self.estimate(clean.params, enclosure[self.attacked_part.input], batch), batch.labels)
            alpha = self.spec.loss.alpha
            robust = scale_gradient(found, 2 * alpha) * scale_gradient(robust, 2 - 2 * alpha)
        return mixed(batch, clean, robust, enclosure)

    def box(self, params: Params, batch: TrainingBatch) -> Box:
        """Returns the input box that the bounds begin with."""
        return training_box(batch.x, batch.epsilon)

    def estimate(self, params: Params, latent: Box, batch: TrainingBatch) -> Tensor:
        """Returns the margins logit_y − logit_j that the attacks leave, [batch, classes], 0 at the label's own column; with gradients."""
        labels = batch.labels
        classes = self.graph.shape_of(self.graph.output)[0]
        others = (labels[:, None] + torch.arange(1, classes, device=labels.device)) % classes
        lower, upper = (end.repeat_interleave(classes - 1, dim=0) for end in latent)
        points = self.attack(params, (lower.detach(), upper.detach()), labels, others, batch)
        margins = _margins(run(self.attacked_part, params, connect(points, lower, upper)), labels, others)
        return torch.zeros_like(margins[:, :1]).expand(-1, classes).scatter(1, others, margins)

    def attack(self, params: Params, latent: Box, labels: Tensor, others: Tensor, batch: TrainingBatch) -> Tensor:
        """Returns for each sample and other class the latent point at which ascent of −margin ended, [batch · (classes − 1), …]."""
        frozen = detached(params)
        half = (latent[1] - latent[0]) / 2

        def value(points: Tensor) -> Tensor:
            return -_margins(forward(self.attacked_part, frozen, points, self.spec.loss.attack_amp), labels, others).flatten()

        return pgd(value, latent, half, self.spec.loss, batch.generator)


class SmallBoxLatentAttackObjective(LatentAttackObjective):
    """STAPS: TAPS with the small box of SABR, of radius `shrink` · ε about an attacked input, as the input box (Mao et al., section 3).

    `relu_shrink` shrinks boxes as in SABR, the latent one included.
    """

    reads = frozenset({"relu_shrink"})
    report = "Trained for certification, with interval bounds of small boxes, then an attack on their result (STAPS), inside the loss."

    def box(self, params: Params, batch: TrainingBatch) -> Box:
        """Returns the small box."""
        return propagated_box(self.graph, params, batch, self.spec)


def _margins(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Returns logit_y − logit_j, [batch, classes − 1], each from the logits [batch · (classes − 1), classes] of its own point."""
    own = labels[:, None].expand_as(others).reshape(-1, 1)
    return (logits.gather(1, own) - logits.gather(1, others.reshape(-1, 1))).view(others.shape)


def attacked_part(graph: Graph, block: int) -> Graph:
    """Returns the end of a network that holds its last `block` ReLUs (leaky ones and clips included) and begins as early as it can.

    Its input is the one activation through which all that follows depends on the rest. Raises InputError where no such activation
    leaves exactly `block` of them behind it.
    """
    counts: dict[int, str] = {}
    names = [graph.input, *(node.name for node in graph.nodes)]
    last_read = {name: position for position, node in enumerate(graph.nodes, 1) for name in node.inputs}
    last_read[graph.output] = len(names)
    alive = 0
    for position, name in enumerate(names[:-1]):
        # Nodes stand in the order of computation: a cut is where nothing earlier is read later.
        alive = max(alive, last_read.get(names[position - 1], 0) if position else 0)
        if alive <= position and last_read.get(name, 0) > position:
            rest = graph.nodes[position:]
            counts.setdefault(sum(isinstance(node, Relu | LeakyRelu | Clip) for node in rest), name)
    if block not in counts:
        choices = ", ".join(str(count) for count in sorted(counts) if count > 0)
        raise InputError(
            f"train.loss.block = {block}: the network cannot be cut in front of its last {block} ReLUs; choose "
            + (f"one of {choices}" if choices else "another objective: it has no ReLU")
        )
    start = counts[block]
    return replace(graph, input=start, input_shape=graph.shape_of(start), nodes=graph.nodes[names.index(start) :], params=graph.params)


class _Connector(torch.autograd.Function):
    """The identity of the point, whose gradient goes to the ends of the box."""

    @staticmethod
    def forward(ctx: Any, point: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        ctx.save_for_backward(point, lower, upper)
        return point.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        point, lower, upper = ctx.saved_tensors
        reach = CONNECTOR * (upper - lower)
        wide = reach > _TINY
        reach = reach.clamp(min=_TINY)
        # A box without width moves as one: half of the gradient to each end.
        low = torch.where(wide, (1 - (point - lower) / reach).clamp(0, 1), 0.5)
        high = torch.where(wide, (1 - (upper - point) / reach).clamp(0, 1), 0.5)
        return None, grad * low, grad * high


def connect(point: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns `point`; its gradient goes to the ends of its box by the rectified linear gradient connector with c = 0.5.

    The weight of an end is max(0, 1 − distance/(c · width)): 1 at the end, 0 from the fraction c of the width on (Mao et al., section 3).
    """
    connected: Tensor = _Connector.apply(point, lower, upper)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return connected


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Returns the value of x, with its gradient times `factor`."""
    return x.detach() + factor * (x - x.detach())
