"""Conv and Gemm: the layers that units are removed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.graph.execute import apply
from vsparse.graph.ir import Affine, Conv, Gemm, Graph
from vsparse.stages.compress.exact_values import ExactValues, IntegerArray, from_floats, from_fractions, padded, window
from vsparse.stages.compress.layers import filters, is_depthwise, is_reader
from vsparse.stages.compress.reduced_graph import Mask, ReducedGraph
from vsparse.stages.compress.rules import CompressionRules, Constants, ExactBiases, one_to_one, register
from vsparse.stages.compress.running_error import NodeRun, gamma

N = TypeVar("N", bound=Affine)


class _AffineRules(CompressionRules[N]):
    """A layer that mixes its units, or a grouped convolution: depthwise it carries them on, else it stays whole."""

    def product(self, node: N, weight: IntegerArray, x: IntegerArray) -> IntegerArray:
        """Returns W·x in integers."""
        raise NotImplementedError

    def mixes(self, node: N) -> bool:
        return is_reader(node)

    def ties(self, node: N, graph: Graph, name: str) -> NDArray[np.int64] | None:
        return one_to_one(node, graph, name) if is_depthwise(node, graph.shape_of(name)[0]) else None

    def constants(self, node: N, reduced: ReducedGraph, inputs: list[Constants], dead: Mapping[str, Mask]) -> Constants:
        used: Mask = np.any(filters(reduced.weight[node.name]), axis=1)
        if is_depthwise(node, len(inputs[0])):
            used &= np.repeat([value != 0 for value in inputs[0]], len(used) // len(inputs[0]))
        bias = reduced.bias[node.name]
        return [None if reads else bias[row] for row, reads in enumerate(used.tolist())]

    def pack(
        self, node: N, graph: Graph, alive: Mask, alive_in: Mask, params: dict[str, NDArray[np.float32]], exact: dict[str, list[Fraction]]
    ) -> N:
        weight = params[node.weight]
        if is_reader(node):
            if weight[:, ~alive_in].any():
                raise AssertionError(f"{node.name} still reads a removed unit")
            weight = weight[:, alive_in]
        elif is_depthwise(node, graph.shape_of(node.inputs[0])[0]):
            node = replace(node, groups=int(alive_in.sum()))  # type: ignore[call-arg]  # a convolution
        elif not (alive.all() and alive_in.all()):
            raise AssertionError(f"{node.name} is a grouped convolution and was to stay whole")
        params[node.weight] = np.ascontiguousarray(weight[alive])
        if node.bias is not None:
            params[node.bias] = params[node.bias][alive]
            exact[node.bias] = [value for value, stays in zip(exact[node.bias], alive.tolist(), strict=True) if stays]
        return node

    def exact(self, node: N, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        (x,), weight = inputs, from_floats(graph.params[node.weight])
        result = ExactValues(self.product(node, weight.integers, x.integers), weight.scale * x.scale)
        if node.bias is None:
            return result
        bias = from_fractions(biases[node.bias]) if node.bias in biases else from_floats(graph.params[node.bias])
        return result + bias.reshape((-1, *(1 for _ in node.shape[1:])))

    def error(self, node: N, run: NodeRun) -> Tensor:
        u, tiny = run.arithmetic.unit_roundoff, run.arithmetic.smallest_normal
        weight = torch.tensor(run.params[node.weight]).double().abs()
        bias = torch.zeros(len(weight), dtype=torch.float64) if node.bias is None else torch.tensor(run.params[node.bias]).double().abs()
        column = (-1, *(1 for _ in node.shape[1:]))
        terms = (weight != 0).flatten(1).sum(1).double().reshape(column)
        absolute = {node.weight: weight, **({} if node.bias is None else {node.bias: bias})}
        magnitude = apply(node, absolute, run.inputs[0].abs())
        zero_bias = {**absolute, **({} if node.bias is None else {node.bias: torch.zeros_like(bias)})}
        error = apply(node, zero_bias, run.errors[0]) + gamma(terms + 1, u) * magnitude + 2 * (terms + 1) * tiny
        if run.moved is not None:
            off = {node.weight: torch.from_numpy(run.moved.weight)}
            if node.bias is not None:
                off[node.bias] = torch.from_numpy(run.moved.bias)
            error = error + apply(node, off, run.inputs[0].abs() + run.errors[0])
        return error


@register(Gemm)
class GemmCompression(_AffineRules[Gemm]):
    """y = W·x + b."""

    def product(self, node: Gemm, weight: IntegerArray, x: IntegerArray) -> IntegerArray:
        result = np.zeros(node.shape, dtype=object)
        for row in range(node.shape[0]):
            used = np.flatnonzero(weight[row])
            result[row] = sum((weight[row, used] * x[used]).tolist())
        return result


@register(Conv)
class ConvCompression(_AffineRules[Conv]):
    """A convolution, tap by tap."""

    def product(self, node: Conv, weight: IntegerArray, x: IntegerArray) -> IntegerArray:
        result = np.zeros(node.shape, dtype=object)
        x = padded(x, node.pads)
        per_group = node.shape[0] // node.groups
        for out, channel, row, column in np.argwhere(weight).tolist():
            source = x[(out // per_group) * weight.shape[1] + channel]
            tap = window(source, row * node.dilation[0], column * node.dilation[1], node.stride, node.shape[1:])
            result[out] = result[out] + weight[out, channel, row, column] * tap
        return result
