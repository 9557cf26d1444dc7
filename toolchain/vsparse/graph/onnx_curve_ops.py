"""ONNX operators that are functions of one number: LeakyRelu, PRelu, Clip, Sigmoid, Tanh, Neg."""

from __future__ import annotations

from math import inf, isnan
from typing import Any

import numpy as np

from vsparse.graph.ir import Clip, LeakyRelu, Neg, Relu, Sigmoid, Tanh
from vsparse.graph.onnx_move_ops import MoveOps
from vsparse.graph.onnx_values import Activation, Refused


class CurveOps(MoveOps):
    """Each method takes the operator's inputs, their names and its attributes, and returns its output."""

    def unary(self, kind: type[Relu] | type[Neg] | type[Sigmoid] | type[Tanh], value: Any) -> Activation:
        """Appends a node of one input without parameters."""
        x = self.activation(value)
        return self.add(kind(name=self.fresh(), inputs=(x.name,), shape=()), x.batched)

    def leaky_relu(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        return self._leaky(self.activation(values[0]), float(a.get("alpha", np.float32(0.01))))

    def prelu(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x, slopes = self.activation(values[0]), self.weight(values[1], names[1])
        whole = self.whole(x)
        ends = whole[len(whole) - slopes.ndim :] if slopes.ndim <= len(whole) else ()
        if len(ends) != slopes.ndim or any(slope not in (1, size) for slope, size in zip(slopes.shape, ends, strict=True)):
            raise Refused(f"has slopes of shape {slopes.shape}, which do not broadcast to shape {list(whole)}")
        if not slopes.size or (slopes != slopes.flat[0]).any():
            raise Refused("has several slopes; use LeakyRelu, with one slope for all")
        return self._leaky(x, float(slopes.flat[0]))

    def _leaky(self, x: Activation, slope: float) -> Activation:
        if not 0 <= slope <= 1:
            raise Refused(f"has the slope {slope}; one from 0 to 1 is wanted")
        return self.add(LeakyRelu(name=self.fresh(), inputs=(x.name,), shape=(), slope=slope), x.batched)

    def clip(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.activation(values[0])
        ends = [float(a.get("min", -inf)), float(a.get("max", inf))]
        for i, value in enumerate(values[1:]):
            if value is not None:
                end = self.weight(value, names[i + 1])
                if end.size != 1 or end.ndim > 1:
                    raise Refused("has ends that are not single numbers")
                ends[i] = float(end.reshape(()))
        lowest, highest = ends
        if isnan(lowest) or isnan(highest) or not lowest <= highest or lowest == inf or highest == -inf:
            raise Refused(f"clips to [{lowest}, {highest}]; numbers in order are wanted")
        if ends == [-inf, inf]:
            return x
        return self.add(Clip(name=self.fresh(), inputs=(x.name,), shape=(), lowest=lowest, highest=highest), x.batched)

    def sigmoid(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        return self.unary(Sigmoid, values[0])

    def tanh(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        return self.unary(Tanh, values[0])

    def negate(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        return self.unary(Neg, values[0])
