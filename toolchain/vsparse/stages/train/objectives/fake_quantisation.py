"""Fake quantisation: an objective of the network as its int8 file will round it, with gradients for the one in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from vsparse.bounds.operators.quantised import FakeQuantBounds, steps
from vsparse.bounds.rules import register
from vsparse.compute_device import to_host
from vsparse.graph import run
from vsparse.graph.grids import STYLES, GridStyle, Range, gridded_activations, integer_affine, with_grids
from vsparse.graph.ir import Affine, BatchNorm, FakeQuant, Graph, Node
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Box, Params
from vsparse.stages.train.folding import Folding
from vsparse.stages.train.objectives.clean import others
from vsparse.stages.train.objectives.loss import Loss, Objective, TrainingBatch

# Share of an old range that stays where a batch's is narrower.
DECAY = 0.99


@dataclass(frozen=True, kw_only=True)
class TrainingGrid(FakeQuant):
    """A grid whose bounds, too, pass gradients straight through where nothing is clamped."""


class _Straight(torch.autograd.Function):
    """`rounded`, with the gradient going to x where `passes` (Bengio et al., arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor, passes: Tensor | None) -> Tensor:
        ctx.passes = passes
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad if ctx.passes is None else grad * ctx.passes, None, None


def straight_through(x: Tensor, rounded: Tensor, passes: Tensor | None = None) -> Tensor:
    """Returns `rounded`, with the gradient of the identity in x (where `passes`, everywhere without)."""
    result: Tensor = _Straight.apply(x, rounded, passes)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return result


@register(TrainingGrid)
class TrainingGridBounds(FakeQuantBounds):
    """Those of a grid, but for the gradients of the interval."""

    def interval(self, node: FakeQuant, params: Params, inputs: list[Box]) -> Box:
        ends = []
        for end, step in zip(inputs[0], steps(node, *inputs[0]), strict=True):
            nearest = torch.round(end.detach() / node.scale)
            ends.append(straight_through(end, step.detach() * node.scale, (nearest >= node.steps[0]) & (nearest <= node.steps[1])))
        return ends[0], ends[1]


class FakeQuantised(Objective):
    """The recipe's objective, on the network that the int8 file of the float32 one will be (Jacob et al., arXiv 1712.05877, section 3).

    Batch norm is folded with the statistics of the clean batch, weights and biases are rounded to the integers of the file, and a grid
    stands where the file has one (`graph/grids.py`, the code of the export). Gradients pass straight through all roundings, to the
    parameters in float32, which stay those of the plain graph; bounds enclose the rounded network.

    `ranges` has the least and greatest value of each activation that is quantised, on clean batches: wider ones are taken over at once,
    narrower ones by 1 % a step, as the file's come from the final weights. Processes that train together share them. They are the only
    state: forgotten before each epoch (`restart`), they make an epoch depend on the parameters alone, so that it can be resumed.

    `style` is that of the runtime's file, the layers `floats` stay in float32, and `shares` says how much of its range a grid covers.
    """

    def __init__(
        self,
        spec: Train,
        graph: Graph,
        params: dict[str, Tensor],
        make: Callable[[Train, Graph, dict[str, Tensor]], Objective],
        *,
        style: GridStyle = STYLES["int8"],
        floats: frozenset[str] = frozenset(),
        shares: Mapping[str, float] | None = None,
    ) -> None:
        # What is made for the rounded graph must not round again.
        self.spec = spec.model_copy(update={"terms": spec.terms.model_copy(update={"fake_quantisation": False})})
        self.graph, self.make = graph, make
        self.style, self.floats, self.shares = style, floats, dict(shares or {})
        self.folding = Folding(graph)
        self.observed = gridded_activations(self.folding.graph, style, floats)
        self.norms = any(isinstance(node, BatchNorm) for node in graph.nodes)
        self.ranges: dict[str, Range] = {}
        # What cannot be trained is said now, not at the first batch.
        make(self.spec, *self.quantised(params))

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        statistics: dict[str, Tensor] = {}
        if self.norms:
            run(self.graph, params, batch.x, batch_statistics=statistics)
        values = self.folding.params(others(params, statistics, batch))
        self.observe(values, batch.x)
        graph, rounded = self._rounded(values)
        return replace(self.make(self.spec, graph, rounded)(rounded, batch), statistics=statistics)

    def restart(self) -> None:
        """Forgets the ranges; the next batch sets them."""
        self.ranges = {}

    def quantised(self, params: Params) -> tuple[Graph, dict[str, Tensor]]:
        """Returns the rounded graph and its parameters, with gradients, for the ranges and the batch-norm statistics as they stand."""
        return self._rounded(self.folding.params(params))

    @torch.no_grad()
    def observe(self, values: Params, x: Tensor) -> None:
        """Takes the ranges of the activations of a batch into account; `values` are the folded graph's parameters."""
        found = run(self.folding.graph, {name: value.detach() for name, value in values.items()}, x, keep=True)
        # One tensor, so that a device is asked once: −least and greatest of each.
        ends = torch.stack([end for name in self.observed for end in (-found[name].min(), found[name].max())])
        # The grids are numbers of the graph, so this one reading in a step has to be; processes share them by gloo.
        ends = to_host(ends)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
        listed = ends.tolist()
        for name, least, most in zip(self.observed, listed[::2], listed[1::2], strict=True):
            if not (isfinite(least) and isfinite(most)):
                continue  # the loss will say so
            before = self.ranges.get(name, (-least, most))
            self.ranges[name] = -_followed(-before[0], least), _followed(before[1], most)

    def _rounded(self, values: Params) -> tuple[Graph, dict[str, Tensor]]:
        ranges = {name: self.ranges.get(name, (0.0, 1.0)) for name in self.observed}
        nodes, grids = with_grids(self.folding.graph, ranges, TrainingGrid, self.style, self.floats, self.shares)
        params = dict(values)
        made: list[Node] = []
        for node in nodes:
            if node.name in grids and isinstance(node, Affine):
                weight, bias = values[node.weight], None if node.bias is None else values[node.bias]
                counted = None if bias is None or self.style.symmetric else bias.detach()
                floats = integer_affine(weight.detach(), counted, grids[node.name], self.style.largest_weight).floats()
                node = replace(node, weight=f"{node.name}.int8.weight")
                params[node.weight] = straight_through(weight, floats[0])
                if bias is not None and floats[1] is not None:
                    node = replace(node, bias=(name := f"{node.name}.int8.bias"))
                    params[name] = straight_through(bias, floats[1])
            made.append(node)
        return replace(self.folding.graph, nodes=tuple(made)), params


def _followed(before: float, now: float) -> float:
    return max(now, now + DECAY * (before - now))
