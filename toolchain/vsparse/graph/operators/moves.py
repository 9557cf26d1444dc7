"""Operators that move elements: Transpose, Concat, Pad; each is said by what it does to one sample (`move.Move`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vsparse.graph.builder import Builder
from vsparse.graph.core import Shape
from vsparse.graph.onnx_context import BATCH, Activation, OnnxContext, Sizes, reads
from vsparse.graph.operators.constants import joined
from vsparse.graph.operators.move import Move
from vsparse.graph.operators.reshape import sample_axis, to_whole, traced_to_shape, whole_shape
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.rules import OnnxForm, OnnxNames, apply, onnx_form
from vsparse.graph.shapes import require, shape_rule, show
from vsparse.graph.torch_context import TorchContext, TracedActivation, number, traces, traces_layer

__all__ = ["Concat", "Pad", "Transpose"]


@dataclass(frozen=True, kw_only=True)
class Transpose(Move):
    """Dimension i of the output is dimension order[i] of the input; dimensions are counted without the batch, here and below."""

    on_quantised = "moves"

    order: tuple[int, ...]

    def rearranged(self, *inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the elements with the dimensions in their new order."""
        return inputs[0].transpose(self.order)


@dataclass(frozen=True, kw_only=True)
class Concat(Move):
    """The inputs, one or more, one after the other along dimension `axis`."""

    arity = None
    on_quantised = "exact"

    axis: int

    def rearranged(self, *inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the inputs as one array."""
        return np.concatenate(inputs, axis=self.axis)


@dataclass(frozen=True, kw_only=True)
class Pad(Move):
    """`value` put around the input: before[i] >= 0 of it in front of dimension i, after[i] >= 0 behind."""

    on_quantised = "exact"

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float = 0.0

    @property
    def fill(self) -> float:
        """The value."""
        return self.value

    def rearranged(self, *inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the elements with the constant around them."""
        return np.pad(inputs[0], list(zip(self.before, self.after, strict=True)), constant_values=-1)


# Shapes, and execution by views where torch has them ------------------------------------------------------------------


@shape_rule.register
def _(node: Transpose, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    x = inputs[0]
    require(sorted(node.order) == list(range(len(x))), node, f"has the order {node.order} for shape {x}")
    return tuple(x[i] for i in node.order)


@shape_rule.register
def _(node: Concat, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    x = inputs[0]
    require(0 <= node.axis < len(x), node, f"joins along dimension {node.axis} of shape {x}, which is none")
    cut = [(*shape[: node.axis], *shape[node.axis + 1 :]) for shape in inputs]
    require(all(one == cut[0] and len(s) == len(x) for one, s in zip(cut, inputs, strict=True)), node, f"cannot join shapes {list(inputs)}")
    return (*x[: node.axis], sum(shape[node.axis] for shape in inputs), *x[node.axis + 1 :])


@shape_rule.register
def _(node: Pad, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    x = inputs[0]
    require(len(node.before) == len(node.after) == len(x), node, f"does not pad every dimension of shape {x}")
    require(min(*node.before, *node.after) >= 0, node, "has negative padding; slice instead")
    require(isfinite(node.value), node, "pads with a value that is not finite")
    return tuple(i + size + j for size, i, j in zip(x, node.before, node.after, strict=True))


@apply.register
def _(node: Transpose, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x.permute(0, *(i + 1 for i in node.order))


@apply.register
def _(node: Concat, params: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, dim=node.axis + 1)


@apply.register
def _(node: Pad, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    # torch counts dimensions from the last.
    pads = [size for pair in zip(reversed(node.before), reversed(node.after), strict=True) for size in pair]
    return F.pad(x, pads, value=node.value)


def unpadded(builder: Builder, name: str) -> tuple[str, tuple[int, int, int, int]]:
    """Returns what a convolution that reads an activation may read instead, with further padding (top, left, bottom, right) of its own.

    Zeros around a map are the same to it either way, and runtimes move them into the convolution too.
    """
    pad = builder.made.get(name)
    if not isinstance(pad, Pad) or pad.value != 0 or len(pad.before) != 3 or pad.before[0] or pad.after[0]:
        return name, (0, 0, 0, 0)
    (_, top, left), (_, bottom, right) = pad.before, pad.after
    return pad.inputs[0], (top, left, bottom, right)


# ONNX -----------------------------------------------------------------------------------------------------------------


@reads("Transpose", 1, 1, "perm", only="moves")
def read_transpose(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    x, whole = values[0], whole_shape(c, values[0])
    order = a.get("perm", list(reversed(range(len(whole)))))
    if sorted(order) != list(range(len(whole))):
        raise UnsupportedOperator(f"has the impossible perm {show(order)}")
    if not isinstance(x, Activation):
        return x.transpose(order)
    if BATCH in whole and order[0] != 0:
        raise UnsupportedOperator("moves the batch; keep it first")
    lead = int(x.batched)
    return permuted(c, x, tuple(i - lead for i in order if i >= lead), tuple(whole[i] for i in order))


def permuted(c: OnnxContext, x: Activation, order: tuple[int, ...], whole: Sizes) -> Activation:
    """Returns the activation with its node's dimensions in that order, then of that whole shape."""
    moved = [i for i in order if c.shape(x)[i] != 1]
    if moved != sorted(moved):  # dimensions of size 1 pass through others without moving an element
        x = c.add(Transpose(name=c.fresh(), inputs=(x.name,), shape=(), order=order), x.batched)
    return to_whole(c, x, whole)


@reads("Concat", 1, 64, "axis")
def read_concat(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    if "axis" not in a:
        raise UnsupportedOperator("must say its axis")
    activations = [value for value in values if isinstance(value, Activation)]
    if not activations:
        return joined(c, values, a["axis"])
    if len(activations) != len(values):
        raise UnsupportedOperator("joins an activation with a constant; use Pad where the constant is one number")
    axis = sample_axis(c, a["axis"], activations[0])
    if len({x.batched for x in activations}) > 1:
        raise UnsupportedOperator("joins tensors with and without the batch; keep the batch in all of them")
    if len(activations) == 1:
        return activations[0]
    inputs = tuple(x.name for x in activations)
    return c.add(Concat(name=c.fresh(), inputs=inputs, shape=(), axis=axis), activations[0].batched)


@reads("Pad", 1, 4, "mode", "pads", "value")
def read_pad(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    x = c.activation(values[0])
    if a.get("mode", "constant") != "constant":
        raise UnsupportedOperator(f'pads in the mode "{show(a["mode"])}"; use "constant"')
    pads = a.get("pads") if len(values) < 2 else c.constant_integers(values[1], names[1])
    value = a.get("value", 0.0)
    if len(values) > 2 and values[2] is not None:
        constant = c.weight(values[2], names[2])
        if constant.size != 1:
            raise UnsupportedOperator("pads with more than one number")
        value = float(constant.reshape(()))
    lead = int(x.batched)
    rank = len(c.shape(x)) + lead
    axes = list(range(rank)) if len(values) < 4 else c.axes(c.constant_integers(values[3], names[3]), rank)
    if pads is None or len(pads) != 2 * len(axes) or not all(-(2**20) < p < 2**20 for p in pads):
        raise UnsupportedOperator(f"has pads {show(pads)}; two for each axis are wanted")
    before, after = ({axis: pads[i + k] for i, axis in enumerate(axes)} for k in (0, len(axes)))
    if x.batched and (before.get(0, 0) or after.get(0, 0)):
        raise UnsupportedOperator("pads the batch; samples must stay as many as they are")
    if not any(pads):
        return x
    first, last = (tuple(one.get(i, 0) for i in range(lead, rank)) for one in (before, after))
    return c.add(Pad(name=c.fresh(), inputs=(x.name,), shape=(), before=first, after=last, value=value), x.batched)


@onnx_form.register
def _(node: Transpose, names: OnnxNames) -> OnnxForm:
    return OnnxForm("Transpose", [], {"perm": [0, *(i + 1 for i in node.order)]})


@onnx_form.register
def _(node: Concat, names: OnnxNames) -> OnnxForm:
    return OnnxForm("Concat", [], {"axis": node.axis + 1})


@onnx_form.register
def _(node: Pad, names: OnnxNames) -> OnnxForm:
    pads = names.store(f"{node.name}.pads", np.array([0, *node.before, 0, *node.after], np.int64))
    value = [names.store(f"{node.name}.value", np.array(node.value, names.float_type))] if node.value else []
    return OnnxForm("Pad", [pads, *value], {})


# torch ----------------------------------------------------------------------------------------------------------------


@traces("permute", torch.permute)
def trace_permute(t: TorchContext, x: Any, *dims: Any) -> TracedActivation:
    x = t.activation(x)
    dims = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    rank = len(t.shape(x)) + 1
    if sorted(d % rank for d in dims if isinstance(d, int)) != list(range(rank)) or dims[0] % rank != 0:
        raise UnsupportedOperator("must keep the batch first")
    return _traced_permuted(t, x, tuple(d % rank - 1 for d in dims[1:]))


@traces("transpose", torch.transpose)
def trace_transpose(t: TorchContext, x: Any, dim0: Any, dim1: Any) -> TracedActivation:
    x = t.activation(x)
    rank = len(t.shape(x)) + 1
    order = list(range(rank - 1))
    one, other = t.axis(dim0, rank), t.axis(dim1, rank)
    order[one], order[other] = order[other], order[one]
    return _traced_permuted(t, x, tuple(order))


def _traced_permuted(t: TorchContext, x: TracedActivation, order: tuple[int, ...]) -> TracedActivation:
    shape = t.shape(x)
    moved = [i for i in order if shape[i] != 1]
    if moved == sorted(moved):  # dimensions of size 1 pass through others without moving an element
        return traced_to_shape(t, x, tuple(shape[i] for i in order))
    return t.add(Transpose, x, order=order)


@traces(torch.cat, torch.concat)
def trace_cat(t: TorchContext, tensors: Any, dim: Any = 0) -> TracedActivation:
    if not isinstance(tensors, tuple | list) or not tensors or not all(isinstance(x, TracedActivation) for x in tensors):
        raise UnsupportedOperator("joins something that is no activation; use F.pad where it is one number")
    axis = t.axis(dim, len(t.shape(tensors[0])) + 1)
    return t.activation(tensors[0]) if len(tensors) == 1 else t.add(Concat, *tensors, axis=axis)


@traces(F.pad)
def trace_pad(t: TorchContext, x: Any, pad: Any, mode: str = "constant", value: Any = None) -> TracedActivation:
    source = t.activation(x)
    shape = t.shape(source)
    if mode != "constant":
        raise UnsupportedOperator(f'pads in the mode "{mode}"; use "constant"')
    if not isinstance(pad, tuple | list) or len(pad) % 2 or len(pad) > 2 * len(shape) or not all(isinstance(p, int) for p in pad):
        raise UnsupportedOperator("must pad a sample's own dimensions by fixed numbers")
    # torch counts from the last dimension.
    first, last = ([0] * (len(shape) - len(pad) // 2) + list(reversed(pad[i::2])) for i in (0, 1))
    if not any(pad):
        return source
    return t.add(Pad, source, before=tuple(first), after=tuple(last), value=number(0.0 if value is None else value))


@traces_layer(nn.ZeroPad2d, nn.ConstantPad2d)
def _(t: TorchContext, layer: nn.ConstantPad2d, path: str, x: TracedActivation) -> TracedActivation:
    return trace_pad(t, x, layer.padding, value=layer.value)
