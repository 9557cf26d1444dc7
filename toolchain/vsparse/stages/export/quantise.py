"""Eight-bit networks: ranges from calibration, 7-bit symmetric weights for each channel, int32 biases (docs/numerics.md).

The scheme is that of Jacob et al., arXiv 1712.05877, section 2, with the weights one bit short so that no x86 kernel saturates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.graph import Graph, run, validate
from vsparse.graph.ir import Add, Affine, AveragePool, FakeQuant, Integers, MaxPool, Node, Reshape, Slice, Transpose
from vsparse.graph.quantised import MAX_WEIGHT, SMALLEST_BEHIND_CLIP, check_integer_execution, is_quantised, moved_grid

BATCH = 64
# Far from where a product of scales could underflow; only a channel that is nearly dead comes near.
SMALLEST_SCALE = 2.0**-30
# A bias above this many steps makes its channel's steps larger; int32 keeps seven bits in reserve for the sum.
LARGEST_BIAS = 2.0**24

_ON_INTEGERS = Affine | Add | AveragePool
_MOVES = MaxPool | Reshape | Transpose | Slice


def quantise(graph: Graph, samples: NDArray[np.float32]) -> Graph:
    """Returns the graph with its affine operators, additions and averages on quantised inputs, and the logits in float32.

    `samples` float32 [n, *input_shape] calibrate: each activation's range is that of its values on them, zero included. Weights that are
    zero stay zero. Raises InputError for a graph that is quantised already, has an infinite activation, or that integers cannot execute.
    """
    if is_quantised(graph) or graph.storage != "fp32":
        raise InputError("the network is quantised or in half precision already; quantise the float32 one")
    ranges = _ranges(graph, samples)
    builder = _Builder(graph, ranges)
    for node in graph.nodes:
        builder.add(node)
    made = validate(builder.graph())
    check_integer_execution(made)
    return made


def _ranges(graph: Graph, samples: NDArray[np.float32]) -> dict[str, tuple[float, float]]:
    """Returns the least and the greatest value of each activation on the samples."""
    params = graph.tensors()
    found: dict[str, tuple[float, float]] = {}
    with torch.no_grad():
        for start in range(0, len(samples), BATCH):
            for name, value in run(graph, params, torch.from_numpy(samples[start : start + BATCH]), keep=True).items():
                least, most = float(value.min()), float(value.max())
                before = found.get(name, (least, most))
                found[name] = min(before[0], least), max(before[1], most)
    if not found or not all(np.isfinite(ends).all() for ends in found.values()):
        raise InputError("calibration needs samples, on which every activation is finite; give training samples")
    return found


class _Builder:
    """Copies a graph node by node; quantises what operators on integers are about to read."""

    def __init__(self, graph: Graph, ranges: dict[str, tuple[float, float]]) -> None:
        self.source, self.ranges = graph, ranges
        self.nodes: list[Node] = []
        self.params = dict(graph.params)
        self.integers: dict[str, Integers] = {}
        self.grids: dict[str, FakeQuant | None] = {}
        self.quantised: dict[str, str] = {}
        self.wanted = _wanted(graph)
        self.constants = {name for node in graph.nodes if not isinstance(node, Affine) for name in node.params}

    def add(self, node: Node) -> None:
        """Appends a node, on quantised inputs where it computes or moves integers."""
        if isinstance(node, _ON_INTEGERS) or (isinstance(node, _MOVES) and node.name in self.wanted):
            node = replace(node, inputs=tuple(self._quantised(name) for name in node.inputs))
        if isinstance(node, Affine):
            node = self._affine(node)
        self.nodes.append(node)
        self.grids[node.name] = moved_grid(node, self.grids)

    def graph(self) -> Graph:
        """Returns what has been built."""
        used = {name for node in self.nodes for name in node.params}
        params = {name: value for name, value in self.params.items() if name in used}
        return replace(self.source, nodes=tuple(self.nodes), params=params, integers=self.integers)

    def _quantised(self, name: str) -> str:
        if self.grids.get(name) is not None:
            return name
        if name not in self.quantised:
            least, most = min(0.0, self.ranges[name][0]), max(0.0, self.ranges[name][1])
            # An activation that is always zero gets the steps of one from 0 to 1: tiny ones would leave no room for the biases.
            scale = float(np.float32(max((most - least) / 255, SMALLEST_BEHIND_CLIP) if most > least else 1 / 255))
            zero_point = int(np.clip(np.rint(-least / scale), 0, 255))
            shape = self.source.shape_of(name)
            free = self._free(f"{name}.int8", lambda one: one in self.grids or one in self.ranges)
            node = FakeQuant(name=free, inputs=(name,), shape=shape, scale=scale, zero_point=zero_point, lowest=0, highest=255)
            self.nodes.append(node)
            self.grids[node.name] = node
            self.quantised[name] = node.name
        return self.quantised[name]

    def _affine(self, node: Affine) -> Affine:
        grid = self.grids[node.inputs[0]]
        assert grid is not None
        weight = self.source.params[node.weight].astype(np.float64)
        flat = np.abs(weight).reshape(len(weight), -1)
        scale = np.maximum(flat.max(axis=1, initial=0) / MAX_WEIGHT, SMALLEST_SCALE)
        bias = None if node.bias is None else self.source.params[node.bias].astype(np.float64)
        if bias is not None:
            scale = np.maximum(scale, np.abs(bias) / (grid.scale * LARGEST_BIAS))
        scale32 = scale.astype(np.float32)
        steps = np.rint(weight / scale32.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1)))
        name = self._store(node.weight, Integers(np.clip(steps, -MAX_WEIGHT, MAX_WEIGHT).astype(np.int8), scale32))
        if bias is None or node.bias is None:
            return replace(node, weight=name)
        bias_scale = (np.float32(grid.scale) * scale32).astype(np.float32)
        integers = np.rint(bias / bias_scale.astype(np.float64)).astype(np.int32)
        return replace(node, weight=name, bias=self._store(node.bias, Integers(integers, bias_scale)))

    def _store(self, name: str, integers: Integers) -> str:
        # A parameter that several nodes read is quantised for each of them, as their inputs have different scales.
        free = self._free(name, lambda one: one in self.integers or one in self.constants)
        self.integers[free], self.params[free] = integers, integers.floats()
        return free

    @staticmethod
    def _free(name: str, taken: Callable[[str], bool]) -> str:
        candidate, count = name, 1
        while taken(candidate):
            count += 1
            candidate = f"{name}_{count}"
        return candidate


def _wanted(graph: Graph) -> set[str]:
    """Returns the activations that an operator on integers reads, through operators that move values or at once."""
    wanted: set[str] = set()
    for node in reversed(graph.nodes):
        if isinstance(node, _ON_INTEGERS) or (isinstance(node, _MOVES) and node.name in wanted):
            wanted.update(node.inputs)
    return wanted
