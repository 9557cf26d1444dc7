"""Interval bounds for training: those of `bounds.interval`, with affine layer, batch norm and ReLU taken in one step.

The rules are the same and the values agree to rounding. What is saved is passes over memory, which cost as much as the convolutions: a
batch norm is folded into the weights before it, ReLU works in place on what the layer has just written, sums and differences are
taken in pieces that stay in the cache, and the gradients are written out (`bounds.affine_box` has those of a layer alone).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from vsparse.bounds import interval
from vsparse.bounds.affine_box import gradients, preferred_layout
from vsparse.bounds.ball import Box
from vsparse.bounds.interval import propagate
from vsparse.bounds.linear import forward
from vsparse.graph.execute import channel_affine
from vsparse.graph.ir import Affine, AveragePool, BatchNorm, Gemm, Graph, MaxPool, Node, Relu, Reshape

Wanted = Literal["all", "relu", "output"]
# Elements of a piece, of which four or five tensors are in use at once: 2^16 float32 numbers are a quarter of a common L2 cache.
PIECE = 2**16
# Elements of a weight up to which a copy of it stays in the cache.
CACHED = 2**20


def fast_interval(graph: Graph, params: Mapping[str, Tensor], box: Box, wanted: Wanted = "all", relu_shrink: float = 1.0) -> dict[str, Box]:
    """Returns boxes of activations for all inputs in `box` = (lower, upper), each [batch, *input_shape], with gradients.

    `wanted` says which: "all" of them as `bounds.interval` does; "relu": those that a ReLU reads, the first affine layer's input and
    the output; "output": the graph's output. The others may be left out, or be there. Plain arithmetic, never for a verdict.

    Of a ReLU whose input may have either sign the upper end is multiplied by `relu_shrink`, after which boxes no longer bound anything:
    SABR trains on such ones (`shrunk`).
    """
    if wanted == "all" and relu_shrink == 1:
        return interval(graph, params, box)
    boxes = {graph.input: box}
    flattened = _flattened(graph)
    skipped = {node.name for node in flattened.values()}
    fused = blocks(graph)
    for node in graph.nodes:
        if node.name in skipped:
            continue
        block = fused.get(node.name)
        if block is None:
            found = propagate(node, params, [boxes[name] for name in node.inputs])
            boxes[node.name] = shrunk(found, relu_shrink) if isinstance(node, Relu) else found
            continue
        assert isinstance(node, Affine)
        norm, relu = block
        weight, bias = params[node.weight], None if node.bias is None else params[node.bias]
        if norm is not None:
            weight, bias = folded(norm, params, weight, bias)
            skipped.add(norm.name)
        source = node.inputs[0]
        if node.name in flattened and not _is_large(weight, boxes[flattened[node.name].inputs[0]][0]):
            # The columns are put in the order in which the map lies in memory, channels last, instead of the map in theirs.
            source = flattened[node.name].inputs[0]
            lower, upper = (end.permute(0, 2, 3, 1).flatten(1) for end in boxes[source])
            weight = weight.view(len(weight), *graph.shape_of(source)).permute(0, 2, 3, 1).flatten(1)
        elif node.name in flattened:
            source = flattened[node.name].inputs[0]
            lower, upper = (end.flatten(1) for end in boxes[source])
        else:
            lower, upper = boxes[source]
        found = AffineBlock.apply(node, weight, bias, lower, upper, relu is not None, wanted == "relu")  # type: ignore[no-untyped-call]
        if relu is None:
            boxes[(norm or node).name] = found
            continue
        skipped.add(relu.name)
        boxes[relu.name] = shrunk(found[:2], relu_shrink)
        if wanted == "relu":
            boxes[(norm or node).name] = found[2:]
    return boxes


def shrunk(box: Box, factor: float) -> Box:
    """Returns the box that a ReLU leaves where, of inputs in [l, u] with l < 0 < u, only those up to `factor` · u are let through.

    `box` is what the ReLU leaves of all of them: with the lower end above 0 it stays, else its upper end, max(u, 0), is multiplied. This is
    what the code of SABR does for its network at 2/255 (`to_zero_shrinking_box` on `cross` ReLUs, ratio 0.4: factor 0.8), and CTBench's.
    """
    if factor == 1:
        return box
    lower, upper = box
    return lower, torch.where(lower > 0, upper, upper * factor)


def blocks(graph: Graph) -> dict[str, tuple[BatchNorm | None, Relu | None]]:
    """Returns for each affine node the batch norm and the ReLU that alone read it, one after the other."""
    readers = graph.consumers()

    def only_reader(node: Node) -> Node | None:
        return readers[node.name][0] if len(readers[node.name]) == 1 and node.name != graph.output else None

    found: dict[str, tuple[BatchNorm | None, Relu | None]] = {}
    for node in graph.nodes:
        if isinstance(node, Affine):
            following = only_reader(node)
            norm = following if isinstance(following, BatchNorm) else None
            following = only_reader(norm) if norm is not None else following
            found[node.name] = norm, following if isinstance(following, Relu) else None
    return found


def _flattened(graph: Graph) -> dict[str, Reshape]:
    """Returns for each Gemm that alone reads a flattened feature map of a ReLU or pool the node that flattens it."""
    readers, producers = graph.consumers(), {node.name: node for node in graph.nodes}
    found: dict[str, Reshape] = {}
    for node in graph.nodes:
        if isinstance(node, Reshape) and len(node.shape) == 1 and node.name != graph.output:
            map_, (first, *others) = producers.get(node.inputs[0]), readers[node.name]
            if isinstance(map_, Relu | MaxPool | AveragePool) and len(map_.shape) == 3 and isinstance(first, Gemm) and not others:
                found[first.name] = node
    return found


def _is_large(weight: Tensor, end: Tensor) -> bool:
    """Whether putting the columns of a weight in another order costs more than the two maps: it has more rows, and leaves the cache."""
    return len(weight) > 2 * len(end) and weight.numel() > CACHED


def folded(norm: BatchNorm, params: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of the affine layer with the batch norm after it: scale·(W·x + b) + shift, per output channel."""
    scale, shift = channel_affine(norm, params)
    folded = weight * scale.view(-1, *(1 for _ in weight.shape[1:]))
    return folded, shift if bias is None else torch.addcmul(shift, bias, scale)


class AffineBlock(torch.autograd.Function):
    """(lower, upper) of W·x + b for x in a box, or with `relu` of ReLU(W·x + b); with `both`, the bounds before ReLU as well, after them.

    W on the centre of the box and |W| on its radius; halving is exact, so where it is done changes nothing, and weights are large.
    """

    @staticmethod
    def forward(
        ctx: Any, node: Affine, weight: Tensor, bias: Tensor | None, lower: Tensor, upper: Tensor, relu: bool, both: bool
    ) -> tuple[Tensor, ...]:
        centre, radius = _centre_and_radius(preferred_layout(lower), preferred_layout(upper))
        weight = preferred_layout(weight)
        magnitude = preferred_layout(weight.abs())
        upper = preferred_layout(forward(node, weight, centre, bias))
        lower = preferred_layout(forward(node, magnitude, radius))
        before = (torch.empty_like(lower), torch.empty_like(upper)) if relu and both else ()
        _ends(lower, upper, relu, before)
        ctx.node, ctx.relu = node, relu
        ctx.save_for_backward(weight, magnitude, centre, radius, lower, upper)
        ctx.set_materialize_grads(False)
        return lower, upper, *before

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, magnitude, centre, radius, lower, upper = ctx.saved_tensors
        _, of_weight, of_bias, *of_ends = ctx.needs_input_grad[:5]
        if all(grad is None for grad in grads):
            return (None,) * 7
        to_centre, to_radius = _end_gradients(lower, upper, ctx.relu, grads)
        wanted = (any(of_ends), of_weight)
        to_upper, to_weight = gradients(ctx.node, weight, centre, to_centre, wanted)
        to_lower, to_magnitude = gradients(ctx.node, magnitude, radius, to_radius, wanted)
        if any(of_ends):
            _ends(to_lower, to_upper)
            for ends in pieces(to_lower, to_upper):
                for end in ends:
                    end.mul_(0.5)
        grad_weight = torch.addcmul(to_weight, weight.sign(), to_magnitude) if of_weight else None
        grad_bias = to_centre.sum([d for d in range(to_centre.dim()) if d != 1]) if of_bias else None
        return None, grad_weight, grad_bias, to_lower, to_upper, None, None


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields the same pieces of the batch of every tensor, each small enough for the cache; on an accelerator all of it at once."""
    if tensors[0].device.type != "cpu":
        yield tensors
        return
    count = max(1, PIECE * len(tensors[0]) // max(1, tensors[0].numel()))
    if count >= len(tensors[0]):
        yield tensors
    else:
        yield from zip(*(torch.split(tensor, count) for tensor in tensors), strict=True)


def _centre_and_radius(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    centre, radius = torch.empty_like(lower), torch.empty_like(upper)
    for l, u, c, r in pieces(lower, upper, centre, radius):
        torch.add(l, u, out=c).mul_(0.5)
        torch.sub(u, l, out=r).mul_(0.5)
    return preferred_layout(centre), preferred_layout(radius)


def _ends(radius: Tensor, centre: Tensor, relu: bool = False, before: tuple[Tensor, ...] = ()) -> None:
    """Turns radius into centre − radius and centre into centre + radius, in place, or into their ReLU with the ends in `before`."""
    for r, c, *ends in pieces(radius, centre, *before):
        if ends:
            lower, upper = ends
            torch.sub(c, r, out=lower)
            torch.add(c, r, out=upper)
            torch.clamp_min(lower, 0, out=r)
            torch.clamp_min(upper, 0, out=c)
            continue
        c.add_(r)
        torch.add(c, r, alpha=-2, out=r)
        if relu:
            r.relu_()
            c.relu_()


def _end_gradients(lower: Tensor, upper: Tensor, relu: bool, grads: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor]:
    """Returns the gradients to centre and radius from those to the ends, and to the ends before ReLU where there are any."""
    given = [torch.zeros_like(lower) if grad is None else preferred_layout(grad) for grad in grads]
    to_centre, to_radius = torch.empty_like(upper), torch.empty_like(lower)
    for low, high, c, r, of_low, of_high, *before in pieces(lower, upper, to_centre, to_radius, *given):
        if relu:
            # r holds the gradient to the lower end until the last line, c that to the upper one.
            torch.ops.aten.threshold_backward.grad_input(of_low, low, 0, grad_input=r)
            torch.ops.aten.threshold_backward.grad_input(of_high, high, 0, grad_input=c)
            if before:
                r.add_(before[0])
                c.add_(before[1])
            c.add_(r)
            torch.add(c, r, alpha=-2, out=r)
        else:
            torch.add(of_high, of_low, out=c)
            torch.sub(of_high, of_low, out=r)
    return to_centre, to_radius
