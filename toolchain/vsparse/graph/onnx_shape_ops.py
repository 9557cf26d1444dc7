"""ONNX operators that reshape without moving elements, and the small programs that compute shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse.graph.ir import Reshape, Shape
from vsparse.graph.onnx_file import read_tensor
from vsparse.graph.onnx_values import BATCH, MAX_RANK, Activation, Refused, Sizes, Values
from vsparse.graph.shapes import show


class ShapeOps(Values):
    """Each method takes the operator's inputs, their names and its attributes, and returns its output."""

    def to_shape(self, x: Activation, shape: Shape, batched: bool = True) -> Activation:
        """Returns the activation reshaped for each sample; Refused when the number of elements would change."""
        if shape == self.shape(x):
            return replace(x, batched=batched)
        if not shape or any(size < 1 for size in shape) or prod(shape) != prod(self.shape(x)):
            raise Refused(f"cannot turn shape {self.shape(x)} into {show(shape)} for each sample; the batch must stay first")
        if len(shape) > MAX_RANK:
            raise Refused(f"makes a tensor of {len(shape)} dimensions; at most {MAX_RANK} are read")
        return self.add(Reshape(name=self.fresh(), inputs=(x.name,), shape=shape), batched)

    def to_whole(self, x: Activation, shape: Sequence[int | str]) -> Activation:
        """Returns the activation with another whole shape; Refused when a batch other than 1 would not stay first."""
        if not shape or (len(shape) == 1 and shape[0] == BATCH):
            raise Refused("leaves one number for each sample, without a dimension; keep it (keepdims = 1)")
        batched = shape[0] == BATCH or (len(shape) > 1 and shape[0] == 1 == self.batch)
        if self.batch != 1 and (shape[0] != BATCH or BATCH in shape[1:]):
            raise Refused(f"must keep the batch first; its shape is {show(list(shape))}")
        return self.to_shape(x, tuple(int(size) for size in (shape[1:] if batched else shape)), batched)

    def flatten(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        x = values[0]
        whole: Sizes = x.shape if isinstance(x, np.ndarray) else self.whole(self.activation(x))
        axis = a.get("axis", 1)
        if not -len(whole) <= axis <= len(whole):
            raise Refused(f"has the axis {show(axis)}, and its tensor has {len(whole)} dimensions")
        axis = axis + len(whole) if axis < 0 else axis
        front, back = whole[:axis], whole[axis:]
        if BATCH in back or (BATCH in front and prod(size for size in front if isinstance(size, int)) != 1):
            raise Refused("must keep the batch first; use axis = 1")
        shape = (BATCH if BATCH in front else prod(int(size) for size in front), prod(int(size) for size in back))
        return self._reshaped(x, shape)

    def reshape(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        x = values[0]
        whole: Sizes = x.shape if isinstance(x, np.ndarray) else self.whole(self.activation(x))
        target = list(self.integers(values[1], names[1]))
        if values[1].ndim != 1:
            raise Refused("needs a list of sizes as its second input")
        if not a.get("allowzero", 0):
            target = [whole[i] if size == 0 and i < len(whole) else size for i, size in enumerate(target)]
        sizes = [size for size in target if isinstance(size, int) and size != -1]
        if any(size < 1 for size in sizes) or target.count(-1) > 1 or target.count(BATCH) > 1:
            raise Refused(f"cannot turn shape {show(list(whole))} into {show(target)}; sizes from 1 are read, and one -1")
        total = prod(size for size in whole if isinstance(size, int))
        known = prod(sizes)
        if BATCH in whole and BATCH not in target:  # then the size that is left open is the batch, or the batch times a number
            if -1 not in target or known != total:
                raise Refused(f"must keep the batch first; its shape is {show(target)}")
            target[target.index(-1)] = BATCH
        elif -1 in target:
            target[target.index(-1)] = total // known
        if (BATCH in target) != (BATCH in whole) or prod(size for size in target if isinstance(size, int)) != total:
            raise Refused(f"cannot turn shape {show(list(whole))} into {show(target)}")
        return self._reshaped(x, target)

    def _reshaped(self, x: Any, shape: Sequence[int | str]) -> Any:
        if isinstance(x, Activation):
            return self.to_whole(x, shape)
        self.fold(x.size)  # a transposed array is copied
        return self._constant_value(x).reshape([int(size) for size in shape])

    def squeeze(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        x = values[0]
        whole: Sizes = self.whole(x) if isinstance(x, Activation) else self._constant_value(x).shape
        named = self.named_axes(values, names, a)
        if named == []:
            raise Refused("has an empty list of axes, which runtimes read in two ways; name the axes")
        if named is None and BATCH in whole:
            raise Refused("names no axes, so that it drops the batch too where that is 1; name the axes (in torch: squeeze(d))")
        gone = [i for i, size in enumerate(whole) if size == 1] if named is None else self.axes(named, len(whole))
        if any(whole[i] != 1 for i in gone):
            raise Refused("must remove dimensions of size 1 other than the batch")
        left = [size for i, size in enumerate(whole) if i not in gone]
        return self.to_whole(x, left) if isinstance(x, Activation) else x.reshape(left)

    def unsqueeze(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        x = values[0]
        whole: Sizes = self.whole(x) if isinstance(x, Activation) else self._constant_value(x).shape
        named = self.named_axes(values, names, a)
        if not named or len(whole) + len(named) > MAX_RANK:
            raise Refused(f"must say which axes it adds, up to {MAX_RANK} in all")
        places = self.axes(named, len(whole) + len(named))
        sizes = iter(whole)
        wider = [1 if i in places else next(sizes) for i in range(len(whole) + len(named))]
        return self.to_whole(x, wider) if isinstance(x, Activation) else np.expand_dims(x, tuple(places))

    def _constant_value(self, value: Any) -> NDArray[Any]:
        if not isinstance(value, np.ndarray):
            raise Refused("is applied to integers that no DequantizeLinear has turned back, or to quantised weights; move them before")
        return value

    # Values that programs compute with --------------------------------------------------------------------------------

    def identity(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        return values[0]

    def dropout(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        if len(values) > 2 and not (isinstance(values[2], np.ndarray) and not values[2].any()):
            raise Refused("is in training mode; export the network in eval mode")
        return values[0]

    def constant(self, values: list[Any], names: list[str], a: dict[str, Any]) -> NDArray[Any]:
        if len(a) != 1:
            raise Refused("must have one value")
        name, value = next(iter(a.items()))
        if name == "value":
            if not isinstance(value, onnx.TensorProto):
                raise Refused("has a value that is no tensor")
            return read_tensor(value, f'the value of the constant "{show(self.output)}"')
        return np.array(value, dtype=np.float32 if name.startswith("value_float") else np.int64)

    def shape_of(self, values: list[Any], names: list[str], a: dict[str, Any]) -> NDArray[Any]:
        x = values[0]
        whole: Sizes = x.shape if isinstance(x, np.ndarray) else self.whole(self.activation(x))
        part = whole[a.get("start", 0) : a.get("end", len(whole))]
        return np.array(part, dtype=object if BATCH in part else np.int64)

    def gather(self, values: list[Any], names: list[str], a: dict[str, Any]) -> NDArray[Any]:
        x, places = values[0], values[1]
        if not isinstance(x, np.ndarray):
            raise Refused("picks elements of an activation; use Slice")
        if not isinstance(places, np.ndarray) or places.dtype != np.int64 or not x.ndim:
            raise Refused(f'needs constant integers as indices, and "{show(names[1])}" is none')
        axis = self.axis(a.get("axis", 0), x.ndim)
        size = x.shape[axis]
        if ((places < -size) | (places >= size)).any() or x.ndim + places.ndim > MAX_RANK:
            raise Refused(f"picks outside of the {size} elements")
        self.fold(places.size * (x.size // max(size, 1)))
        return np.asarray(np.take(x, places, axis=axis), dtype=x.dtype)  # a single object comes without an array

    def joined(self, values: list[Any], axis: int) -> NDArray[Any]:
        """Returns constants, shapes among them, one after the other."""
        arrays = [self._constant_value(value) for value in values]
        axis = self.axis(axis, arrays[0].ndim)
        kinds = {"int" if array.dtype in (np.int64, object) else str(array.dtype) for array in arrays}
        cut = {(*array.shape[:axis], -1, *array.shape[axis + 1 :]) for array in arrays}
        if len(kinds) != 1 or len(cut) != 1 or len({array.ndim for array in arrays}) != 1:
            raise Refused("joins constants of different types or shapes")
        size = sum(array.size for array in arrays)
        if kinds == {"int"} and size > MAX_RANK:
            raise Refused(f"makes a shape of {size} sizes; at most {MAX_RANK} are read")
        self.fold(size)
        return np.concatenate(arrays, axis=axis)
