"""Reshape, which moves no element: ONNX's Flatten, Reshape, Squeeze, Unsqueeze, torch's view, flatten, squeeze, unsqueeze; and Identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vsparse.graph.core import Graph, Shape
from vsparse.graph.onnx_context import BATCH, MAX_RANK, Activation, OnnxContext, Sizes, constant_array, reads
from vsparse.graph.operators.move import Move
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.rules import OnnxForm, OnnxNames, apply, onnx_form, torch_layer
from vsparse.graph.shapes import require, shape_rule, show
from vsparse.graph.torch_context import BATCH as TRACED_BATCH
from vsparse.graph.torch_context import TorchContext, TracedActivation, traces, traces_layer

__all__ = ["Reshape"]


@dataclass(frozen=True, kw_only=True)
class Reshape(Move):
    """Same elements in the same (row-major) order, another shape; flatten is its common case."""

    on_quantised = "moves"

    def rearranged(self, *inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the elements in the node's shape."""
        return inputs[0].reshape(self.shape)


@shape_rule.register
def _(node: Reshape, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    x = inputs[0]
    require(prod(node.shape) == prod(x), node, f"turns {prod(x)} elements of shape {x} into shape {node.shape}; the number must stay")
    return node.shape


@apply.register
def _(node: Reshape, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], *node.shape)


# ONNX -----------------------------------------------------------------------------------------------------------------


def to_shape(c: OnnxContext, x: Activation, shape: Shape, batched: bool = True) -> Activation:
    """Returns the activation reshaped for each sample; UnsupportedOperator when the number of elements would change."""
    if shape == c.shape(x):
        return replace(x, batched=batched)
    if not shape or any(size < 1 for size in shape) or prod(shape) != prod(c.shape(x)):
        raise UnsupportedOperator(f"cannot turn shape {c.shape(x)} into {show(shape)} for each sample; the batch must stay first")
    if len(shape) > MAX_RANK:
        raise UnsupportedOperator(f"makes a tensor of {len(shape)} dimensions; at most {MAX_RANK} are read")
    return c.add(Reshape(name=c.fresh(), inputs=(x.name,), shape=shape), batched)


def to_whole(c: OnnxContext, x: Activation, shape: Sequence[int | str]) -> Activation:
    """Returns the activation with another whole shape; UnsupportedOperator when a batch other than 1 would not stay first."""
    if not shape or (len(shape) == 1 and shape[0] == BATCH):
        raise UnsupportedOperator("leaves one number for each sample, without a dimension; keep it (keepdims = 1)")
    batched = shape[0] == BATCH or (len(shape) > 1 and shape[0] == 1 == c.batch)
    if c.batch != 1 and (shape[0] != BATCH or BATCH in shape[1:]):
        raise UnsupportedOperator(f"must keep the batch first; its shape is {show(list(shape))}")
    return to_shape(c, x, tuple(int(size) for size in (shape[1:] if batched else shape)), batched)


def whole_shape(c: OnnxContext, value: Any) -> Sizes:
    """Returns the whole shape of an activation or a constant."""
    return c.whole(value) if isinstance(value, Activation) else constant_array(value).shape


def sample_axis(c: OnnxContext, axis: Any, x: Activation) -> int:
    """Returns an axis of the whole tensor as one of its node's shape; UnsupportedOperator when it is the batch."""
    lead = int(x.batched)
    found = c.axis(axis, len(c.shape(x)) + lead) - lead
    if found < 0:
        raise UnsupportedOperator("works along the batch; samples must stay apart")
    return found


def as_whole(c: OnnxContext, x: Activation) -> Activation:
    """Returns an activation that may have come to begin with a dimension of size 1: that one is then the batch."""
    return x if x.batched else to_whole(c, x, c.whole(x))


@reads("Flatten", 1, 1, "axis")
def read_flatten(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    x = values[0]
    whole: Sizes = x.shape if isinstance(x, np.ndarray) else c.whole(c.activation(x))
    axis = a.get("axis", 1)
    if not -len(whole) <= axis <= len(whole):
        raise UnsupportedOperator(f"has the axis {show(axis)}, and its tensor has {len(whole)} dimensions")
    axis = axis + len(whole) if axis < 0 else axis
    front, back = whole[:axis], whole[axis:]
    if BATCH in back or (BATCH in front and prod(size for size in front if isinstance(size, int)) != 1):
        raise UnsupportedOperator("must keep the batch first; use axis = 1")
    shape = (BATCH if BATCH in front else prod(int(size) for size in front), prod(int(size) for size in back))
    return _reshaped(c, x, shape)


@reads("Reshape", 2, 2, "allowzero")
def read_reshape(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    x = values[0]
    whole: Sizes = x.shape if isinstance(x, np.ndarray) else c.whole(c.activation(x))
    target = list(c.integers(values[1], names[1]))
    if values[1].ndim != 1:
        raise UnsupportedOperator("needs a list of sizes as its second input")
    if not a.get("allowzero", 0):
        target = [whole[i] if size == 0 and i < len(whole) else size for i, size in enumerate(target)]
    sizes = [size for size in target if isinstance(size, int) and size != -1]
    if any(size < 1 for size in sizes) or target.count(-1) > 1 or target.count(BATCH) > 1:
        raise UnsupportedOperator(f"cannot turn shape {show(list(whole))} into {show(target)}; sizes from 1 are read, and one -1")
    total = prod(size for size in whole if isinstance(size, int))
    known = prod(sizes)
    if BATCH in whole and BATCH not in target:  # then the size that is left open is the batch, or the batch times a number
        if -1 not in target or known != total:
            raise UnsupportedOperator(f"must keep the batch first; its shape is {show(target)}")
        target[target.index(-1)] = BATCH
    elif -1 in target:
        target[target.index(-1)] = total // known
    if (BATCH in target) != (BATCH in whole) or prod(size for size in target if isinstance(size, int)) != total:
        raise UnsupportedOperator(f"cannot turn shape {show(list(whole))} into {show(target)}")
    return _reshaped(c, x, target)


def _reshaped(c: OnnxContext, x: Any, shape: Sequence[int | str]) -> Any:
    if isinstance(x, Activation):
        return to_whole(c, x, shape)
    c.fold(x.size)  # a transposed array is copied
    return constant_array(x).reshape([int(size) for size in shape])


@reads("Squeeze", 1, 2, "axes")
def read_squeeze(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    x, whole = values[0], whole_shape(c, values[0])
    named = c.named_axes(values, names, a)
    if named == []:
        raise UnsupportedOperator("has an empty list of axes, which runtimes read in two ways; name the axes")
    if named is None and BATCH in whole:
        raise UnsupportedOperator("names no axes, so that it drops the batch too where that is 1; name the axes (in torch: squeeze(d))")
    gone = [i for i, size in enumerate(whole) if size == 1] if named is None else c.axes(named, len(whole))
    if any(whole[i] != 1 for i in gone):
        raise UnsupportedOperator("must remove dimensions of size 1 other than the batch")
    left = [size for i, size in enumerate(whole) if i not in gone]
    return to_whole(c, x, left) if isinstance(x, Activation) else x.reshape(left)


@reads("Unsqueeze", 1, 2, "axes")
def read_unsqueeze(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    x, whole = values[0], whole_shape(c, values[0])
    named = c.named_axes(values, names, a)
    if not named or len(whole) + len(named) > MAX_RANK:
        raise UnsupportedOperator(f"must say which axes it adds, up to {MAX_RANK} in all")
    added = c.axes(named, len(whole) + len(named))
    sizes = iter(whole)
    wider = [1 if i in added else next(sizes) for i in range(len(whole) + len(named))]
    return to_whole(c, x, wider) if isinstance(x, Activation) else np.expand_dims(x, tuple(added))


@reads("Identity", 1, 1, any_format=True)
def read_identity(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    return values[0]


@reads("Dropout", 1, 3, "ratio", "seed", outputs="first")
def read_dropout(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    if len(values) > 2 and not (isinstance(values[2], np.ndarray) and not values[2].any()):
        raise UnsupportedOperator(
            "is in training mode and drops values at random, which no certificate can be about; export the network in eval mode (in torch: "
            "network.eval() before torch.onnx.export)"
        )
    return values[0]


@onnx_form.register
def _(node: Reshape, names: OnnxNames) -> OnnxForm:
    if len(node.shape) == 1:
        return OnnxForm("Flatten", [], {"axis": 1})
    return OnnxForm("Reshape", [names.store(f"{node.name}.shape", np.array([0, *node.shape], dtype=np.int64))], {})


# torch ----------------------------------------------------------------------------------------------------------------


class View(nn.Module):
    """Reshapes each sample."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Returns x as [batch, *shape]."""
        return x.reshape(x.size(0), *self.shape)


@torch_layer.register
def _(node: Reshape, graph: Graph) -> nn.Module:
    return nn.Flatten(1) if len(node.shape) == 1 else View(node.shape)


def traced_to_shape(t: TorchContext, x: TracedActivation, target: Shape) -> TracedActivation:
    """Returns the activation reshaped for each sample."""
    return x if target == t.shape(x) else t.add(Reshape, x, shape=target)


def traced_as_map(t: TorchContext, x: Any) -> TracedActivation:
    """Returns a row [channels, n] as a map of height 1: the map that it was made of, where it was made of one."""
    x = t.activation(x)
    shape = t.shape(x)
    if len(shape) != 2:
        raise UnsupportedOperator(f"takes [channels, n] of each sample, not shape {list(shape)}")
    node, wanted = t.builder.made.get(x.name), (shape[0], 1, shape[1])
    if isinstance(node, Reshape) and t.builder.shapes[node.inputs[0]] == wanted:
        return TracedActivation(node.inputs[0])
    name = t.builder.unique(f"{t.name}.map")  # the layer itself keeps its own name
    return TracedActivation(t.builder.add(Reshape(name=name, inputs=(x.name,), shape=wanted)))


@traces(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, "contiguous")
def trace_left_out(t: TorchContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    return x


@traces(torch.reshape, "view", "reshape")
def trace_reshape(t: TorchContext, x: Any, *shape: Any) -> TracedActivation:
    x = t.activation(x)
    sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], list | tuple) else list(shape)
    total = prod(t.shape(x))
    fixed = len(sizes) >= 2 and all(isinstance(size, int) and size > 0 for size in sizes[1:])
    if fixed and sizes[0] == -1 and prod(sizes[1:]) == total:
        sizes[0] = TRACED_BATCH
    if len(sizes) < 2 or sizes[0] is not TRACED_BATCH:
        raise UnsupportedOperator("must keep the batch first; write x.view(x.size(0), -1) or x.flatten(1)")
    rest = sizes[1:]
    if rest.count(-1) > 1 or not all(isinstance(size, int) and (size == -1 or size > 0) for size in rest):
        raise UnsupportedOperator(f"has the shape {rest}, which is not understood")
    known = prod(size for size in rest if size != -1)
    if total % known:
        raise UnsupportedOperator(f"cannot turn {total} elements into shape {rest}")
    return traced_to_shape(t, x, tuple(total // known if size == -1 else size for size in rest))


@traces(torch.flatten, "flatten")
def trace_flatten(t: TorchContext, x: Any, start_dim: int = 0, end_dim: int = -1) -> TracedActivation:
    x = t.activation(x)
    shape = t.shape(x)
    rank = len(shape) + 1
    start, end = start_dim % rank, end_dim % rank
    if start == 0:
        raise UnsupportedOperator("must keep the batch first; write flatten(1)")
    return traced_to_shape(t, x, (*shape[: start - 1], prod(shape[start - 1 : end]), *shape[end:]))


@traces(torch.squeeze, "squeeze")
def trace_squeeze(t: TorchContext, x: Any, dim: Any = None) -> TracedActivation:
    x = t.activation(x)
    if not isinstance(dim, int):
        raise UnsupportedOperator("must name one dimension to remove; without it, a batch of one would go too")
    axis, shape = t.axis(dim, len(t.shape(x)) + 1), t.shape(x)
    return x if shape[axis] != 1 else traced_to_shape(t, x, (*shape[:axis], *shape[axis + 1 :]))


@traces(torch.unsqueeze, "unsqueeze")
def trace_unsqueeze(t: TorchContext, x: Any, dim: Any) -> TracedActivation:
    x = t.activation(x)
    axis, shape = t.axis(dim, len(t.shape(x)) + 2), t.shape(x)
    return traced_to_shape(t, x, (*shape[:axis], 1, *shape[axis:]))


@traces("size")
def trace_size(t: TorchContext, x: Any, dim: int | None = None) -> Any:
    full = (TRACED_BATCH, *t.shape(t.activation(x)))
    return full if dim is None else full[dim]


@traces(getattr)
def trace_attribute(t: TorchContext, x: Any, name: str) -> Any:
    if name != "shape":
        raise UnsupportedOperator(f'reads "{name}" of a tensor, which a graph cannot say')
    return trace_size(t, x)


@traces_layer(nn.Flatten)
def _(t: TorchContext, layer: nn.Flatten, path: str, x: TracedActivation) -> TracedActivation:
    return trace_flatten(t, x, layer.start_dim, layer.end_dim)


@traces_layer(nn.Unflatten)
def _(t: TorchContext, layer: nn.Unflatten, path: str, x: TracedActivation) -> TracedActivation:
    raise UnsupportedOperator("cannot be said; use x.view(batch, …) instead")
