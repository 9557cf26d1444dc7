"""TensorRT's int8 arithmetic, simulated: exact int32 sums, and every order of the float32 steps behind them.

See docs/numerics.md, section 7.5.

A device draws, for each operator, how scales are combined, whether they divide or multiply by a rounded reciprocal, whether a product is
fused with the addition behind it, where the bias and a residual are added, and which way ties go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vsparse.graph.ir import (
    Add,
    AddConstant,
    Affine,
    AveragePool,
    Concat,
    Conv,
    FakeQuant,
    Graph,
    MaxPool,
    MulConstant,
    Node,
    Relu,
    Reshape,
)

F32 = np.float32
Floats = NDArray[np.float32]
ORDERS = 5


@dataclass
class Sum:
    """A sum of products before it is scaled: T, the scale of its input, those of its outputs, and a bias; then what is added to it."""

    total: NDArray[np.int64]
    input_scale: np.float32
    scales: Floats  # broadcast against total
    bias: Floats
    residual: tuple[NDArray[np.int64], np.float32] | None = None
    relu: bool = False


class TensorRT:
    """One device: `order` from 0 to ORDERS − 1 or None (drawn anew for each operator), `flush` for subnormal numbers."""

    def __init__(self, graph: Graph, rng: np.random.Generator, order: int | None = None, flush: bool = False) -> None:
        self.graph, self.rng, self.order, self.flush = graph, rng, order, flush

    def run(self, x: Floats) -> dict[str, NDArray[Any]]:
        """Executes inputs [n, *shape]; returns each activation in float64, and the integers of quantised ones times their scale exactly."""
        values: dict[str, Any] = {self.graph.input: x}
        readers = self.graph.consumers()
        for node in self.graph.nodes:
            values[node.name] = self.step(node, [values[name] for name in node.inputs], len(readers[node.name]) == 1)
        return {name: self.told(value) for name, value in values.items() if not isinstance(value, Sum)}

    def told(self, value: Any) -> NDArray[np.float64]:
        return value[0] * np.float64(value[1]) if isinstance(value, tuple) else np.asarray(value, np.float64)

    def step(self, node: Node, inputs: list[Any], alone: bool) -> Any:
        """Returns what a node makes of its inputs: float32 values, (integers, scale) or a `Sum` that its only reader may scale."""
        x = inputs[0]
        if isinstance(node, FakeQuant):
            return self.quantise(node, x), F32(node.scale)
        if isinstance(node, Affine):
            made = self.sum(node, x)
            return made if alone and self.rng.random() < 0.7 else self.scaled(made, None)
        if isinstance(node, Add):
            a, b = inputs
            if isinstance(b, Sum):
                a, b = b, a
            if isinstance(a, Sum) and isinstance(b, tuple) and a.residual is None and not a.relu:
                a.residual = b
                return a if alone and self.rng.random() < 0.7 else self.scaled(a, None)
            return self.kept(self.floats(a) + self.floats(b))
        if isinstance(node, Relu):
            if isinstance(x, Sum):
                x.relu = True
                return x if alone else self.scaled(x, None)
            return (np.maximum(x[0], 0), x[1]) if isinstance(x, tuple) else np.maximum(x, F32(0))
        if isinstance(node, AveragePool):
            return self.average(node, x)
        if isinstance(node, AddConstant | MulConstant):
            constant = self.graph.params[node.constant]
            return self.kept(self.floats(x) + constant if isinstance(node, AddConstant) else self.floats(x) * constant)
        return self.moved(node, inputs)

    def moved(self, node: Node, inputs: list[Any]) -> Any:
        x = inputs[0] if not isinstance(inputs[0], Sum) else self.scaled(inputs[0], None)
        values = x[0] if isinstance(x, tuple) else x
        if isinstance(node, Reshape):
            found: NDArray[Any] = values.reshape(len(values), *node.shape)
        elif isinstance(node, MaxPool):
            found = F.max_pool2d(torch.from_numpy(values.astype(np.float64)), node.kernel, node.stride).numpy().astype(values.dtype)
        elif isinstance(node, Concat):
            return np.concatenate([self.floats(one) for one in inputs], axis=1 + node.axis)
        else:
            raise NotImplementedError(type(node).__name__)
        return (found, x[1]) if isinstance(x, tuple) else found

    def floats(self, value: Any) -> Floats:
        """Returns float32 values: of integers, fl(k·s)."""
        if isinstance(value, Sum):
            return self.scaled(value, None)
        return self.kept(value[0].astype(F32) * value[1]) if isinstance(value, tuple) else value

    def kept(self, value: Any) -> Floats:
        value = np.asarray(value, F32)
        return np.where(np.abs(value) < F32(2.0**-126), F32(0), value) if self.flush else value

    def sum(self, node: Affine, x: Any) -> Sum:
        """Returns the exact sum of integers; x must be quantised."""
        integers, scale = x
        stored = self.graph.integers[node.weight]
        wide, weight = torch.from_numpy(integers.astype(np.float64)), torch.from_numpy(stored.values.astype(np.float64))
        if isinstance(node, Conv):
            top, left, bottom, right = node.pads
            total = F.conv2d(F.pad(wide, (left, right, top, bottom)), weight, None, node.stride, 0, node.dilation, node.groups)
        else:
            total = F.linear(wide, weight)
        along = (1, -1, *[1] * (total.dim() - 2))
        bias = np.zeros(len(stored.values), F32) if node.bias is None else self.graph.params[node.bias]
        scales = np.broadcast_to(stored.scale.astype(F32), (len(stored.values),)).reshape(along)
        return Sum(total.numpy().astype(np.int64), scale, scales, bias.reshape(along))

    def over(self, a: Any, b: Any) -> Floats:
        """Returns a / b, rounded once, or a product with a rounded reciprocal."""
        return self.kept(a / b) if self.rng.random() < 0.5 else self.kept(a * self.kept(F32(1) / b))

    def fused(self, a: Any, b: Any, c: Any) -> Floats:
        """Returns a·b + c, rounded once or twice."""
        if self.rng.random() < 0.5:
            return self.kept((a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(F32))
        return self.kept(self.kept(a * b) + c)

    def scaled(self, one: Sum, output: np.float32 | None) -> Floats:
        """Returns what a sum becomes in units of `output` (None: 1), in one of the orders of the float steps."""
        s_x, s_w, s_y = np.asarray(one.input_scale), one.scales, np.asarray(F32(1) if output is None else output)
        order = int(self.rng.integers(ORDERS)) if self.order is None else self.order
        total = one.total.astype(F32)
        bias = one.bias
        if order == 0:  # one factor, one bias
            alpha = self.over(self.kept(s_x * s_w), s_y)
            found = self.fused(total, np.broadcast_to(alpha, total.shape), self.over(bias, s_y))
        elif order == 1:  # the other way round
            alpha = self.kept(self.over(s_x, s_y) * s_w)
            found = self.fused(total, np.broadcast_to(alpha, total.shape), self.over(bias, s_y))
        elif order == 2:  # scale after scale, the output's last
            product = self.kept(self.kept(total * s_x) * s_w)
            found = self.over(self.kept(product + bias), s_y)
        elif order == 3:  # the bias in units of the sum
            counted = self.over(bias, self.kept(s_x * s_w))
            found = self.kept(self.kept(total + counted) * self.over(self.kept(s_x * s_w), s_y))
        else:
            counted = self.over(self.over(bias, s_x), s_w)
            found = self.over(self.kept(self.kept(self.kept(total + counted) * s_w) * s_x), s_y)
        if one.residual is not None:
            k, s_r = one.residual
            r = self.over(np.asarray(s_r), s_y)
            found = self.fused(k.astype(F32), np.broadcast_to(r, k.shape), found)
        return np.maximum(found, F32(0)) if one.relu else found

    def average(self, node: AveragePool, x: Any) -> Floats:
        values, scale = x if isinstance(x, tuple) else (x, F32(1))
        if not isinstance(x, tuple):
            values = values.astype(np.float64)
        count = node.kernel[0] * node.kernel[1]
        summed = F.avg_pool2d(torch.from_numpy(values.astype(np.float64)), node.kernel, node.stride, divisor_override=1).numpy()
        factor = self.over(np.asarray(scale), np.asarray(F32(count)))
        return self.kept(summed.astype(F32) * factor)

    def quantise(self, node: FakeQuant, x: Any) -> NDArray[np.int64]:
        scale = F32(node.scale)
        found = self.scaled(x, scale) if isinstance(x, Sum) else self.over(self.floats(x), np.asarray(scale))
        wide = found.astype(np.float64)
        low, high = np.ceil(wide - 0.5), np.floor(wide + 0.5)  # ties either way
        chosen = np.where(self.rng.random(wide.shape) < 0.5, low, high)
        return np.clip(chosen, node.lowest, node.highest).astype(np.int64)
