"""ONNX operators that move elements: Transpose, Concat, Slice, Split, Pad; and sums and means over fixed axes, which need such moves."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from vsparse.graph.ir import Concat, Conv, DivConstant, Pad, Slice, Transpose
from vsparse.graph.onnx_shape_ops import ShapeOps
from vsparse.graph.onnx_values import BATCH, Activation, Refused, Sizes
from vsparse.graph.shapes import show


class MoveOps(ShapeOps):
    """Each method takes the operator's inputs, their names and its attributes, and returns its output."""

    def transpose(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        x = values[0]
        whole: Sizes = self.whole(x) if isinstance(x, Activation) else self._constant_value(x).shape
        order = a.get("perm", list(reversed(range(len(whole)))))
        if sorted(order) != list(range(len(whole))):
            raise Refused(f"has the impossible perm {show(order)}")
        if not isinstance(x, Activation):
            return x.transpose(order)
        if BATCH in whole and order[0] != 0:
            raise Refused("moves the batch; keep it first")
        lead = int(x.batched)
        return self._permuted(x, tuple(i - lead for i in order if i >= lead), tuple(whole[i] for i in order))

    def _permuted(self, x: Activation, order: tuple[int, ...], whole: Sizes) -> Activation:
        """Returns the activation with its node's dimensions in that order, then of that whole shape."""
        moved = [i for i in order if self.shape(x)[i] != 1]
        if moved != sorted(moved):  # dimensions of size 1 pass through others without moving an element
            x = self.add(Transpose(name=self.fresh(), inputs=(x.name,), shape=(), order=order), x.batched)
        return self.to_whole(x, whole)

    def sample_axis(self, axis: Any, x: Activation) -> int:
        """Returns an axis of the whole tensor as one of its node's shape; Refused when it is the batch."""
        lead = int(x.batched)
        found = self.axis(axis, len(self.shape(x)) + lead) - lead
        if found < 0:
            raise Refused("works along the batch; samples must stay apart")
        return found

    def as_whole(self, x: Activation) -> Activation:
        """Returns an activation that may have come to begin with a dimension of size 1: that one is then the batch."""
        return x if x.batched else self.to_whole(x, self.whole(x))

    def concat(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        if "axis" not in a:
            raise Refused("must say its axis")
        activations = [value for value in values if isinstance(value, Activation)]
        if not activations:
            return self.joined(values, a["axis"])
        if len(activations) != len(values):
            raise Refused("joins an activation with a constant; use Pad where the constant is one number")
        axis = self.sample_axis(a["axis"], activations[0])
        if len({x.batched for x in activations}) > 1:
            raise Refused("joins tensors with and without the batch; keep the batch in all of them")
        if len(activations) == 1:
            return activations[0]
        inputs = tuple(x.name for x in activations)
        return self.add(Concat(name=self.fresh(), inputs=inputs, shape=(), axis=axis), activations[0].batched)

    # Slice and Split --------------------------------------------------------------------------------------------------

    def slice(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        lists = [a.get(name) for name in ("starts", "ends", "axes")] + [None]
        for i, value in enumerate(values[1:]):
            if value is not None:
                lists[i] = self.constant_integers(value, names[i + 1])
        starts, ends, axes, steps = lists
        if starts is None or ends is None:
            raise Refused("must say where it starts and ends")
        axes, steps = list(range(len(starts))) if axes is None else axes, [1] * len(starts) if steps is None else steps
        if not len(starts) == len(ends) == len(axes) == len(steps):
            raise Refused("has starts, ends, axes and steps of different lengths")
        if any(step < 1 for step in steps):
            raise Refused("has a step below 1; reverse the order of the next layer's weights instead")
        x = values[0]
        whole: Sizes = self.whole(x) if isinstance(x, Activation) else self._constant_value(x).shape
        places = dict(zip(self.axes(axes, len(whole)), zip(starts, ends, steps, strict=True), strict=True))
        if BATCH in whole and 0 in places:
            if places[0][0] != 0 or places[0][1] < 2**31 - 1 or places[0][2] != 1:
                raise Refused("works along the batch; samples must stay apart")
            del places[0]
        ranges = [slice(*places.get(i, (0, size, 1))).indices(size) if isinstance(size, int) else None for i, size in enumerate(whole)]
        if not isinstance(x, Activation):
            return x[tuple(slice(*one) for one in ranges if one is not None)]
        if x.batched and ranges[0] is not None and len(range(*ranges[0])) != 1:
            raise Refused("leaves nothing of the batch")
        return self._cut(x, [one for one in ranges[int(x.batched) :] if one is not None])

    def _cut(self, x: Activation, places: list[tuple[int, int, int]]) -> Activation:
        if places == [(0, size, 1) for size in self.shape(x)]:
            return x
        starts, stops, steps = zip(*places, strict=True)
        cut = Slice(name=self.fresh(), inputs=(x.name,), shape=(), starts=starts, stops=stops, steps=steps)
        return self.as_whole(self.add(cut, x.batched))

    def split(self, values: list[Any], names: list[str], a: dict[str, Any]) -> list[Activation]:
        x, count = self.activation(values[0]), len(self.outputs)
        axis = self.sample_axis(a.get("axis", 0), x)
        size = self.shape(x)[axis]
        sizes = a.get("split") if len(values) < 2 else self.constant_integers(values[1], names[1])
        if self.opset >= 18 and ("num_outputs" in a) == (sizes is not None):
            raise Refused("must have either sizes or num_outputs")
        if sizes is None:
            if self.opset < 18 and size % count:
                raise Refused(f"cannot split {size} evenly into {count} outputs, and says no sizes")
            each = -(-size // count)  # the last part is the smaller one
            sizes = [min(each, size - i * each) for i in range(count)]
        if a.get("num_outputs", count) != count or len(sizes) != count or min(sizes) < 1 or sum(sizes) != size:
            raise Refused(f"cannot split {size} into {show(sizes)} for its {count} outputs")
        parts = []
        for i, output in enumerate(self.outputs):
            self.output = output
            places = [(0, n, 1) for n in self.shape(x)]
            places[axis] = (sum(sizes[:i]), sum(sizes[: i + 1]), 1)
            parts.append(self._cut(x, places))
        return parts

    # Pad --------------------------------------------------------------------------------------------------------------

    def pad(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.activation(values[0])
        if a.get("mode", "constant") != "constant":
            raise Refused(f'pads in the mode "{show(a["mode"])}"; use "constant"')
        pads = a.get("pads") if len(values) < 2 else self.constant_integers(values[1], names[1])
        value = a.get("value", 0.0)
        if len(values) > 2 and values[2] is not None:
            constant = self.weight(values[2], names[2])
            if constant.size != 1:
                raise Refused("pads with more than one number")
            value = float(constant.reshape(()))
        lead = int(x.batched)
        rank = len(self.shape(x)) + lead
        axes = list(range(rank)) if len(values) < 4 else self.axes(self.constant_integers(values[3], names[3]), rank)
        if pads is None or len(pads) != 2 * len(axes) or not all(-(2**20) < p < 2**20 for p in pads):
            raise Refused(f"has pads {show(pads)}; two for each axis are wanted")
        before, after = ({axis: pads[i + k] for i, axis in enumerate(axes)} for k in (0, len(axes)))
        if x.batched and (before.get(0, 0) or after.get(0, 0)):
            raise Refused("pads the batch; samples must stay as many as they are")
        if not any(pads):
            return x
        first, last = (tuple(one.get(i, 0) for i in range(lead, rank)) for one in (before, after))
        return self.add(Pad(name=self.fresh(), inputs=(x.name,), shape=(), before=first, after=last, value=value), x.batched)

    # Sums over axes ---------------------------------------------------------------------------------------------------

    def reduce_sum(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        return self._summed(values, names, a)[0]

    def reduce_mean(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        total, count = self._summed(values, names, a)
        if count == 1:
            return total
        divisor = self.store(f"{self.output}.count", np.array(count, np.float32))
        return self.add(DivConstant(name=self.fresh(), inputs=(total.name,), shape=(), constant=divisor), total.batched)

    def reduced_axes(self, values: list[Any], names: list[str], a: dict[str, Any]) -> list[int]:
        """Returns the axes of the whole tensor over which it is summed; none where it is left as it is."""
        x = self.activation(values[0])
        whole, named = self.whole(x), self.named_axes(values, names, a)
        if not named and a.get("noop_with_empty_axes", 0):
            return []
        if not named and BATCH in whole:
            raise Refused("works on all axes, the batch among them; name the axes")
        axes = self.axes(named, len(whole)) if named else list(range(len(whole)))
        if BATCH in whole and 0 in axes:
            raise Refused("works along the batch; samples must stay apart")
        return axes

    def _summed(self, values: list[Any], names: list[str], a: dict[str, Any]) -> tuple[Activation, int]:
        """Returns the sum over axes, as a convolution with ones along the axes put last, and how many elements each sum has."""
        x = self.activation(values[0])
        whole, axes = self.whole(x), self.reduced_axes(values, names, a)
        left: Sizes = tuple(1 if i in axes else size for i, size in enumerate(whole))
        if not a.get("keepdims", 1) and axes:
            left = tuple(size for i, size in enumerate(whole) if i not in axes)
        shape, lead = self.shape(x), int(x.batched)
        gone = sorted(axis - lead for axis in axes if axis >= lead)
        kept = [i for i in range(len(shape)) if i not in gone]
        count = prod(shape[i] for i in gone)
        if count > 1:
            moved = self._permuted(replace(x, batched=True), (*kept, *gone), (self.batch or BATCH, *(shape[i] for i in (*kept, *gone))))
            x = self.to_shape(moved, (1, prod(shape[i] for i in kept), count))
            ones = self.store(f"{self.output}.ones", np.ones((1, 1, 1, count), np.float32))
            x = self.add(Conv(name=self.fresh(), inputs=(x.name,), shape=(), weight=ones, bias=None))
        return self.to_whole(x, left), count
