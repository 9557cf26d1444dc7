"""The live certificate executed in numpy: the float32 operations of model.c, one after the other, where nothing is fused.

It shares the constants with the C, and with the simulation of the inference what an operator computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import AddConstant, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu
from vsparse.stages.export.c_live.constants import (
    CONSTANT,
    ENLARGE,
    FLOOR,
    HALF_UP,
    LIMIT,
    LOWER,
    WIDER,
    folded,
    growth,
    of_input,
    of_margin,
    require_live_form,
    spread,
)
from vsparse.stages.export.c_source.layers import bias_of
from vsparse.stages.export.c_source.lives import lives_of
from vsparse.stages.export.c_source.simulation import execute, simulate

UNKNOWN = np.float32(-np.finfo(np.float32).max)
_Array = NDArray[np.float32]
_Pair = tuple[_Array, _Array]


@dataclass(frozen=True)
class Verdicts:
    """Of n inputs: `label` int64 [n] (−1: a logit is not finite), `certified` bool [n], `margin` float32 [n], as NAME_certify."""

    label: NDArray[np.int64]
    certified: NDArray[np.bool_]
    margin: _Array


def simulate_live(graph: Graph, inputs: _Array, epsilon: float, data_range: tuple[float, float] = (0.0, 1.0)) -> Verdicts:
    """Returns the verdicts on float32 inputs [n, *input_shape] for one radius, as model.c gives them; InputError as `emit_live_c`."""
    x = np.ascontiguousarray(inputs, np.float32)
    logits = simulate(graph, x)[graph.output].reshape(len(x), -1)
    finite = np.isfinite(logits).all(axis=1)
    classes = np.where(finite, np.argmax(logits, axis=1), -1)
    tried, margin = _tried(graph, x, np.float32(epsilon), data_range)
    own = margin > 0
    other = ~own & (tried >= 0) & (classes >= 0) & (classes != tried)
    if other.any():
        boxes, _ = bounds(graph, x[other], np.float32(epsilon), data_range)
        margin[other] = margins(graph, boxes, classes[other])
    label = np.where(own, tried, classes)
    return Verdicts(label, (label >= 0) & (margin > 0), np.where(label >= 0, margin, UNKNOWN))


def simulate_radius(graph: Graph, inputs: _Array, data_range: tuple[float, float] = (0.0, 1.0)) -> _Array:
    """Returns the radius [n] that NAME_radius finds for each input."""
    return found_radii(inputs, data_range, lambda one, tried: bool(_tried(graph, one, tried, data_range)[1][0] > 0))


def found_radii(inputs: _Array, data_range: tuple[float, float], holds: Callable[[_Array, np.float32], bool]) -> _Array:
    """Returns the radius [n] of each input that the search of NAME_radius ends with; `holds` tells of one input [1, …] and a radius."""
    x = np.ascontiguousarray(inputs, np.float32)
    width = np.float32(data_range[1]) - np.float32(data_range[0])
    found = np.full(len(x), -1, np.float32)
    for i in range(len(x)):
        one, least, most = x[i : i + 1], 0, 16
        while most - least > 1:
            middle = (least + most) // 2
            tried = width / np.float32(2**middle)
            if holds(one, tried):
                found[i], most = tried, middle
            else:
                least = middle
        if found[i] < 0:
            found[i] = 0 if holds(one, np.float32(0)) else -1
            continue
        step = found[i]
        for _ in range(5):
            step = step * np.float32(0.5)
            if holds(one, found[i] + step):
                found[i] = found[i] + step
    return found


def _tried(graph: Graph, x: _Array, epsilon: np.float32, data_range: tuple[float, float]) -> tuple[NDArray[np.int64], _Array]:
    """Returns the labels of the centres, −1 where something is beyond the limits, and their margins."""
    require_live_form(graph, data_range)
    unknown = np.full(len(x), UNKNOWN, np.float32)
    if not 0 <= epsilon <= np.float32(data_range[1]) - np.float32(data_range[0]):
        return np.full(len(x), -1), unknown
    boxes, beyond = bounds(graph, x, epsilon, data_range)
    scores = boxes[graph.output][0].reshape(len(x), -1)
    with np.errstate(all="ignore"):
        label = np.zeros(len(x), np.int64)
        for i in range(1, scores.shape[1]):
            label = np.where(scores[:, i] > scores[np.arange(len(x)), label], i, label)
    label[beyond] = -1
    return label, np.where(beyond, unknown, margins(graph, boxes, label))


def bounds(
    graph: Graph, x: _Array, epsilon: np.float32, data_range: tuple[float, float], before: dict[str, _Pair] | None = None
) -> tuple[dict[str, _Pair], NDArray[np.bool_]]:
    """Returns centre and stored radius [n, …] of every activation that is stored, and which inputs go beyond a limit.

    `before` is filled with both as they are before they are settled: without a ReLU, and not enlarged.
    """
    low, high = (np.float32(end) for end in data_range)
    lives = lives_of(graph)
    grows, last = growth(graph, lives), folded(graph)
    beyond: NDArray[np.bool_] = np.zeros(len(x), np.bool_)
    boxes: dict[str, _Pair] = {}

    def settled(name: str, c: _Array, r: _Array, more: float, relu: bool) -> None:
        nonlocal beyond
        t = r + np.float32(more)
        if before is not None:
            before[name] = c, t
        if relu:
            h = (c + t) * np.float32(HALF_UP)
            active, dead = c >= t, c <= -t
            c, t = np.where(dead, np.float32(0), np.where(active, c, h)), np.where(dead, np.float32(0), np.where(active, t, h))
        m = np.abs(c) + t
        beyond = np.asarray(beyond | ~(m <= np.float32(LIMIT)).reshape(len(x), -1).all(axis=1))
        boxes[name] = c, t + grows[lives.roots[name]] * m

    with np.errstate(all="ignore"):
        beyond = np.asarray(~((x >= low) & (x <= high)).reshape(len(x), -1).all(axis=1))
        settled(graph.input, *_ends(np.maximum(x - epsilon, low), np.minimum(x + epsilon, high), of_input(data_range)), 0.0, False)
        swallowed = {relu: name for name, relu in lives.relu.items()}
        for node in graph.nodes:
            if node.name in swallowed:
                boxes[node.name] = boxes[swallowed[node.name]]
                continue
            read = [boxes[name] for name in node.inputs]
            if isinstance(node, MaxPool):
                below, above = (execute(graph, node, [one]) for one in (read[0][0] - read[0][1], read[0][0] + read[0][1]))
                settled(node.name, *_ends(below, above, np.float32(FLOOR)), 0.0, node.name in lives.relu)
                continue
            if isinstance(node, Relu):
                settled(node.name, *read[0], 0.0, True)
                continue
            centre = execute(graph, node, [c for c, _ in read])
            if last is not None and node.name == last.name:
                boxes[node.name] = centre, np.full_like(centre, inf)
            elif type(node).__name__ == "Reshape":
                boxes[node.name] = centre, execute(graph, node, [read[0][1]])
            else:
                more = 0.0 if isinstance(node, Conv | Gemm) else FLOOR
                settled(node.name, centre, radius_of(graph, node, [r for _, r in read]), more, node.name in lives.relu)
    return boxes, beyond


def _ends(low: _Array, high: _Array, more: np.float32) -> _Pair:
    middle = np.float32(0.5) * (low + high)
    return middle, np.maximum(high - middle, middle - low) * np.float32(WIDER) + more


def radius_of(graph: Graph, node: Node, radii: list[_Array]) -> _Array:
    """Returns what an operator makes of the radii of what it reads, but for what settling adds."""
    if isinstance(node, Conv | Gemm):
        name = node.bias or f"{node.name} spread"
        params = {**graph.params, node.weight: np.abs(graph.params[node.weight]), name: spread(graph, node)}
        kind = type(node)
        fields = {key: value for key, value in node.__dict__.items() if key != "bias"}
        return execute(graph.with_params(params), kind(**fields, bias=name), radii)
    if isinstance(node, AddConstant):
        return np.asarray(radii[0] + np.abs(graph.params[node.constant]) * np.float32(CONSTANT), np.float32)
    if isinstance(node, MulConstant):
        return radii[0] * np.abs(graph.params[node.constant])
    return execute(graph, node, radii)


def margins(graph: Graph, boxes: dict[str, _Pair], label: NDArray[np.int64]) -> _Array:
    """Returns the lower bounds [n] of the logit of `label` [n] minus the largest other one."""
    last, index = folded(graph), np.arange(len(label))
    least = np.full(len(label), -UNKNOWN, np.float32)
    c, r = boxes[graph.output if last is None else last.inputs[0]]
    c, r = c.reshape(len(label), -1), r.reshape(len(label), -1)
    with np.errstate(all="ignore"):
        for i in range(boxes[graph.output][0][0].size):
            if last is None:
                own_c, own_r = c[index, label], r[index, label]
                total = own_c - c[:, i]
                error = np.asarray(own_r + r[:, i] + np.float32(CONSTANT) * (np.abs(own_c) + np.abs(c[:, i])), np.float32)
            else:
                scores = boxes[graph.output][0].reshape(len(label), -1)
                total, error = scores[index, label] - scores[:, i], _folded(graph, last, c, r, label, i)
            margin = total - (error + np.float32(FLOOR)) * np.float32(ENLARGE)
            margin = margin - np.abs(margin) * np.float32(LOWER)
            margin = np.where(margin > UNKNOWN, margin, UNKNOWN)
            least = np.where((i != label) & (margin < least), margin, least)
    return least


def _folded(graph: Graph, last: Gemm, c: _Array, r: _Array, label: NDArray[np.int64], other: int) -> _Array:
    weight, bias = graph.params[last.weight], bias_of(graph, last)
    own, m, reach = weight[label], np.abs(c) + r, np.abs(weight).max(axis=0)
    size, width = np.full(len(label), np.abs(bias).max(initial=0), np.float32), np.zeros(len(label), np.float32)
    for k in range(weight.shape[1]):
        size = size + reach[k] * m[:, k]
        width = width + np.abs(own[:, k] - weight[other, k]) * r[:, k]
    return np.asarray(width + of_margin(weight.shape[1]) * size, np.float32)
