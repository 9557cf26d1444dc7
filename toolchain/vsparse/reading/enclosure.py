"""What any execution of a graph may compute at a point: interval bounds with the rounding of the contract that a CPU honours.

Batch normalisation, which no certified graph has, has a rule here, so that files that still hold it can be compared too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from vsparse.bounds import Box, Rounding
from vsparse.bounds.float64 import gamma, magnitude
from vsparse.bounds.interval import deployed, propagate, widen
from vsparse.bounds.linear import forward, per_output
from vsparse.contract import CONTRACTS, LARGEST, Contract
from vsparse.graph.execute import channel_affine, per_channel
from vsparse.graph.ir import Add, AddConstant, Affine, BatchNorm, Graph, MulConstant, Node, Sub
from vsparse.graph.quantised import integer_contract, is_quantised
from vsparse.processor import half_precision_contract, this_processor

UNIT = 2.0**-24
# Roundings of a batch normalisation beside those of the sum before it: at most five of its factor (root, quotient, product, product with a
# weight) and seven of its shift; 2·16 covers also a factor and shift of our own, each rounded to float32 (docs/numerics.md, section 9.2).
ROUNDINGS = 32
# What underflow may cost one operation, and how many of them there are.
FLOOR = 2.0**-126


def executed(graph: Graph) -> Contract:
    """Returns the contract within which ONNX Runtime executes such a file on this machine's CPU.

    Float16 files run in float32, within `fp16`, where the processor has no kernels on float16; on aarch64 sums are kept in float16,
    where the file does not type them as float32.
    """
    if is_quantised(graph):
        return CONTRACTS[integer_contract(graph)]
    if graph.wide_sums:
        return CONTRACTS["fp16-tensorrt"]
    if graph.storage == "fp16":
        return CONTRACTS[half_precision_contract(this_processor())]
    return CONTRACTS["fp32"]


class Enclosure:
    """Boxes of all activations of a graph at points, under the contract that a CPU honours; InputError where the contract refuses it.

    Where it refuses a quantised graph, as integer kernels would compute something else, `one_by_one` is about the file's own operators.
    """

    def __init__(self, graph: Graph, one_by_one: bool = False) -> None:
        self.graph = graph
        self.contract = executed(graph)
        self.normalised = any(isinstance(node, BatchNorm) for node in graph.nodes)
        # Rounding knows no batch normalisation: one number for each channel stands in for it, and has its own rule below.
        nodes = tuple(
            MulConstant(name=node.name, inputs=node.inputs, shape=node.shape, constant=node.scale) if isinstance(node, BatchNorm) else node
            for node in graph.nodes
        )
        params = dict(graph.params)
        for node in graph.nodes:
            if isinstance(node, BatchNorm):
                params[node.scale] = graph.params[node.scale].reshape(-1, *(1 for _ in node.shape[1:]))
        self.rounding = Rounding(replace(graph, nodes=nodes, params=params), self.contract, any_kernel=not one_by_one)
        self.params = {name: torch.tensor(value, dtype=torch.float64) for name, value in graph.params.items()}
        self._producers = {node.name: node for node in graph.nodes}
        self._longest = max((value[0].size for name, value in graph.params.items() if value.ndim), default=0)

    def start(self, x: Tensor) -> dict[str, Box]:
        """Returns the box of the input at points x [n, *shape], float64."""
        return {self.graph.input: widen((x, x), self.rounding.input_error((x, x)))}

    def at(self, x: Tensor) -> dict[str, Box]:
        """Returns the boxes of all activations at points x [n, *shape], float64; (−inf, inf) where an overflow is possible."""
        boxes = self.start(x)
        with torch.no_grad():
            for node in self.graph.nodes:
                boxes[node.name] = self.step(node, boxes)
        return boxes

    def step(self, node: Node, boxes: Mapping[str, Box]) -> Box:
        """Returns the box of a node's output from the boxes of its inputs, and of those of the operators it may be fused with."""
        if not self.normalised:
            return deployed(node, self.rounding.params, boxes, self.rounding)
        box = propagate(node, self.params, [boxes[name] for name in node.inputs])
        if isinstance(node, BatchNorm):
            return widen(box, self._normalisation_error(node, boxes))
        error = self.rounding.error(node, boxes, box)
        if isinstance(node, Add | AddConstant | Sub):
            # The sum of a convolution may start here, with a batch normalisation folded into it in between.
            size = sum((magnitude(boxes[name]) for name in node.inputs), torch.zeros((), dtype=torch.float64))
            error = error + gamma(self._longest + ROUNDINGS, UNIT) * size
        return widen(box, error)

    def _normalisation_error(self, node: BatchNorm, boxes: Mapping[str, Box]) -> Tensor:
        """Returns E of a batch normalisation, by itself or folded into the affine operator before it.

        With reach = |x|, or Σ|w|m + |b| of that operator, |factor|·reach + |β| + |factor·mean| bounds everything that is rounded, and no
        term is rounded more often than the operator has terms and ROUNDINGS together.
        """
        x = boxes[node.inputs[0]]
        reach, count = magnitude(x), 0
        before = self._producers.get(node.inputs[0])
        if isinstance(before, Affine):
            weight = self.params[before.weight].abs()
            bias = weight.new_zeros(len(weight)) if before.bias is None else self.params[before.bias].abs()
            reach = torch.maximum(reach, forward(before, weight, magnitude(boxes[before.inputs[0]])) + per_output(before, bias))
            count = weight[0].numel()
        factor, _ = channel_affine(node, self.params)
        shift = self.params[node.bias].abs() + (self.params[node.mean] * factor).abs()
        size = reach * per_channel(factor.abs(), reach) + per_channel(shift, reach)
        lost = (count + ROUNDINGS) * FLOOR * (1 + per_channel(factor.abs(), reach))
        error = gamma(count + ROUNDINGS, UNIT) * size + lost
        return torch.where(size * 1.02 < LARGEST["fp32"], error, torch.inf)
