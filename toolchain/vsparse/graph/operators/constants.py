"""Constants of a file and the small programs that compute shapes: Constant, Shape, and what may be made of several constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse.graph.bfloat16 import BFloat16
from vsparse.graph.onnx_context import BATCH, MAX_RANK, OnnxContext, Sizes, constant_array, reads
from vsparse.graph.onnx_file import read_tensor
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.shapes import show


@reads("Constant", 0, 0, "value", "value_float", "value_floats", "value_int", "value_ints")
def read_constant(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> NDArray[Any] | BFloat16:
    if len(a) != 1:
        raise UnsupportedOperator("must have one value")
    name, value = next(iter(a.items()))
    if name == "value":
        if not isinstance(value, onnx.TensorProto):
            raise UnsupportedOperator("has a value that is no tensor")
        return read_tensor(value, f'the value of the constant "{show(c.output)}"')
    return np.array(value, dtype=np.float32 if name.startswith("value_float") else np.int64)


@reads("Shape", 1, 1, "start", "end")
def read_shape(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> NDArray[Any]:
    x = values[0]
    whole: Sizes = x.shape if isinstance(x, np.ndarray) else c.whole(c.activation(x))
    part = whole[a.get("start", 0) : a.get("end", len(whole))]
    return np.array(part, dtype=object if BATCH in part else np.int64)


def gathered(c: OnnxContext, x: NDArray[Any], indices: Any, name: str, axis: Any) -> NDArray[Any]:
    """Returns elements of a constant along an axis; `name` is that of the indices."""
    if not isinstance(indices, np.ndarray) or indices.dtype != np.int64 or not x.ndim:
        raise UnsupportedOperator(f'needs constant integers as indices, and "{show(name)}" is none')
    axis = c.axis(axis, x.ndim)
    size = x.shape[axis]
    if ((indices < -size) | (indices >= size)).any() or x.ndim + indices.ndim > MAX_RANK:
        raise UnsupportedOperator(f"picks outside of the {size} elements")
    c.fold(indices.size * (x.size // max(size, 1)))
    return np.asarray(np.take(x, indices, axis=axis), dtype=x.dtype)  # a single object comes without an array


def joined(c: OnnxContext, values: list[Any], axis: int) -> NDArray[Any]:
    """Returns constants, shapes among them, one after the other."""
    arrays = [constant_array(value) for value in values]
    axis = c.axis(axis, arrays[0].ndim)
    kinds = {"int" if array.dtype in (np.int64, object) else str(array.dtype) for array in arrays}
    cut = {(*array.shape[:axis], -1, *array.shape[axis + 1 :]) for array in arrays}
    if len(kinds) != 1 or len(cut) != 1 or len({array.ndim for array in arrays}) != 1:
        raise UnsupportedOperator("joins constants of different types or shapes")
    size = sum(array.size for array in arrays)
    if kinds == {"int"} and size > MAX_RANK:
        raise UnsupportedOperator(f"makes a shape of {size} sizes; at most {MAX_RANK} are read")
    c.fold(size)
    return np.concatenate(arrays, axis=axis)
