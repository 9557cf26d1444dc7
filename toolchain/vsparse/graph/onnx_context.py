"""Shared by the readers of ONNX operators: the values seen so far, queries on them, and the table in which readers are registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.builder import Builder
from vsparse.graph.core import Node, QuantisedParameter, Shape, Unary
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.shapes import show

Storage = Literal["fp32", "fp16"]
BATCH = "batch"
# No tensor here has more dimensions; joined shapes are kept as short, so that repeated joining cannot grow without bound.
MAX_RANK = 16
# Elements of all constants that nodes join or pick from others, beside twice those that are stored: a small file must not fill the memory.
MAX_FOLDED = 2**22


@dataclass(frozen=True)
class Activation:
    """A tensor that depends on the network's input, by the name of the node that makes it.

    Its first dimension is the batch, unless it is not `batched`: only a file with the batch 1 can drop that dimension, or move it behind
    others. The node's shape then is the tensor's whole shape. A tensor whose first of several dimensions has size 1 is always batched.
    `rounded` says that its values are numbers of the format that the file stores, whatever its own `format`; `raw` that they are those of
    the input, moved at most.
    """

    name: str
    format: Storage = "fp32"
    batched: bool = True
    rounded: bool = False
    raw: bool = False


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

    def as_used(self, value: NDArray[np.float32]) -> QuantisedParameter:
        """Returns the integers of a parameter in the layout in which it is used: as stored (a row's kernel as one of height 1), or the
        transpose of a matrix."""
        scalar = not self.scale.ndim
        layouts = []
        if self.values.size == value.size and (scalar or self.axis == 0):
            layouts.append(QuantisedParameter(self.values.reshape(value.shape), self.scale))
        if self.values.ndim == 2 and (scalar or self.axis == 1):
            layouts.append(QuantisedParameter(np.ascontiguousarray(self.values.T), self.scale))
        for one in layouts:
            if one.values.shape == value.shape and np.array_equal(one.floats(), value):
                return one
        raise UnsupportedOperator(
            "uses integers in another layout than they are stored in, or with scales along another axis than the output's"
        )


# A tensor's whole shape; BATCH stands for a symbolic batch. Programs compute with such (`x.view(x.size(0), -1)` exports as Shape, Gather,
# Concat, Reshape): constants of type int64, or of type object where they hold BATCH.
Sizes = tuple[int | str, ...]


class OnnxContext:
    """Holds every value seen so far: activations, constant arrays, and shapes that programs compute with."""

    def __init__(self, input_name: str, shape: Shape, batch: int | None, opset: int, format: Storage = "fp32") -> None:
        self.builder = Builder(input_name, shape)
        self.batch, self.opset = batch, opset
        # Of every operator but Cast and those of the table WIDE: float16 throughout where a file has float16 tensors.
        self.format = format
        # Whether the operator that is read now computes in float32 in a float16 file (docs/numerics.md, section 8.3).
        self.wide = False
        # Whether it moves the input as it is; whether a sum read that, and whether it was rounded to float16.
        self.moves_input = self.sums_input = self.rounds_input = False
        # Whether it moves numbers that were rounded to the file's format before.
        self.moves_rounded = False
        # The formats of the sums of products that were read.
        self.sums: set[Storage] = set()
        self.values: dict[str, Any] = {input_name: Activation(input_name, raw=True)}
        # Kept by the family of quantised operators: the FakeQuant on whose grid each activation lies, and pairs that were read.
        self.grids: dict[str, Node | None] = {}
        self.dequantised: dict[str, Activation] = {}
        self.stored: dict[str, Dequantised] = {}
        self.foldable = MAX_FOLDED
        self.output = input_name
        self.outputs = [input_name]

    def add(self, node: Node, batched: bool = True) -> Activation:
        """Appends a node and returns its activation."""
        return Activation(self.builder.add(node), self.computes_in, batched, not self.wide or self.moves_rounded, self.moves_input)

    @property
    def computes_in(self) -> Storage:
        """The format of what the operator that is read now reads and makes."""
        return "fp32" if self.wide else self.format

    def unary(self, kind: type[Unary], value: Any, **fields: Any) -> Activation:
        """Appends a function of one number, of a value that must depend on the input."""
        x = self.activation(value)
        return self.add(kind(name=self.fresh(), inputs=(x.name,), shape=(), **fields), x.batched)

    def fresh(self) -> str:
        """Returns an unused name for the output that is made now."""
        return self.builder.unique(self.output)

    def shape(self, x: Activation) -> Shape:
        """Returns the shape of the node that makes an activation."""
        return self.builder.shapes[x.name]

    def whole(self, x: Activation) -> Sizes:
        """Returns an activation's shape in the file, BATCH for a symbolic batch."""
        return (self.batch or BATCH, *self.shape(x)) if x.batched else self.shape(x)

    def whole_shape(self, value: Any) -> tuple[int | None, ...] | None:
        """Returns the shape that a value has in the file, None for a symbolic batch; no shape for what has none of its own here."""
        if isinstance(value, Activation):
            return tuple(size if isinstance(size, int) else None for size in self.whole(value))
        if isinstance(value, np.ndarray):
            return tuple(value.shape)
        return tuple(value.values.shape) if isinstance(value, Dequantised) else None

    def activation(self, value: Any) -> Activation:
        """Returns the value, which must depend on the input."""
        if not isinstance(value, Activation):
            raise UnsupportedOperator(
                "is applied to a constant, or to integers that no DequantizeLinear has turned back; fold constants when exporting"
            )
        return value

    def samples(self, value: Any) -> Activation:
        """Returns the value, which must depend on the input and have the batch as its first dimension."""
        x = self.activation(value)
        if not x.batched:
            raise UnsupportedOperator(
                f"reads a tensor of shape {self.whole(x)}, which has lost its batch; keep the batch (in torch: squeeze(d), flatten(1))"
            )
        return x

    def axis(self, axis: Any, rank: int) -> int:
        """Returns an axis of a tensor of that rank, counted from 0; UnsupportedOperator when it has none such."""
        if not isinstance(axis, int) or not -rank <= axis < rank:
            raise UnsupportedOperator(f"has the axis {show(axis)}, and its tensor has {rank} dimensions")
        return axis % rank

    def axes(self, axes: Sequence[Any], rank: int) -> list[int]:
        """Returns axes of a tensor of that rank, counted from 0; UnsupportedOperator when one is none or stands twice."""
        found = [self.axis(axis, rank) for axis in axes]
        if len(set(found)) != len(found):
            raise UnsupportedOperator(f"has the axes {show(list(axes))}, one of them twice")
        return found

    def named_axes(self, values: list[Any], names: list[str], a: dict[str, Any]) -> list[int] | None:
        """Returns the list of axes that an operator has as its attribute or as its second input, None where it has none."""
        if len(values) < 2 or values[1] is None:
            found = a.get("axes")
            return None if found is None else list(found)
        return self.constant_integers(values[1], names[1])

    def weight(self, value: Any, name: str) -> NDArray[np.float32]:
        """Returns the value in float32, which must be a constant tensor of the format of the file."""
        if isinstance(value, Dequantised):
            self.stored[name] = value
            return value.floats()
        wanted = np.float16 if self.computes_in == "fp16" else np.float32
        if not isinstance(value, np.ndarray) or value.dtype != wanted:
            raise UnsupportedOperator(f'needs a constant {np.dtype(wanted).name} tensor, and "{show(name)}" is none')
        return value.astype(np.float32, copy=False)

    def integers(self, value: Any, name: str) -> Sizes:
        """Returns the value, which must be a short list of integers or a computed shape."""
        if not isinstance(value, np.ndarray) or value.dtype not in (np.int64, object) or value.ndim > 1 or value.size > MAX_RANK:
            raise UnsupportedOperator(f'needs a constant list of at most {MAX_RANK} integers, and "{show(name)}" is none')
        return tuple(one if isinstance(one, str) else int(one) for one in value.reshape(-1))

    def constant_integers(self, value: Any, name: str) -> list[int]:
        """Returns the value, which must be a short list of integers that do not depend on the batch."""
        sizes = self.integers(value, name)
        if any(isinstance(size, str) for size in sizes):
            raise UnsupportedOperator("depends on the batch size")
        return [int(size) for size in sizes]

    def fold(self, size: int) -> None:
        """Counts elements of a constant that is about to be made of others; UnsupportedOperator when they are too many."""
        self.foldable -= size
        if self.foldable < 0:
            raise UnsupportedOperator("makes too large constants of smaller ones; fold constants when exporting")

    def store(self, name: str, value: NDArray[np.float32]) -> str:
        """Stores a parameter under a name of its own, with the integers that the file has for it."""
        param = self.builder.param(name, np.asarray(value, order="C"))
        if name in self.stored:
            self.builder.integers[param] = self.stored[name].as_used(value)
        return param


def constant_array(value: Any) -> NDArray[Any]:
    """Returns the value, which must be a constant array, not one of integers that stand for other numbers."""
    if not isinstance(value, np.ndarray):
        raise UnsupportedOperator(
            "is applied to integers that no DequantizeLinear has turned back, or to quantised weights; move them before"
        )
    return value


def pair(a: dict[str, Any], name: str) -> tuple[int, int]:
    """Returns an attribute of two numbers from 1, by default [1, 1]."""
    value = a.get(name, [1, 1])
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(v, int) and 1 <= v < 2**20 for v in value):
        raise UnsupportedOperator(f"has {name} {show(value)}; two numbers from 1 are wanted")
    return (value[0], value[1])


# Takes the context, the operator's inputs (None for one left out), their names and its attributes, and returns its output: an activation,
# a constant, what another operator turns into one of these, or a list with an entry for each output of an operator that has several.
Read = Callable[[OnnxContext, list[Any], list[str], dict[str, Any]], Any]


@dataclass(frozen=True)
class OnnxOperator:
    """How one ONNX operator is read: the function, how many inputs it may have, and the attributes it may carry.

    `only` says what is known of it beside that: that its outputs are elements of its first input at other indices, whatever they are
    ("moves"), or that it is a function of one number, of its name and its attributes alone ("function"). Of several outputs all are read,
    each with a name, or the first ones may be read alone. Activations are of the format of the file, where not of any.
    """

    read: Read
    least: int
    most: int
    attributes: frozenset[str]
    only: Literal["moves", "function"] | None = None
    outputs: Literal["one", "first", "all"] = "one"
    any_format: bool = False


OPERATORS: dict[str, OnnxOperator] = {}


def reads(kind: str, least: int, most: int, *attributes: str, **more: Any) -> Callable[[Read], Read]:
    """Enters a function in the table of ONNX operators that are read, with what else `OnnxOperator` holds."""

    def enter(function: Read) -> Read:
        OPERATORS[kind] = OnnxOperator(function, least, most, frozenset(attributes), **more)
        return function

    return enter
