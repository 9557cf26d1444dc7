"""Slice and Gather, moves that keep elements of a dimension by range or by list; ONNX's Split, torch's indexing and chunk are of them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.graph.core import Shape
from vsparse.graph.onnx_context import BATCH, Activation, OnnxContext, constant_array, reads
from vsparse.graph.operators.constants import gathered
from vsparse.graph.operators.move import Move
from vsparse.graph.operators.reshape import as_whole, sample_axis, to_whole, traced_to_shape, whole_shape
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.rules import OnnxForm, OnnxNames, apply, onnx_form
from vsparse.graph.shapes import require, shape_rule, show
from vsparse.graph.torch_context import TorchContext, TracedActivation, TracedConstant, traces

__all__ = ["Gather", "Slice"]

# Indices that one Gather may have.
MAX_INDICES = 2**16


@dataclass(frozen=True, kw_only=True)
class Slice(Move):
    """Elements starts[i], starts[i] + steps[i], … below stops[i] of every dimension i; 0 <= start < stop <= size, step >= 1."""

    on_quantised = "moves"

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    steps: tuple[int, ...]

    def rearranged(self, *inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the elements that are kept."""
        return inputs[0][tuple(slice(*one) for one in zip(self.starts, self.stops, self.steps, strict=True))]


@dataclass(frozen=True, kw_only=True)
class Gather(Move):
    """The parts indices[0], indices[1], … of the input along dimension `axis`; one may stand several times, and others not at all."""

    on_quantised = "moves"

    axis: int
    indices: tuple[int, ...]

    def rearranged(self, *inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the parts."""
        return np.take(inputs[0], self.indices, axis=self.axis)


@shape_rule.register
def _(node: Slice, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    x = inputs[0]
    require(len(node.starts) == len(node.stops) == len(node.steps) == len(x), node, f"does not slice every dimension of shape {x}")
    ranges = list(zip(x, node.starts, node.stops, node.steps, strict=True))
    require(all(0 <= i < j <= size and step >= 1 for size, i, j, step in ranges), node, f"reaches outside of shape {x}, or leaves nothing")
    return tuple(len(range(i, j, step)) for _, i, j, step in ranges)


@shape_rule.register
def _(node: Gather, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    x = inputs[0]
    require(0 <= node.axis < len(x), node, f"picks along dimension {node.axis} of shape {x}, which is none")
    size = x[node.axis]
    require(bool(node.indices) and min(node.indices) >= 0 and max(node.indices) < size, node, f"picks outside of the {size} parts, or none")
    return (*x[: node.axis], len(node.indices), *x[node.axis + 1 :])


@apply.register
def _(node: Slice, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x[(slice(None), *(slice(i, j, step) for i, j, step in zip(node.starts, node.stops, node.steps, strict=True)))]


# ONNX -----------------------------------------------------------------------------------------------------------------


@reads("Slice", 1, 5, "starts", "ends", "axes")
def read_slice(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    lists = [a.get(name) for name in ("starts", "ends", "axes")] + [None]
    for i, value in enumerate(values[1:]):
        if value is not None:
            lists[i] = c.constant_integers(value, names[i + 1])
    starts, ends, axes, steps = lists
    if starts is None or ends is None:
        raise UnsupportedOperator("must say where it starts and ends")
    axes, steps = list(range(len(starts))) if axes is None else axes, [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise UnsupportedOperator("has starts, ends, axes and steps of different lengths")
    if any(step < 1 for step in steps):
        raise UnsupportedOperator("has a step below 1; reverse the order of the next layer's weights instead")
    x, whole = values[0], whole_shape(c, values[0])
    cuts = dict(zip(c.axes(axes, len(whole)), zip(starts, ends, steps, strict=True), strict=True))
    if BATCH in whole and 0 in cuts:
        if cuts[0][0] != 0 or cuts[0][1] < 2**31 - 1 or cuts[0][2] != 1:
            raise UnsupportedOperator("works along the batch; samples must stay apart")
        del cuts[0]
    ranges = [slice(*cuts.get(i, (0, size, 1))).indices(size) if isinstance(size, int) else None for i, size in enumerate(whole)]
    if not isinstance(x, Activation):
        return x[tuple(slice(*one) for one in ranges if one is not None)]
    if x.batched and ranges[0] is not None and len(range(*ranges[0])) != 1:
        raise UnsupportedOperator("leaves nothing of the batch")
    return _cut(c, x, [one for one in ranges[int(x.batched) :] if one is not None])


def _cut(c: OnnxContext, x: Activation, ranges: list[tuple[int, int, int]]) -> Activation:
    if ranges == [(0, size, 1) for size in c.shape(x)]:
        return x
    starts, stops, steps = zip(*ranges, strict=True)
    cut = Slice(name=c.fresh(), inputs=(x.name,), shape=(), starts=starts, stops=stops, steps=steps)
    return as_whole(c, c.add(cut, x.batched))


@reads("Split", 1, 2, "axis", "split", "num_outputs", outputs="all")
def read_split(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> list[Activation]:
    x, count = c.activation(values[0]), len(c.outputs)
    axis = sample_axis(c, a.get("axis", 0), x)
    size = c.shape(x)[axis]
    sizes = a.get("split") if len(values) < 2 else c.constant_integers(values[1], names[1])
    if c.opset >= 18 and ("num_outputs" in a) == (sizes is not None):
        raise UnsupportedOperator("must have either sizes or num_outputs")
    if sizes is None:
        if c.opset < 18 and size % count:
            raise UnsupportedOperator(f"cannot split {size} evenly into {count} outputs, and says no sizes")
        each = -(-size // count)  # the last part is the smaller one
        sizes = [min(each, size - i * each) for i in range(count)]
    if a.get("num_outputs", count) != count or len(sizes) != count or min(sizes) < 1 or sum(sizes) != size:
        raise UnsupportedOperator(f"cannot split {size} into {show(sizes)} for its {count} outputs")
    parts = []
    for i, output in enumerate(c.outputs):
        c.output = output
        ranges = [(0, n, 1) for n in c.shape(x)]
        ranges[axis] = (sum(sizes[:i]), sum(sizes[: i + 1]), 1)
        parts.append(_cut(c, x, ranges))
    return parts


@reads("Gather", 2, 2, "axis", only="moves")
def read_gather(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    x, indices = values[0], values[1]
    if not isinstance(x, Activation):
        return gathered(c, constant_array(x), indices, names[1], a.get("axis", 0))
    if not isinstance(indices, np.ndarray) or indices.dtype != np.int64:
        raise UnsupportedOperator(f'needs constant integers as indices, and "{show(names[1])}" is none')
    whole, lead, axis = c.whole(x), int(x.batched), sample_axis(c, a.get("axis", 0), x)
    size = c.shape(x)[axis]
    if not 1 <= indices.size <= MAX_INDICES or ((indices < -size) | (indices >= size)).any():
        raise UnsupportedOperator(f"picks outside of the {size} parts, none of them, or more than {MAX_INDICES}")
    picked = tuple((indices % size).reshape(-1).tolist())
    if picked != tuple(range(size)):
        x = c.add(Gather(name=c.fresh(), inputs=(x.name,), shape=(), axis=axis, indices=picked), x.batched)
    return to_whole(c, x, (*whole[: axis + lead], *indices.shape, *whole[axis + lead + 1 :]))


@onnx_form.register
def _(node: Slice, names: OnnxNames) -> OnnxForm:
    axes = np.arange(1, len(node.starts) + 1)
    parts = {"starts": node.starts, "ends": node.stops, "axes": axes, "steps": node.steps}
    return OnnxForm("Slice", [names.store(f"{node.name}.{name}", np.array(part, np.int64)) for name, part in parts.items()], {})


@onnx_form.register
def _(node: Gather, names: OnnxNames) -> OnnxForm:
    return OnnxForm("Gather", [names.store(f"{node.name}.indices", np.array(node.indices, np.int64))], {"axis": node.axis + 1})


# torch ----------------------------------------------------------------------------------------------------------------


@traces(operator.getitem)
def trace_item(t: TorchContext, x: Any, index: Any) -> Any:
    return trace_slice(t, x, index) if isinstance(x, TracedActivation) else x[index]


def trace_slice(t: TorchContext, x: TracedActivation, index: Any) -> TracedActivation:
    """Reads x[:, a:b, i, [j, k], ...]: slices with steps from 1, single indices, whose dimension goes, and at most one list of indices."""
    entries, shape = list(index) if isinstance(index, tuple) else [index], t.shape(x)
    lists = [i for i, entry in enumerate(entries) if isinstance(entry, list | TracedConstant)]
    if lists and not any(isinstance(entry, int) for entry in entries) and len(lists) == 1:
        return _trace_listed(t, x, entries, lists[0])
    if sum(entry is Ellipsis for entry in entries) > 1 or not all(isinstance(entry, slice | int) or entry is Ellipsis for entry in entries):
        raise UnsupportedOperator("is indexed by something other than slices and numbers, or one list or buffer beside slices")
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (len(shape) + 2 - len(entries))
    if len(entries) > len(shape) + 1 or entries[0] != slice(None):
        raise UnsupportedOperator("must keep the batch first and whole; write x[:, …]")
    entries += [slice(None)] * (len(shape) + 1 - len(entries))
    cut, target = [], []
    for entry, size in zip(entries[1:], shape, strict=True):
        if isinstance(entry, int):
            if not -size <= entry < size:
                raise UnsupportedOperator(f"picks index {entry} of {size}")
            cut.append((entry % size, entry % size + 1, 1))
            continue
        if not all(part is None or isinstance(part, int) for part in (entry.start, entry.stop, entry.step)):
            raise UnsupportedOperator("is sliced by something other than numbers")
        if entry.step is not None and entry.step < 1:
            raise UnsupportedOperator("has a step below 1")
        cut.append(entry.indices(size))
        target.append(len(range(*cut[-1])))
    if cut != [(0, size, 1) for size in shape]:
        starts, stops, steps = zip(*cut, strict=True)
        x = t.add(Slice, x, starts=starts, stops=stops, steps=steps)
    if not target:
        raise UnsupportedOperator("leaves a number for each sample; keep one dimension")
    return traced_to_shape(t, x, tuple(target))


def _trace_listed(t: TorchContext, x: TracedActivation, entries: list[Any], at: int) -> TracedActivation:
    rest = [slice(None) if i == at else entry for i, entry in enumerate(entries)]
    behind = any(entry is Ellipsis for entry in entries[:at])
    sliced = trace_slice(t, x, tuple(rest))
    return trace_index_select(t, sliced, at - len(entries) if behind else at, entries[at])


@traces("index_select", torch.index_select)
def trace_index_select(t: TorchContext, input: Any, dim: Any, index: Any) -> TracedActivation:
    x = t.activation(input)
    axis = t.axis(dim, len(t.shape(x)) + 1)
    size = t.shape(x)[axis]
    indices = index.value.reshape(-1).astype(int).tolist() if isinstance(index, TracedConstant) else index
    if not isinstance(indices, list) or not indices or not all(isinstance(i, int) and -size <= i < size for i in indices):
        raise UnsupportedOperator(f"picks by something other than a list or buffer of numbers below {size}")
    picked = tuple(i % size for i in indices)
    return x if picked == tuple(range(size)) else t.add(Gather, x, axis=axis, indices=picked)


@traces(torch.chunk, "chunk")
def trace_chunk(t: TorchContext, x: Any, chunks: Any, dim: Any = 0) -> tuple[TracedActivation, ...]:
    x = t.activation(x)
    axis = t.axis(dim, len(t.shape(x)) + 1)
    size = t.shape(x)[axis]
    if not isinstance(chunks, int) or chunks < 1:
        raise UnsupportedOperator("must be cut into a fixed number of parts")
    each = -(-size // chunks)
    return tuple(trace_slice(t, x, (slice(None),) * (axis + 1) + (slice(i, i + each),)) for i in range(0, size, each))
