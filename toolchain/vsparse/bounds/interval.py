"""Interval bound propagation, one code for training (differentiable, any dtype) and verification (float64 with rounding terms).

The rules of operators stand with their families (`vsparse.bounds.operators`); Gowal et al., arXiv 1810.12715.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.region import Region, box_of
from vsparse.bounds.rounding import Rounding
from vsparse.bounds.rules import Params, require, rules_of
from vsparse.bounds.wide_sums import affine_parameters, whole_float32, wide_interval
from vsparse.graph.ir import Graph, Node


def interval(graph: Graph, params: Params, box: Box | Region, rounding: Rounding | None = None) -> dict[str, Box]:
    """Returns a box for every activation, the input included, that holds for all inputs in `box`.

    `box` is (lower, upper), each [batch, *input_shape], of the dtype and device of `params`; of a region that is none, the
    enclosing box is taken. Without `rounding` this is plain arithmetic in that dtype, differentiable with respect to `params` and
    `box`, for training and search. With it, everything is float64 and each box contains what any device within the contract computes
    (docs/numerics.md, section 4.2: widened by E);
    an activation that may overflow or is not a number becomes (−inf, inf), as does all that depends on it.
    InputError for a node without a rule, by its name and before any work; with `rounding` also: not float64, batch normalisation not
    folded, or `params` that are not the graph's.
    """
    require(graph.nodes, "interval")
    box = box_of(box)
    if rounding is None:
        boxes = {graph.input: box}
        for node in graph.nodes:
            boxes[node.name] = rules_of(node).interval(node, params, [boxes[name] for name in node.inputs])
        return boxes
    rounding.check(params, box)
    boxes = {graph.input: widen(box, rounding.input_error(box))}
    for node in graph.nodes:
        boxes[node.name] = deployed(node, params, boxes, rounding)
    return boxes


def deployed(node: Node, params: Params, boxes: Mapping[str, Box], rounding: Rounding) -> Box:
    """Returns the box of one node as executed: that of real arithmetic, widened by E and by the rounding of this very computation."""
    kernels = rounding.sums.get(node.name)
    if kernels is not None and kernels.wide is not None and len(boxes[node.inputs[0]][0]) and whole_float32():
        # `rounding.check` has seen that the parameters are the deployed ones.
        found = wide_interval(node, kernels.wide, *affine_parameters(node, params), boxes[node.inputs[0]], rounding.largest)
        if found is not None:
            return found
    box = propagate(node, params, [boxes[name] for name in node.inputs])
    if rules_of(node).exact and not rounding.scales and box[0].device.type == "cpu" and box[0].numel() and _below(box, rounding.largest):
        return box
    return widen(box, rounding.error(node, boxes, box))


def _below(box: Box, largest: float) -> bool:
    """Returns whether all magnitudes in a box are numbers that no format of a device overflows at."""
    # Written so that it is false for what is not a number.
    return float(box[1].amax()) * 1.02 < largest and float(box[0].amin()) * 1.02 > -largest


def widen(box: Box, error: Tensor) -> Box:
    """Returns the box with both ends moved outward by `error`; whatever is then not finite becomes (−inf, inf)."""
    lower, upper = box[0] - error, box[1] + error
    bad = ~(torch.isfinite(lower) & torch.isfinite(upper))
    return lower.masked_fill(bad, -torch.inf), upper.masked_fill(bad, torch.inf)


def propagate(node: Node, params: Params, inputs: list[Box]) -> Box:
    """Returns the box of one node's output from those of its inputs, in plain arithmetic; InputError for a type without a rule."""
    return rules_of(node).interval(node, params, inputs)
