"""The live certificate of an int8 network executed in numpy: integers in int64, and the float32 operations of model.int8.c one by one.

It shares with the C the list of steps, the constants, and where the last layer's inputs lie, which decides the order of its sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Relu, Reshape
from vsparse.graph.operators.quantised import FakeQuant
from vsparse.stages.export.c_int8.fusion import Step, grids_of, steps_of
from vsparse.stages.export.c_int8.simulation import products, simulate_integers, window_sums
from vsparse.stages.export.c_live.constants import ENLARGE, FLOOR, LOWER, WIDER
from vsparse.stages.export.c_live.int8_constants import (
    STEP,
    is_refined,
    last_step,
    of_addition,
    of_average,
    of_chain,
    of_margin_int8,
    of_one_sum,
    of_sum,
    require_live_int8,
)
from vsparse.stages.export.c_live.simulation import UNKNOWN, Verdicts, found_radii
from vsparse.stages.export.c_source.layers import bias_of

_Array = NDArray[np.float32]
_Integers = NDArray[np.int64]
# The ends in steps of a grid, int64, or centre and radius in float32.
_Pair = tuple[NDArray[np.float32] | _Integers, NDArray[np.float32] | _Integers]


@dataclass(frozen=True)
class BeforeGrid:
    """What a step rounds to its grid, in steps of it: ends [n, …], magnitudes up to `size`, and the `error` by which they move outward."""

    least: _Array
    most: _Array
    size: _Array
    error: _Array


def simulate_live_int8(graph: Graph, inputs: _Array, epsilon: float, data_range: tuple[float, float] = (0.0, 1.0)) -> Verdicts:
    """Returns the verdicts on float32 inputs [n, *input_shape] for one radius, as model.int8.c gives them."""
    x = np.ascontiguousarray(inputs, np.float32)
    logits = simulate_integers(graph, np.nan_to_num(x))
    classes = np.where(np.isfinite(x).reshape(len(x), -1).all(axis=1) & np.isfinite(logits).all(axis=1), np.argmax(logits, axis=1), -1)
    rows, tried, margin = _tried(graph, x, np.float32(epsilon), data_range)
    if rows is not None:
        other = ~(margin > 0) & (tried >= 0) & (classes >= 0) & (classes != tried)
        margin = np.where(other, rows.margins(classes), margin)
    label = np.where(margin > 0, np.where((tried >= 0), tried, classes), classes)
    return Verdicts(label, (label >= 0) & (margin > 0), np.where(label >= 0, margin, UNKNOWN).astype(np.float32))


def simulate_radius_int8(graph: Graph, inputs: _Array, data_range: tuple[float, float] = (0.0, 1.0)) -> _Array:
    """Returns the radius [n] that NAME_int8_radius finds for each input."""
    return found_radii(inputs, data_range, lambda one, tried: bool(_tried(graph, one, tried, data_range)[2][0] > 0))


def _tried(
    graph: Graph, x: _Array, epsilon: np.float32, data_range: tuple[float, float]
) -> tuple[LogitRows | None, NDArray[np.int64], _Array]:
    """Returns the rows (None for a radius that is none), the labels of the centres, −1 for an input beyond its range, and their margins."""
    require_live_int8(graph, data_range)
    if not 0 <= epsilon <= np.float32(data_range[1]) - np.float32(data_range[0]):
        return None, np.full(len(x), -1), np.full(len(x), UNKNOWN, np.float32)
    boxes, beyond = bounds_int8(graph, x, epsilon, data_range)
    rows = LogitRows(graph, boxes)
    tried = np.where(beyond, -1, rows.label())
    return rows, tried, np.where(beyond, UNKNOWN, rows.margins(tried))


def bounds_int8(
    graph: Graph, x: _Array, epsilon: np.float32, data_range: tuple[float, float], before: dict[str, BeforeGrid] | None = None
) -> tuple[dict[str, _Pair], NDArray[np.bool_]]:
    """Returns the bounds [n, …] of every activation but the logits, and which inputs leave the data range.

    `before` is filled with what is rounded to a grid, by the name of the step.
    """
    grids, last = grids_of(graph), last_step(graph)
    low, high = (np.float32(end) for end in data_range)
    beyond = np.asarray(~((x >= low) & (x <= high)).reshape(len(x), -1).all(axis=1))
    boxes: dict[str, _Pair] = {}
    with np.errstate(all="ignore"):
        for step in steps_of(graph):
            if step.result == last.result:
                break
            if step.head is None:
                boxes[step.result] = _input(graph, step, np.clip(np.nan_to_num(x), low, high), epsilon, data_range)
            else:
                read, own = [boxes[name] for name in step.inputs], [grids[name] for name in step.inputs]
                boxes[step.result] = _step(graph, step, read, own, {} if before is None else before)
    return boxes, beyond


def _input(graph: Graph, step: Step, x: _Array, epsilon: np.float32, data_range: tuple[float, float]) -> _Pair:
    more, chain, error = of_chain(graph, step, data_range)
    low, high = np.maximum(x - epsilon, np.float32(data_range[0])), np.minimum(x + epsilon, np.float32(data_range[1]))
    if more:
        low, high = low - more, high + more
    for one in chain:
        if isinstance(one.node, Relu):
            low, high = np.maximum(low, np.float32(0)), np.maximum(high, np.float32(0))
        elif isinstance(one.node, AddConstant):
            value = graph.params[one.node.constant]
            low, high = low + value - one.error, high + value + one.error
        else:
            assert isinstance(one.node, MulConstant)
            a, b = low * graph.params[one.node.constant], high * graph.params[one.node.constant]
            low, high = np.minimum(a, b) - one.error, np.maximum(a, b) + one.error
    assert step.grid is not None
    inverse = np.float32(1) / np.float32(step.grid.scale)
    return _enclosed(step.grid, step.grid.steps[0], low * inverse - error, high * inverse + error)


def _enclosed(grid: FakeQuant, least: int, low: _Array, high: _Array) -> _Pair:
    """Returns two values in units of the grid as its steps."""
    first, last = np.float32(least), np.float32(grid.steps[1])
    return np.rint(np.clip(low, first, last)).astype(np.int64), np.rint(np.clip(high, first, last)).astype(np.int64)


def _step(graph: Graph, step: Step, read: list[_Pair], own: list[FakeQuant | None], before: dict[str, BeforeGrid]) -> _Pair:
    head, grid, source = step.head, step.grid, own[0]
    if isinstance(head, Reshape):
        return tuple(one.reshape(len(one), *head.shape) for one in read[0])  # type: ignore[return-value]
    assert source is not None
    low, high = (np.asarray(one, np.int64) for one in read[0])
    if isinstance(head, Relu):
        return np.maximum(low, 0), np.maximum(high, 0)
    if isinstance(head, MaxPool):
        return _pooled(head, low), _pooled(head, high)
    if isinstance(head, Add):
        assert grid is not None
        error = of_addition(step, [one for one in own if one is not None])
        terms = [
            [pair[end].astype(np.float32) * (np.float32(of.scale) / np.float32(grid.scale)) for end in range(2)]
            for pair, of in zip(read, own, strict=True)
            if of is not None
        ]
        middle = [a + b for a, b in zip(*terms, strict=True)]
        size = np.asarray(np.maximum(-terms[0][0], terms[0][1]) + np.maximum(-terms[1][0], terms[1][1]), np.float32)
    else:
        if isinstance(head, AveragePool):
            assert grid is not None
            factor = np.asarray(np.float32(source.scale) / np.float32(prod(head.kernel)) / np.float32(grid.scale))
            totals, error = [window_sums(head, one) for one in (low, high)], of_average(step, source)
        else:
            assert isinstance(head, Conv | Gemm)
            totals, error = _totals(graph, head, low, high), of_sum(graph, step, source)
            scale = np.broadcast_to(graph.integers[head.weight].scale, (head.shape[0],))
            factor = (np.float32(source.scale) * scale).astype(np.float32).reshape(-1, *[1] * (len(head.shape) - 1))
            factor = factor if grid is None else factor / np.float32(grid.scale)
            if is_refined(graph, step, source):
                whole = products(graph, head, np.maximum(high, -low), magnitudes=True) + np.abs(products(graph, head, 0 * low))
                error = np.minimum(error, whole.astype(np.float32) * factor * of_one_sum(graph, head) + np.float32(STEP))
        middle = [one.astype(np.float32) * factor for one in totals]
        size = np.asarray(np.maximum(-middle[0], middle[1]), np.float32)
    ends = [one + np.float32(sign) * error for one, sign in zip(middle, (-1, 1), strict=True)]
    before[step.result] = BeforeGrid(middle[0], middle[1], size, np.broadcast_to(error, middle[0].shape))
    if grid is not None:
        return _enclosed(grid, max(grid.steps[0], 0) if step.has_relu else grid.steps[0], *ends)
    below, above = (np.maximum(one, np.float32(0)) if step.has_relu else one for one in ends)
    centre = np.float32(0.5) * (below + above)
    return centre, np.maximum(above - centre, centre - below) * np.float32(WIDER) + np.float32(FLOOR)


def _totals(graph: Graph, node: Conv | Gemm, low: _Integers, high: _Integers) -> list[_Integers]:
    """Returns the exact ends of a sum."""
    middle, spread = products(graph, node, low + high), products(graph, node, high - low, magnitudes=True)
    # The bias is in `middle` once, and the ends are halves of sums.
    bias = products(graph, node, 0 * low)
    return [(middle + bias - spread) // 2, (middle + bias + spread) // 2]


def _pooled(node: MaxPool, x: _Integers) -> _Integers:
    top, left, bottom, right = node.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-(2**20))
    windows = np.lib.stride_tricks.sliding_window_view(padded, node.kernel, axis=(2, 3))[:, :, :: node.stride[0], :: node.stride[1]]
    return np.asarray(windows.max(axis=(-2, -1)))[:, :, : node.shape[1], : node.shape[2]]


class LogitRows:
    """The rows of the last layer and what they read, in the order in which the C adds."""

    def __init__(self, graph: Graph, boxes: dict[str, _Pair]) -> None:
        step, grids = last_step(graph), grids_of(graph)
        node, grid = step.head, grids[step.inputs[0]]
        assert isinstance(node, Gemm)
        order = np.arange(graph.params[node.weight].shape[1])
        if grid is None:
            self.weight, self.bias = graph.params[node.weight], bias_of(graph, node)
        else:
            stored = graph.integers[node.weight]
            factor = (np.float32(grid.scale) * np.broadcast_to(stored.scale, (node.shape[0],))).astype(np.float32)
            self.weight = factor[:, None] * stored.values.astype(np.float32)
            bias = np.zeros(node.shape[0], np.int64) if node.bias is None else graph.integers[node.bias].values
            self.bias = factor * bias.astype(np.int32).astype(np.float32)
            order = _order(graph, step.inputs[0])
        self.weight = self.weight[:, order]
        c, r = boxes[step.inputs[0]]
        half = np.float32(0.5)
        if grid is not None:
            ends = [one.astype(np.float32) for one in _totals(graph, node, np.asarray(c, np.int64), np.asarray(r, np.int64))]
            self.scores = (ends[0] + ends[1]) * (factor * half)
            c, r = (c + r).astype(np.float32) * half, (r - c).astype(np.float32) * half
        self.c, self.r = (np.asarray(one.reshape(len(one), -1)[:, order], np.float32) for one in (c, r))
        self.big = of_margin_int8(len(order))
        if grid is None:
            self.scores = np.broadcast_to(self.bias, (len(self.c), len(self.bias))).astype(np.float32)
            for k in range(self.weight.shape[1]):
                self.scores = self.scores + self.weight[:, k] * self.c[:, k, None]

    def label(self) -> NDArray[np.int64]:
        """Returns the first largest logit of the centre [n]."""
        return np.asarray(np.argmax(self.scores, axis=1), np.int64)

    def margins(self, label: NDArray[np.int64]) -> _Array:
        """Returns lower bounds [n] of the logit of a label minus any other."""
        least, m, index = np.full(len(label), -UNKNOWN, np.float32), np.abs(self.c) + self.r, np.arange(len(label))
        own = self.weight[label]
        reach = np.abs(self.weight).max(axis=0)
        size = np.full(len(label), np.abs(self.bias).max(initial=0), np.float32)
        for k in range(own.shape[1]):
            size = size + reach[k] * m[:, k]
        for i in range(len(self.bias)):
            total, spread = self.scores[index, label] - self.scores[:, i], np.zeros(len(label), np.float32)
            for k in range(own.shape[1]):
                spread = spread + np.abs(own[:, k] - self.weight[i, k]) * self.r[:, k]
            error = spread + self.big * size
            margin = total - (error + np.float32(FLOOR)) * np.float32(ENLARGE)
            margin = margin - np.abs(margin) * np.float32(LOWER)
            least = np.where((i != label) & (margin < least), margin, least)
        return least


def _order(graph: Graph, name: str) -> NDArray[np.int64]:
    """Returns the elements of a flat activation in the order in which they lie: channels last where it is a reshaped map."""
    nodes = {node.name: node for node in graph.nodes}
    shape = graph.shape_of(name)
    while isinstance(nodes.get(name), Reshape):
        name = nodes[name].inputs[0]
        shape = graph.shape_of(name)
    index = np.arange(prod(shape)).reshape(shape)
    return np.asarray((index.transpose(1, 2, 0) if len(shape) == 3 else index).reshape(-1))
