"""Executes a graph in torch, in any dtype and on any device, differentiably."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, overload

from torch import Tensor

from vsparse.graph.core import Graph
from vsparse.graph.operators.affine import BatchNorm, channel_affine, per_channel
from vsparse.graph.operators.affine import batch_statistics as statistics_of
from vsparse.graph.rules import apply

__all__ = ["apply", "channel_affine", "per_channel", "run"]


@overload
def run(
    graph: Graph, params: Mapping[str, Tensor], x: Tensor, keep: Literal[False] = False, batch_statistics: dict[str, Tensor] | None = None
) -> Tensor: ...
@overload
def run(
    graph: Graph, params: Mapping[str, Tensor], x: Tensor, keep: Literal[True], batch_statistics: dict[str, Tensor] | None = None
) -> dict[str, Tensor]: ...
def run(
    graph: Graph,
    params: Mapping[str, Tensor],
    x: Tensor,
    keep: bool = False,
    batch_statistics: dict[str, Tensor] | None = None,
) -> Tensor | dict[str, Tensor]:
    """Returns the logits [batch, *shape] of `x` [batch, *input_shape], or with `keep` every activation by name, the input included.

    `x` and `params` share one floating dtype and device, which is that of the result; gradients flow to both.

    Training with batch normalisation: pass an empty dict as `batch_statistics`. Each BatchNorm then normalises with the
    mean and the (biased) variance of this very batch and records them there under the names of its `mean` and `variance`
    parameters, with gradients. The same affine map then holds for bounds of the same step:

        statistics = {}
        logits = run(graph, params, clean, batch_statistics=statistics)
        boxes = interval(graph, {**params, **statistics}, ball(clean, epsilon))

    Running averages are the caller's: params[name] = (1 − momentum) · params[name] + momentum · statistics[name].detach().
    Raises InputError when a batch is too small to have statistics.
    """
    values = {graph.input: x}
    remaining = {} if keep else {name: len(readers) for name, readers in graph.consumers().items()}
    for node in graph.nodes:
        if batch_statistics is not None and isinstance(node, BatchNorm):
            mean, variance = statistics_of(values[node.inputs[0]])
            batch_statistics[node.mean], batch_statistics[node.variance] = mean, variance
            params = {**params, node.mean: mean, node.variance: variance}
        values[node.name] = apply(node, params, *(values[name] for name in node.inputs))
        for name in node.inputs if remaining else ():
            remaining[name] -= 1
            if remaining[name] == 0 and name != graph.output:
                del values[name]
    return values if keep else values[graph.output]
