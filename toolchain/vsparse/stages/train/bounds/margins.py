"""Worst-case logits: the margins to every other class, with the last layer folded into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.rules import Params
from vsparse.graph.ir import Gemm, Graph
from vsparse.stages.train.bounds.fast_interval import Wanted, fast_interval

__all__ = ["Box", "Margins", "Params", "training_box"]


def training_box(x: Tensor, epsilon: float) -> Box:
    """Returns the l∞ ball of radius `epsilon` around `x`, clipped to [0, 1], in plain arithmetic: for training, never for a verdict."""
    return (x - epsilon).clamp_(min=0, max=1), (x + epsilon).clamp_(min=0, max=1)


class Margins:
    """Lower bounds of y − j for all classes j, by interval arithmetic with the last layer folded into them.

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

    def enclosure(self, params: Params, box: Box, wanted: Wanted = "relu", relu_shrink: float = 1.0) -> dict[str, Box]:
        """Returns interval bounds of the activations before the last layer (of all where there is nothing to fold).

        "relu": the input, the output, and all that ReLUs and the first affine layer read, in the fastest way; "output": the output is
        enough, which is faster still; "all": every activation. With `relu_shrink` below 1 they are smaller than bounds (`fast_interval`).
        """
        return fast_interval(self.trunk, params, box, wanted, relu_shrink)

    def lower(self, params: Params, enclosure: Mapping[str, Box], labels: Tensor) -> Tensor:
        """Returns lower bounds of logit[label] − logit[j], [batch, classes], 0 at the label's own column."""
        return self.both(params, enclosure, labels)[0]

    def both(self, params: Params, enclosure: Mapping[str, Box], labels: Tensor) -> Box:
        """Returns lower and upper bounds of logit[label] − logit[j], each [batch, classes], 0 at the label's own column."""
        lower, upper = enclosure[self.trunk.output]
        own = labels[:, None]
        if self.last is None:
            return (lower.gather(1, own) - upper).scatter(1, own, 0), (upper.gather(1, own) - lower).scatter(1, own, 0)
        weight, bias = params[self.last.weight], None if self.last.bias is None else params[self.last.bias]
        classes, samples = len(weight), len(labels)
        value = F.linear(lower + upper, weight * 0.5, bias)
        if classes * classes <= 4 * samples:
            # All pairs of rows at once are fewer than the rows of all samples.
            pairs = (weight[:, None] - weight[None]).abs().flatten(0, 1) * 0.5
            spread = F.linear(upper - lower, pairs).view(samples, classes, classes)
            spread = spread.gather(1, labels.view(-1, 1, 1).expand(-1, 1, classes)).squeeze(1)
        else:
            rows = (weight[labels][:, None] - weight[None]).abs() * 0.5
            spread = torch.bmm(rows, (upper - lower)[:, :, None]).squeeze(2)
        centre = value.gather(1, own) - value
        return centre - spread, centre + spread
