"""ONNX operators that move elements: Transpose, Concat, Slice, Split, Pad; and sums and means over fixed axes, which need such moves."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from vsparse.graph.ir import Concat, Conv, DivConstant, Pad, Shape, Slice, Transpose
from vsparse.graph.onnx_shape_ops import ShapeOps
from vsparse.graph.onnx_values import Activation, Refused, Sizes
from vsparse.graph.shapes import show


class MoveOps(ShapeOps):
    """Each method takes the operator's inputs, their names and its attributes, and returns its output."""

    def transpose(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        rank = len(self.shape(values[0])) + 1 if isinstance(values[0], Activation) else self._constant_value(values[0]).ndim
        order = a.get("perm", list(reversed(range(rank))))
        if sorted(order) != list(range(rank)):
            raise Refused(f"has the impossible perm {show(order)}")
        if not isinstance(values[0], Activation):
            return self._constant_value(values[0]).transpose(order)
        if order[0] != 0:
            raise Refused("moves the batch; keep it first")
        return self._permuted(values[0], tuple(i - 1 for i in order[1:]))

    def _permuted(self, x: Activation, order: tuple[int, ...]) -> Activation:
        shape = self.shape(x)
        moved = [i for i in order if shape[i] != 1]
        if moved == sorted(moved):  # dimensions of size 1 pass through others without moving an element
            return self.to_shape(x, tuple(shape[i] for i in order))
        return self.add(Transpose(name=self.fresh(), inputs=(x.name,), shape=(), order=order))

    def _axis(self, axis: Any, x: Activation) -> int:
        """Returns an axis of the whole tensor as one of a sample's shape."""
        rank = len(self.shape(x)) + 1
        if not isinstance(axis, int) or not -rank <= axis < rank:
            raise Refused(f"has the axis {show(axis)}, which shape {self.shape(x)} does not have")
        if axis % rank == 0:
            raise Refused("works along the batch; samples must stay apart")
        return axis % rank - 1

    def concat(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        activations = [value for value in values if isinstance(value, Activation)]
        if not activations:
            return self.joined_sizes(values, names)
        if len(activations) != len(values):
            raise Refused("joins an activation with a constant; use Pad where the constant is one number")
        if "axis" not in a:
            raise Refused("must say its axis")
        axis = self._axis(a["axis"], activations[0])
        if len(activations) == 1:
            return activations[0]
        return self.add(Concat(name=self.fresh(), inputs=tuple(x.name for x in activations), shape=(), axis=axis))

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
        if isinstance(values[0], tuple):
            return self._sliced_sizes(values[0], starts, ends, axes, steps)
        x = self.activation(values[0])
        places = {self._axis(axis, x): place for axis, place in zip(axes, zip(starts, ends, steps, strict=True), strict=True)}
        if len(places) != len(axes):
            raise Refused("slices one axis twice")
        whole = [slice(*places.get(i, (0, size, 1))).indices(size) for i, size in enumerate(self.shape(x))]
        return self._cut(x, whole)

    def _sliced_sizes(self, sizes: Sizes, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> Sizes:
        if axes not in ([0], [-1]):
            raise Refused("slices a shape along an axis that it does not have")
        return sizes[starts[0] : ends[0] : steps[0]]

    def _cut(self, x: Activation, places: list[tuple[int, int, int]]) -> Activation:
        if places == [(0, size, 1) for size in self.shape(x)]:
            return x
        starts, stops, steps = zip(*places, strict=True)
        return self.add(Slice(name=self.fresh(), inputs=(x.name,), shape=(), starts=starts, stops=stops, steps=steps))

    def split(self, values: list[Any], names: list[str], a: dict[str, Any]) -> list[Activation]:
        x, count = self.activation(values[0]), len(self.outputs)
        axis = self._axis(a.get("axis", 0), x)
        size = self.shape(x)[axis]
        sizes = a.get("split") if len(values) < 2 else self.constant_integers(values[1], names[1])
        if sizes is None:
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
        rank = len(self.shape(x)) + 1
        axes = list(range(rank)) if len(values) < 4 else [axis % rank for axis in self.constant_integers(values[3], names[3])]
        if pads is None or len(pads) != 2 * len(axes) or len(set(axes)) != len(axes) or not all(-(2**20) < p < 2**20 for p in pads):
            raise Refused(f"has pads {show(pads)}; two for each axis are wanted")
        before, after = ({axis: pads[i + k] for i, axis in enumerate(axes)} for k in (0, len(axes)))
        if before.get(0, 0) or after.get(0, 0):
            raise Refused("pads the batch; samples must stay as many as they are")
        if not any(pads):
            return x
        first, last = (tuple(one.get(i, 0) for i in range(1, rank)) for one in (before, after))
        return self.add(Pad(name=self.fresh(), inputs=(x.name,), shape=(), before=first, after=last, value=value))

    # Sums over axes ---------------------------------------------------------------------------------------------------

    def reduce_sum(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        return self._summed(values, names, a)[0]

    def reduce_mean(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        total, count = self._summed(values, names, a)
        if count == 1:
            return total
        divisor = self.store(f"{self.output}.count", np.array(count, np.float32))
        return self.add(DivConstant(name=self.fresh(), inputs=(total.name,), shape=(), constant=divisor))

    def _summed(self, values: list[Any], names: list[str], a: dict[str, Any]) -> tuple[Activation, int]:
        """Returns the sum over axes, as a convolution with ones along the axes put last, and how many elements each sum has."""
        x = self.activation(values[0])
        axes = a.get("axes") if len(values) < 2 else self.constant_integers(values[1], names[1])
        if not axes:
            if axes is not None and a.get("noop_with_empty_axes", 0):
                return x, 1
            raise Refused("works on all axes, the batch among them; name the axes")
        shape = self.shape(x)
        gone = sorted({self._axis(axis, x) for axis in axes})
        kept = [i for i in range(len(shape)) if i not in gone]
        target: Shape = tuple(1 if i in gone else size for i, size in enumerate(shape))
        if not a.get("keepdims", 1):
            target = tuple(shape[i] for i in kept)
        if not target:
            raise Refused("leaves a number for each sample; set keepdims = 1")
        count = prod(shape[i] for i in gone)
        if count > 1:
            x = self.to_shape(self._permuted(x, (*kept, *gone)), (1, prod(shape[i] for i in kept), count))
            ones = self.store(f"{self.output}.ones", np.ones((1, 1, 1, count), np.float32))
            x = self.add(Conv(name=self.fresh(), inputs=(x.name,), shape=(), weight=ones, bias=None))
        return self.to_shape(x, target), count
