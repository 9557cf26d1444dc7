"""ONNX operators that reshape without moving elements, and the small programs that compute shapes."""

from __future__ import annotations

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

    def to_shape(self, x: Activation, shape: Shape) -> Activation:
        """Returns the activation reshaped for each sample; Refused when the number of elements would change."""
        if shape == self.shape(x):
            return x
        if not shape or any(size < 1 for size in shape) or prod(shape) != prod(self.shape(x)):
            raise Refused(f"cannot turn shape {self.shape(x)} into {show(shape)} for each sample; the batch must stay first")
        return self.add(Reshape(name=self.fresh(), inputs=(x.name,), shape=shape))

    def flatten(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.activation(values[0])
        shape = self.shape(x)
        axis = a.get("axis", 1)
        axis = axis + len(shape) + 1 if axis < 0 else axis
        if not 0 <= axis <= len(shape) or prod(shape[: max(axis - 1, 0)]) != 1 or (axis == 0 and self.batch != 1):
            raise Refused("must keep the batch first; use axis = 1")
        return self.to_shape(x, (prod(shape),))

    def reshape(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        if len(values) == 1 and "shape" in a:  # opset below 5 is refused, so this is damage
            raise Refused("has its shape as an attribute")
        target = list(self.integers(values[1], names[1]))
        if isinstance(values[0], np.ndarray):
            return values[0].reshape(self.constant_integers(values[1], names[1]))
        if isinstance(values[0], tuple):
            return values[0]
        x = self.activation(values[0])
        full: Sizes = (BATCH, *self.shape(x))
        if not a.get("allowzero", 0):
            target = [full[i] if size == 0 and i < len(full) else size for i, size in enumerate(target)]
        rest, total = target[1:], prod(self.shape(x))
        if len(target) < 2 or any(isinstance(size, str) for size in rest) or rest.count(-1) > 1:
            raise Refused("must keep the batch first and flatten the rest")
        known = prod(int(size) for size in rest if size != -1)
        if known < 1 or total % known:
            raise Refused(f"cannot turn shape {self.shape(x)} into {show(target)}")
        shape = tuple(total // known if size == -1 else int(size) for size in rest)
        batch_stays = target[0] == BATCH or (target[0] == -1 and -1 not in rest) or (target[0] == 1 and self.batch == 1)
        if not batch_stays or prod(shape) != total:
            raise Refused(f"must keep the batch first; its shape is {show(target)}")
        return self.to_shape(x, shape)

    def squeeze(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        if not isinstance(values[0], Activation):
            return values[0] if isinstance(values[0], tuple) else self._constant_value(values[0]).squeeze()
        x = values[0]
        full = (0, *self.shape(x))
        axes = a.get("axes") if len(values) < 2 else self.constant_integers(values[1], names[1])
        wanted = {axis % len(full) for axis in axes} if axes is not None else {i for i, size in enumerate(full) if size == 1}
        if 0 in wanted or any(full[i] != 1 for i in wanted):
            raise Refused("must remove dimensions of size 1 other than the batch")
        return self.to_shape(x, tuple(size for i, size in enumerate(full) if i not in wanted and i > 0))

    def unsqueeze(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        axes = a.get("axes") if len(values) < 2 else self.constant_integers(values[1], names[1])
        if isinstance(values[0], tuple):
            return values[0]
        if not axes or len(axes) > 8:
            raise Refused("must say which axes it adds")
        if not isinstance(values[0], Activation):
            return np.expand_dims(self._constant_value(values[0]), tuple(axes))
        x = values[0]
        rank = len(self.shape(x)) + 1 + len(axes)
        places = {axis % rank for axis in axes}
        if 0 in places or len(places) != len(axes):
            raise Refused("must keep the batch first")
        sizes = iter(self.shape(x))
        return self.to_shape(x, tuple(1 if i in places else next(sizes) for i in range(1, rank)))

    def _constant_value(self, value: Any) -> NDArray[Any]:
        if not isinstance(value, np.ndarray):
            raise Refused("is applied to something that is not understood")
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
            return read_tensor(value, "its value")
        return np.array(value, dtype=np.float32 if name.startswith("value_float") else np.int64)

    def shape_of(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Sizes:
        full: Sizes = (BATCH, *self.shape(self.activation(values[0])))
        return full[a.get("start", 0) : a.get("end", len(full))]

    def gather(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Sizes:
        if not isinstance(values[0], tuple):
            raise Refused("picks elements of a tensor; only sizes can be picked")
        return tuple(values[0][i] for i in self.constant_integers(values[1], names[1]))

    def joined_sizes(self, values: list[Any], names: list[str]) -> Sizes:
        """Returns shapes and lists of integers one after the other."""
        joined = tuple(size for value, name in zip(values, names, strict=True) for size in self.integers(value, name))
        if len(joined) > MAX_RANK:
            raise Refused(f"makes a shape of {len(joined)} sizes; at most {MAX_RANK} are read")
        return joined
