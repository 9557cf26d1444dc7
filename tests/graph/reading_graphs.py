"""Random ONNX files with odd attributes, in any opset that is read: what a reader may get wrong without noticing.

Files are written node by node, with the shape of every tensor known as it is at batch 1. Most of what is drawn is legal and is read; a
small share of each choice is not (wrong sizes, attributes of other opsets, the batch moved or dropped), and must then be refused, by the
reader or by the runtime.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto
from reading_constants import Constants

Shape = tuple[int, ...]
ODD = 0.04
# Operators behind which quantised values are still on their grid.
CARRIES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "MaxPool", "Identity", "Dropout"}


@dataclass
class File:
    """A random file, the batch that it declares (1, or None: symbolic), and what it was made of."""

    data: bytes
    batch: int | None
    shape: Shape
    opset: int
    operators: list[str] = field(default_factory=list)
    half: bool = False
    quantised: bool = False


class Writer(Constants):
    """Appends random nodes; `pool` holds the tensors that may be read, with their shapes at batch 1."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng, int(rng.integers(7, 27)))
        self.symbolic = bool(rng.random() < 0.5)
        style = rng.random()
        self.half = bool(style < 0.1 and self.opset >= 13)
        self.quantised = bool(0.1 <= style < 0.25 and self.opset >= 10)
        self.narrow = bool(style >= 0.95 and self.opset >= 13)
        self.float = np.float16 if self.half else np.float32
        size = lambda: int(rng.choice([1, 2, 3, 4, 5, 6, 8]))  # noqa: E731
        rank = int(rng.choice([1, 2, 3], p=[0.2, 0.3, 0.5]))
        self.shape: Shape = tuple([int(rng.choice([1, 2, 3, 4])), size(), size()][:rank] if rank > 1 else [size()])
        self.pool: list[tuple[str, Shape]] = [("x", (1, *self.shape))]
        if self.half:
            self.emit("Cast", ["x"], (1, *self.shape), to=TensorProto.FLOAT16)
            del self.pool[0]
        if self.quantised and self.chance(0.7):
            self.pool = [(self.pair("x")[0], (1, *self.shape))]

    # Helpers ----------------------------------------------------------------------------------------------------------

    def emit(self, kind: str, inputs: list[str], *shapes: Shape, **attributes: Any) -> list[str]:
        """Appends a node whose outputs have these shapes, and puts them in the pool."""
        outputs = [self.name("t") for _ in shapes]
        self.node(kind, inputs, outputs, **{name: value for name, value in attributes.items() if value is not None})
        if kind in CARRIES and inputs[0] in self.scales:
            self.scales |= dict.fromkeys(outputs, self.scales[inputs[0]])
        if kind in ("Conv", "Gemm", "MatMul", "AveragePool", "Add") and self.quantised and self.chance(0.7):
            outputs = self.pair(outputs[0])
        for output, shape in zip(outputs, shapes, strict=True):
            if shape and prod(shape) and prod(shape) < 2000:
                self.pool.append((output, tuple(int(size) for size in shape)))
        return outputs

    def pick(self, *ranks: int) -> tuple[str, Shape]:
        """Returns a tensor, mostly one of the last, of one of the ranks where there is one."""
        fitting = [one for one in self.pool if len(one[1]) in ranks] if ranks else self.pool
        if not fitting or self.chance(ODD / 2):
            fitting = self.pool
        back = min(len(fitting), 1 + int(self.rng.geometric(0.6)) - 1 or 1)
        return fitting[-back]

    def has(self, *ranks: int) -> bool:
        return any(len(shape) in ranks for _, shape in self.pool)

    def signed(self, axis: int, rank: int) -> int:
        return axis - rank if self.opset >= 11 and self.chance(0.4) else axis

    def axis(self, rank: int) -> int:
        """Returns an axis, rarely the batch."""
        return 0 if rank == 1 or self.chance(ODD if self.symbolic else 0.12) else int(self.rng.integers(1, rank))

    def subset(self, axes: list[int], least: int = 1) -> list[int]:
        count = int(self.rng.integers(least, len(axes) + 1)) if axes else 0
        return [int(axis) for axis in self.rng.permutation(axes)[:count]]

    # Windows ----------------------------------------------------------------------------------------------------------

    def window(self, shape: Shape, most: int = 4, dilate: bool = True, pool: bool = False) -> tuple[dict[str, Any], Shape, Shape] | None:
        """Returns the attributes of a window, its kernel and the output's sizes."""
        sizes, rng = shape[2:], self.rng
        kernel = tuple(int(rng.integers(1, min(most, size) + 1)) for size in sizes)
        stride = [int(rng.choice([1, 1, 2, 3, 5])) for _ in sizes]
        dilation = [int(rng.choice([1, 1, 1, 2])) if dilate else 1 for _ in sizes]
        mode = str(rng.choice(["", "pads", "SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"], p=[0.3, 0.3, 0.13, 0.13, 0.09, 0.05]))
        if mode.startswith("SAME"):
            dilation = [1 for _ in sizes]
            if not self.chance(0.1):  # negative padding, which is refused
                stride = [min(s, k) for s, k in zip(stride, kernel, strict=True)]
        pads = [0] * (2 * len(sizes))
        if mode == "pads":
            pads = [int(rng.integers(0, k if pool else 3)) for k in (*kernel, *kernel)]
        out = []
        for i, (size, k, s, d) in enumerate(zip(sizes, kernel, stride, dilation, strict=True)):
            reach = d * (k - 1) + 1
            out.append(-(-size // s) if mode.startswith("SAME") else (size + pads[i] + pads[i + len(sizes)] - reach) // s + 1)
        if min(out) < 1:
            return None
        a: dict[str, Any] = {"strides": stride if any(s != 1 for s in stride) or self.chance(0.5) else None}
        a["pads"] = pads if mode == "pads" or (not mode and self.chance(0.2)) else None
        a["auto_pad"] = mode if mode.isupper() else None
        a["dilations"] = dilation if any(d != 1 for d in dilation) or (dilate and self.chance(0.3)) else None
        return a, kernel, tuple(out)

    def conv(self) -> None:
        x, shape = self.pick(4, 3)
        if len(shape) not in (3, 4) or shape[0] != 1 or not (found := self.window(shape)):
            return
        a, kernel, out = found
        groups = int(self.rng.choice([g for g in (1, 2, 3, 4) if shape[1] % g == 0]))
        outputs = groups * int(self.rng.integers(1, 4))
        x = self.quantised_input(x)
        weight = self.affine_weight((outputs, shape[1] // groups, *kernel))
        bias = [self.affine_bias(outputs, (outputs,), x, weight)] if self.chance(0.5) else []
        kernel_shape = None if self.chance(0.5) else [*kernel[:-1], kernel[-1] + int(self.chance(ODD))]
        group = groups if groups > 1 or self.chance(0.3) else None
        self.emit("Conv", [x, weight, *bias], (1, outputs, *out), group=group, kernel_shape=kernel_shape, **a)

    def pool_window(self, kind: str) -> None:
        x, shape = self.pick(4, 3)
        if len(shape) not in (3, 4) or not (found := self.window(shape, 3, dilate=False, pool=True)):
            return
        a, kernel, out = found
        if kind == "AveragePool" and a["pads"] and any(a["pads"]) and not self.chance(ODD):
            a["pads"] = None
            out = tuple((n - k) // s + 1 for n, k, s in zip(shape[2:], kernel, a["strides"] or [1, 1], strict=False))
        if self.opset >= 10 and self.chance(0.2):
            a["ceil_mode"] = int(self.chance(0.5))
        if kind == "MaxPool" and self.opset >= 8 and self.chance(0.1):
            a["storage_order"] = int(self.chance(0.3))
        if kind == "AveragePool" and self.chance(0.3):
            a["count_include_pad"] = int(self.chance(0.5))
        if self.opset >= (10 if kind == "MaxPool" else 19) and self.chance(0.1):
            a["dilations"] = [1 + int(self.chance(0.1)) for _ in kernel]
        self.emit(kind, [x], (*shape[:2], *out), kernel_shape=list(kernel), **a)

    def max_pool(self) -> None:
        self.pool_window("MaxPool")

    def average_pool(self) -> None:
        self.pool_window("AveragePool")

    def global_average(self) -> None:
        x, shape = self.pick(4, 3)
        self.emit("GlobalAveragePool", [x], (*shape[:2], *(1 for _ in shape[2:])))

    # Affine and element by element ------------------------------------------------------------------------------------

    def gemm(self) -> None:
        x, shape = self.pick(2)
        if len(shape) != 2:
            return
        outputs, transposed = int(self.rng.integers(1, 6)), self.chance(0.5)
        x = self.quantised_input(x)
        weight = self.affine_weight((outputs, shape[1]) if transposed else (shape[1], outputs), 0 if transposed else 1)
        shapes = [(outputs,), (1, outputs), (1,), (), (1, 1)]
        wanted = shapes[int(self.rng.integers(5))] if self.chance(0.5) else shapes[0]
        bias = [] if self.opset >= 11 and self.chance(0.3) else [self.affine_bias(outputs, wanted, x, weight)]
        one = lambda: None if self.chance(0.7) else 1.0 if self.chance(0.9) else 0.5  # noqa: E731
        trans_b = int(transposed) if transposed or self.chance(0.3) else None
        self.emit("Gemm", [x, weight, *bias], (shape[0], outputs), alpha=one(), beta=one(), transB=trans_b)

    def matmul(self) -> None:
        x, shape = self.pick(2, 1)
        if len(shape) > 2 and not self.chance(0.1):
            return
        outputs = int(self.rng.integers(1, 6))
        weight = self.affine_weight((shape[-1], outputs), 1)
        self.emit("MatMul", [self.quantised_input(x), weight], (*shape[:-1], outputs))

    def batch_norm(self) -> None:
        x, shape = self.pick(2, 4)
        if len(shape) not in (2, 4) and not self.chance(ODD):
            return
        channels = (shape[-1] if len(shape) < 2 else shape[1],)
        inputs = [self.constant(self.normal(channels)) for _ in range(3)] + [self.constant(np.abs(self.normal(channels)) + self.float(0.5))]
        a: dict[str, Any] = {"epsilon": None if self.chance(0.5) else float(self.rng.choice([1e-3, 0.1]))}
        a["momentum"] = 0.9 if self.chance(0.2) else None
        a["spatial"] = 1 if self.opset < 9 and self.chance(0.3) else None
        self.emit("BatchNormalization", [x, *inputs], shape, **a)

    def curve(self) -> None:
        x, shape = self.pick()
        kind = str(self.rng.choice(["Relu", "Relu", "Sigmoid", "Tanh", "Neg", "LeakyRelu", "PRelu", "Clip", "Clip"]))
        if kind == "LeakyRelu":
            self.emit(kind, [x], shape, alpha=None if self.chance(0.4) else float(np.float32(self.rng.choice([0.0, 0.1, 0.5, 1.0]))))
        elif kind == "PRelu":
            slopes = np.full(self.beside(shape), self.rng.choice([0.25, 0.5]), self.float)
            self.emit(kind, [x, self.constant(slopes)], shape)
        elif kind == "Clip":
            low, high = (self.chance(0.75) for _ in range(2))
            least = round(float(self.rng.normal() - 1) * 4) / 4
            most = least + abs(round(float(self.rng.normal()) * 4)) / 4 + (0 if self.chance(0.03) else 0.5)
            if self.opset < 11:
                self.emit(kind, [x], shape, min=least if low else None, max=most if high else None)
            else:
                ends = [self.constant(np.array(end, self.float)) if there else "" for end, there in ((least, low), (most, high))]
                self.emit(kind, [x, *(ends if high or self.chance(0.2) else ends[:1] if low else [])], shape)
        else:
            self.emit(kind, [x], shape)

    def beside(self, shape: Shape) -> Shape:
        """Returns the shape of a constant that broadcasts to a tensor's, with other ranks and rarely a size that does not fit."""
        rank = int(self.rng.integers(0, len(shape) + 1))
        sizes = [size if self.chance(0.7) else 1 for size in shape[len(shape) - rank :]]
        if self.chance(ODD if self.symbolic else 0.1):
            sizes = [1] * int(self.rng.integers(1, 3)) + sizes
        if sizes and self.chance(ODD / 2):
            sizes[int(self.rng.integers(len(sizes)))] = int(self.rng.integers(1, 5))
        return tuple(sizes)

    def with_constant(self) -> None:
        x, shape = self.pick()
        kind = str(self.rng.choice(["Add", "Sub", "Mul", "Div"]))
        value = self.normal(self.beside(shape))
        if kind == "Div":
            value = (np.sign(value) + (value == 0)) * (np.abs(value) + self.float(0.5)) if self.chance(0.6) else np.full_like(value, 0.25)
        value = np.asarray(value, self.float)
        inputs = [x, self.constant(value)]
        if kind != "Div" and self.chance(0.4):
            inputs.reverse()
        self.emit(kind, inputs, np.broadcast_shapes(shape, value.shape) if self.fits(shape, value.shape) else shape)

    @staticmethod
    def fits(a: Shape, b: Shape) -> bool:
        try:
            np.broadcast_shapes(a, b)
        except ValueError:
            return False
        return True

    def two(self) -> None:
        x, shape = self.pick()
        others = [name for name, other in self.pool if other == shape or (self.chance(0.02) and self.fits(shape, other))]
        y = others[int(self.rng.integers(len(others)))] if others else x
        self.emit(str(self.rng.choice(["Add", "Sub"])), [x, y], shape)
