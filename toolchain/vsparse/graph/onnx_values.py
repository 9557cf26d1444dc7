"""What the ONNX operators' methods share: the values seen so far, and what may be asked of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.builder import Builder
from vsparse.graph.ir import FakeQuant, Integers, Node, Shape
from vsparse.graph.quantised import moved_grid
from vsparse.graph.shapes import show

Storage = Literal["fp32", "fp16"]
BATCH = "batch"
# No tensor here has more dimensions; joined shapes are kept as short, so that repeated joining cannot grow without bound.
MAX_RANK = 16


@dataclass(frozen=True)
class Activation:
    """A tensor that depends on the network's input, by the name of the node that makes it."""

    name: str
    format: Storage = "fp32"


@dataclass(frozen=True)
class Dequantised:
    """A weight or bias that the file stores as integers: values int8 or int32, scale float32, one or one for each along `axis`."""

    values: NDArray[Any]
    scale: NDArray[np.float32]
    axis: int

    def floats(self) -> NDArray[np.float32]:
        """Returns fl(scale · values) in float32."""
        along = [-1 if i == self.axis else 1 for i in range(self.values.ndim)] if self.scale.ndim else ()
        return np.asarray(self.values.astype(np.float32) * self.scale.reshape(along), dtype=np.float32)

    def as_used(self, value: NDArray[np.float32]) -> Integers:
        """Returns the integers of a parameter in the layout in which it is used: as stored, or the transpose of a matrix."""
        scalar = not self.scale.ndim
        layouts = [Integers(self.values, self.scale)] if scalar or self.axis == 0 else []
        if self.values.ndim == 2 and (scalar or self.axis == 1):
            layouts.append(Integers(np.ascontiguousarray(self.values.T), self.scale))
        for one in layouts:
            if one.values.shape == value.shape and np.array_equal(one.floats(), value):
                return one
        raise Refused("uses integers in another layout than they are stored in, or with scales along another axis than the output's")


# A tensor's shape as a program value (`x.view(x.size(0), -1)` exports as Shape, Gather, Concat, Reshape); BATCH stands for the batch.
Sizes = tuple[int | str, ...]


class Refused(Exception):
    """An operator cannot be read; carries the reason, the caller adds node and operator."""


class Values:
    """Holds every value seen so far: activations, constant arrays, and shapes that programs compute with."""

    def __init__(self, input_name: str, shape: Shape, batch: int | None, opset: int, format: Storage = "fp32") -> None:
        self.builder = Builder(input_name, shape)
        self.batch, self.opset = batch, opset
        # Of every operator but Cast: float16 throughout where a file has float16 tensors.
        self.format = format
        self.values: dict[str, Any] = {input_name: Activation(input_name)}
        self.grid: dict[str, FakeQuant | None] = {}
        self.dequantised: dict[str, Activation] = {}
        self.stored: dict[str, Dequantised] = {}
        self.output = input_name
        self.outputs = [input_name]

    def add(self, node: Node) -> Activation:
        """Appends a node and returns its activation."""
        name = self.builder.add(node)
        self.grid[name] = moved_grid(node, self.grid)
        return Activation(name, self.format)

    def fresh(self) -> str:
        """Returns an unused name for the output that is made now."""
        return self.builder.unique(self.output)

    def shape(self, x: Activation) -> Shape:
        """Returns an activation's shape without the batch."""
        return self.builder.shapes[x.name]

    def whole_shape(self, value: Any) -> tuple[int | None, ...] | None:
        """Returns the shape that a value has in the file, None for a symbolic batch; no shape for what has none of its own here."""
        if isinstance(value, Activation):
            return (self.batch, *self.shape(value))
        if isinstance(value, np.ndarray):
            return value.shape
        return value.values.shape if isinstance(value, Dequantised) else None

    def activation(self, value: Any) -> Activation:
        """Returns the value, which must depend on the input."""
        if not isinstance(value, Activation):
            raise Refused("is applied to a constant; fold constants when exporting")
        return value

    def weight(self, value: Any, name: str) -> NDArray[np.float32]:
        """Returns the value in float32, which must be a constant tensor of the format of the file."""
        if isinstance(value, Dequantised):
            self.stored[name] = value
            return value.floats()
        wanted = np.float16 if self.format == "fp16" else np.float32
        if not isinstance(value, np.ndarray) or value.dtype != wanted:
            raise Refused(f'needs a constant {np.dtype(wanted).name} tensor, and "{show(name)}" is none')
        return value.astype(np.float32, copy=False)

    def integers(self, value: Any, name: str) -> Sizes:
        """Returns the value, which must be a short list of integers or a computed shape."""
        if isinstance(value, tuple):
            return value
        if not isinstance(value, np.ndarray) or value.dtype != np.int64 or value.ndim > 1 or value.size > MAX_RANK:
            raise Refused(f'needs a constant list of integers, and "{show(name)}" is none')
        return tuple(int(v) for v in value.reshape(-1))

    def constant_integers(self, value: Any, name: str) -> list[int]:
        """Returns the value, which must be a short list of integers that do not depend on the batch."""
        sizes = self.integers(value, name)
        if any(isinstance(size, str) for size in sizes):
            raise Refused("depends on the batch size")
        return [int(size) for size in sizes]

    def store(self, name: str, value: NDArray[np.float32]) -> str:
        """Stores a parameter under a name of its own, with the integers that the file has for it."""
        param = self.builder.param(name, np.asarray(value, order="C"))
        if name in self.stored:
            self.builder.integers[param] = self.stored[name].as_used(value)
        return param


def pair(a: dict[str, Any], name: str) -> tuple[int, int]:
    """Returns an attribute of two numbers from 1, by default [1, 1]."""
    value = a.get(name, [1, 1])
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(v, int) and 1 <= v < 2**20 for v in value):
        raise Refused(f"has {name} {show(value)}; two numbers from 1 are wanted")
    return (value[0], value[1])
