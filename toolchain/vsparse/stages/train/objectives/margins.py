"""Worst-case logits: the margins to every other class, with the last layer folded into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from vsparse.bounds import interval
from vsparse.graph.ir import Gemm, Graph

Box = tuple[Tensor, Tensor]
Params = Mapping[str, Tensor]


def training_box(x: Tensor, epsilon: float) -> Box:
    """Returns the l∞ ball of radius `epsilon` around `x`, clipped to [0, 1], in plain arithmetic: for training, never for a verdict."""
    return (x - epsilon).clamp(min=0, max=1), (x + epsilon).clamp(min=0, max=1)


class Margins:
    """Lower bounds of y − j for all classes j, by interval arithmetic with elision of the last layer.

    Where the network ends in a Gemm, the differences of its rows are bounded as one layer, which is tighter than the
    difference of two bounded logits (Gowal et al., arXiv 1810.12715, section 3). A network that ends otherwise gets the latter.
    """

    def __init__(self, graph: Graph) -> None:
        last = graph.node(graph.output)
        self.last: Gemm | None = None
        self.trunk = graph
        if isinstance(last, Gemm) and last.inputs[0] != graph.input:
            self.last = last
            self.trunk = replace(graph, nodes=tuple(node for node in graph.nodes if node.name != last.name), output=last.inputs[0])

    def enclosure(self, params: Params, box: Box) -> dict[str, Box]:
        """Returns interval bounds of every activation before the last layer (of all where there is nothing to fold)."""
        return interval(self.trunk, params, box)

    def lower(self, params: Params, enclosure: Mapping[str, Box], labels: Tensor) -> Tensor:
        """Returns lower bounds of logit[label] − logit[j], [batch, classes], 0 at the label's own column."""
        lower, upper = enclosure[self.trunk.output]
        if self.last is None:
            own = lower.gather(1, labels[:, None])
            return (own - upper).scatter(1, labels[:, None], 0)
        weight = params[self.last.weight]
        rows = weight[labels][:, None] - weight[None]
        centre, radius = (upper + lower) / 2, (upper - lower) / 2
        margins = torch.bmm(rows, centre[:, :, None]) - torch.bmm(rows.abs(), radius[:, :, None])
        margins = margins.squeeze(2)
        if self.last.bias is not None:
            bias = params[self.last.bias]
            margins = margins + bias[labels][:, None] - bias[None]
        return margins
