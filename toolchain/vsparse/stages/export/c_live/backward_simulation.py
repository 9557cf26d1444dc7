"""The second tier executed in numpy: the float32 operations of `NAME_certify_budget`, one after the other, where nothing is fused.

It shares the plan and its constants with the C; each operation is written again.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu
from vsparse.stages.export.c_live.backward_plan import (
    HALF,
    LANES,
    ONE_ROUNDING,
    UP,
    cost_of,
    grid_of,
    of_constant,
    of_end,
    of_pool,
    plan_of,
    spare_of,
    total_of,
)
from vsparse.stages.export.c_live.constants import ENLARGE, FLOOR, LOWER, require_live_form
from vsparse.stages.export.c_live.simulation import UNKNOWN, Verdicts, bounds, radius_of, simulate_live
from vsparse.stages.export.c_source.layers import FOUR, bias_of, fours_of, singles_of
from vsparse.stages.export.c_source.lives import lives_of

_Array = NDArray[np.float32]
_F = np.float32


def simulate_budget(graph: Graph, inputs: _Array, epsilon: float, budget: int, data_range: tuple[float, float] = (0.0, 1.0)) -> Verdicts:
    """Returns the verdicts on float32 inputs [n, *input_shape] as NAME_certify_budget gives them; InputError as `emit_live_c`."""
    x = np.ascontiguousarray(inputs, np.float32)
    first = simulate_live(graph, x, epsilon, data_range)
    require_live_form(graph, data_range)
    if budget <= 0:
        return first
    label, margin = first.label.copy(), first.margin.copy()
    open_ = ~first.certified & (label >= 0) & (margin > UNKNOWN)
    width = np.float32(data_range[1]) - np.float32(data_range[0])
    if not 0 <= np.float32(epsilon) <= width:
        open_[:] = False
    for i in np.flatnonzero(open_):
        kept = Kept(graph, x[i : i + 1], np.float32(epsilon), data_range)
        margin[i] = max(margin[i], kept.margin(int(label[i]), budget)) if kept.within else margin[i]
    return Verdicts(label, (label >= 0) & (margin > 0), margin)


class Kept:
    """What the interval pass keeps of inputs [n, …] for backward passes."""

    def __init__(self, graph: Graph, x: _Array, epsilon: np.float32, data_range: tuple[float, float]) -> None:
        self.graph, self.plan = graph, plan_of(graph)
        before: dict[str, tuple[_Array, _Array]] = {}
        with np.errstate(all="ignore"):
            boxes, beyond = bounds(graph, x, epsilon, data_range, before)
            self.within = not beyond.any()
            self.count = len(x)
            self.arrays: dict[str, _Array] = {}
            relu = {later: name for name, later in lives_of(graph).relu.items()}
            for name in self.plan.ends:
                c, r = boxes[name]
                self.arrays[f"c {name}"], self.arrays[f"r {name}"] = c, r + of_end(self.plan.size_of(name)) * (np.abs(c) + r)
            for name in self.plan.joins:
                c, r = boxes[name]
                self.arrays[f"join {name}"] = (np.abs(c) + r) * _F(ONE_ROUNDING) + _F(FLOOR)
            for node in self.plan.walk:
                if isinstance(node, Relu):
                    slope, offset = _slopes(*before[relu.get(node.name, node.name)], spare_of(node.size))
                    self.arrays[f"slope {node.name}"], self.arrays[f"offset {node.name}"] = slope, offset
                elif isinstance(node, MaxPool):
                    self._pool(node, *boxes[node.inputs[0]])
                else:
                    self.arrays[f"cost {node.name}"] = self._cost(node, [np.abs(boxes[n][0]) + boxes[n][1] for n in node.inputs])

    def _cost(self, node: Node, m: list[_Array]) -> _Array:
        if isinstance(node, Conv | Gemm | AveragePool):
            factor, constant = cost_of(self.graph, node)
            return np.asarray(radius_of(self.graph, node, m) * factor + constant, np.float32)
        if isinstance(node, Add):
            return np.asarray((m[0] + m[1]) * _F(ONE_ROUNDING) + _F(FLOOR), np.float32)
        if isinstance(node, AddConstant):
            value = np.abs(self.graph.params[node.constant])
            return np.asarray(m[0] * _F(ONE_ROUNDING) + value * of_constant(node) + _F(FLOOR), np.float32)
        assert isinstance(node, MulConstant)
        value = np.abs(self.graph.params[node.constant]) * _F(2 * ONE_ROUNDING)
        return np.asarray(m[0] * value + _F(FLOOR), np.float32)

    def _pool(self, node: MaxPool, c: _Array, r: _Array) -> None:
        """Keeps of each window the element with the highest lower end, as −1 − index where it is the largest, and the highest end."""
        channels, height, width = self.graph.shape_of(node.inputs[0])
        c, r = c.reshape(self.count, channels, height, width), r.reshape(self.count, channels, height, width)
        best, top, cost = (np.zeros((self.count, *node.shape), np.float32) for _ in range(3))
        least = _F(0) if self.plan.is_relu(node.inputs[0]) else _F(-np.inf)
        grow, share = of_end(node.size), of_pool(self.graph, node)
        for s, o, i, j in np.ndindex(self.count, *node.shape):
            y, x = i * node.stride[0] - node.pads[0], j * node.stride[1] - node.pads[1]
            rows, columns = range(max(y, 0), min(y + node.kernel[0], height)), range(max(x, 0), min(x + node.kernel[1], width))
            places = [(o, row, column) for row in rows for column in columns]
            low = [max(c[s, *at] - r[s, *at], least) for at in places]
            high = [c[s, *at] + r[s, *at] for at in places]
            k = int(np.argmax(low))
            index = int(np.ravel_multi_index(places[k], (channels, height, width)))
            surely = all(low[k] >= other for m, other in enumerate(high) if m != k)
            best[s, o, i, j] = -1 - index if surely else index
            top[s, o, i, j] = max(high) + np.abs(max(high)) * grow + _F(FLOOR)
            cost[s, o, i, j] = (np.abs(c[s, *places[k]]) + r[s, *places[k]]) * share + _F(FLOOR)
        for kind, value in (("best", best), ("top", top), ("cost", cost)):
            self.arrays[f"{kind} {node.name}"] = value

    def flat(self, name: str) -> _Array:
        """Returns a kept array [n, elements]."""
        return self.arrays[name].reshape(self.count, -1)

    def margin(self, label: int, budget: int) -> np.float32:
        """Returns the lower bound of the margin of one input: intervals at the stop, then passes for at most `budget` open ones."""
        classes = self.plan.size_of(self.graph.output)
        with np.errstate(all="ignore"):
            found = np.array([np.inf if i == label else Pass(self, label, i).bound(whole=False) for i in range(classes)], np.float32)
            open_ = int((~(found > 0)).sum())
            if open_ <= budget:
                while not found.min() > 0:
                    at = int(found.argmin())
                    value = Pass(self, label, at).bound(whole=True)
                    found[at] = max(value, found[at])
                    if not value > 0:
                        break
        return _F(found.min())


class Pass:
    """One backward pass for one margin of one input."""

    def __init__(self, kept: Kept, label: int, other: int) -> None:
        self.kept, self.plan, self.graph = kept, kept.plan, kept.graph
        self.sum, self.size = _F(0), _F(0)
        output = self.plan.key(self.graph.output)
        start = np.zeros(self.plan.size_of(output), np.float32)
        start[label], start[other] = 1, -1
        self.coefficients: dict[str, _Array] = {output: start}

    def bound(self, whole: bool) -> np.float32:
        """Returns the lower bound at the stop, or where `whole` is set at the input."""
        for node in self.plan.walk[: self.plan.head]:
            self._step(node)
        if not whole:
            self._end(self.plan.stop)
            return self._total()
        for node in self.plan.walk[self.plan.head :]:
            self._step(node)
        for name in self.plan.ends:
            if name in self.coefficients:
                self._end(name)
        return self._total()

    def _total(self) -> np.float32:
        factor, constant = total_of(self.plan)
        margin = self.sum - (self.size * factor + constant) * _F(ENLARGE)
        margin = margin - np.abs(margin) * _F(LOWER)
        return _F(margin) if -np.inf < margin < np.inf else UNKNOWN

    def _end(self, name: str) -> None:
        a, c, r = self.coefficients.pop(name), self.kept.flat(f"c {name}")[0], self.kept.flat(f"r {name}")[0]
        self._add(lane_sum(a * c - np.abs(a) * r))

    def _add(self, part: np.float32) -> None:
        self.sum, self.size = self.sum + part, self.size + np.abs(part)

    def _step(self, node: Node) -> None:
        a = self.coefficients.pop(node.name)
        if isinstance(node, Relu):
            slope, offset = self.kept.flat(f"slope {node.name}")[0], self.kept.flat(f"offset {node.name}")[0]
            below = a < 0
            self._add(-lane_sum(a * np.where(below, -offset, _F(FLOOR))))
            self._pass_on(node.inputs[0], a * np.where(below, slope, np.where(slope > _F(HALF), _F(1), _F(0))))
            return
        self._add(-lane_sum(np.abs(a) * self.kept.flat(f"cost {node.name}")[0]))
        if isinstance(node, Conv | Gemm):
            self._bias(node, a)
            back = _transposed_gemm(self.graph.params[node.weight], a) if isinstance(node, Gemm) else _transposed_conv(self.graph, node, a)
            self._pass_on(node.inputs[0], back)
        elif isinstance(node, MaxPool):
            self._pool(node, a)
        elif isinstance(node, AveragePool):
            self._pass_on(node.inputs[0], _spread(self.graph.shape_of(node.inputs[0]), node, a))
        elif isinstance(node, MulConstant):
            self._pass_on(node.inputs[0], a * self._constant(node))
        else:
            if isinstance(node, AddConstant):
                self._add(lane_sum(a * self._constant(node)))
            for name in node.inputs:
                self._pass_on(name, a)

    def _pool(self, node: MaxPool, a: _Array) -> None:
        best, top = (self.kept.flat(f"{kind} {node.name}")[0] for kind in ("best", "top"))
        above = (a < 0) & (best >= 0)
        self._add(lane_sum(np.where(above, a * top, _F(0))))
        back = np.zeros(self.plan.size_of(node.inputs[0]), np.float32)
        for i in np.flatnonzero(~above):
            at = int(best[i] if best[i] >= 0 else -1 - best[i])
            back[at] = back[at] + a[i]
        self._pass_on(node.inputs[0], back)

    def _constant(self, node: AddConstant | MulConstant) -> _Array:
        return np.broadcast_to(self.graph.params[node.constant], node.shape).reshape(-1)

    def _bias(self, node: Conv | Gemm, a: _Array) -> None:
        if node.bias is None:
            return
        bias = bias_of(self.graph, node)
        positions = a.size // len(bias)
        if positions == 1:
            self._add(lane_sum(a * bias))
            return
        total = _F(0)
        for o in range(len(bias)):
            total = total + bias[o] * lane_sum(a[o * positions : (o + 1) * positions])
        self._add(total)

    def _pass_on(self, name: str, a: _Array) -> None:
        name = self.plan.key(name)
        if name not in self.coefficients:
            self.coefficients[name] = a
            return
        self.coefficients[name] = self.coefficients[name] + a
        self._add(-lane_sum(np.abs(self.coefficients[name]) * self.kept.flat(f"join {name}")[0]))


def lane_sum(terms: _Array) -> np.float32:
    """Returns the sum of float32 terms [n] in eight lanes, added as a tree."""
    filled = np.zeros(-(-terms.size // LANES) * LANES, np.float32)
    filled[: terms.size] = terms
    s = np.zeros(LANES, np.float32)
    for row in filled.reshape(-1, LANES):
        s = s + row
    return cast(np.float32, ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])))


def _slopes(c: _Array, t: _Array, spare: np.float32) -> tuple[_Array, _Array]:
    slope = np.asarray((c + t) / (t + t) * _F(UP) + _F(FLOOR), np.float32)
    offset = np.asarray((t - c) * slope * spare + _F(FLOOR), np.float32)
    dead, active = c <= -t, c >= t
    slope = np.where(dead, _F(0), np.where(active, _F(1), slope))
    return slope, np.where(dead | active, _F(FLOOR), offset)


def _transposed_gemm(weight: _Array, a: _Array) -> _Array:
    back = np.zeros(weight.shape[1], np.float32)
    for i in range(len(weight)):
        back = back + weight[i] * a[i]
    return back


def _transposed_conv(graph: Graph, node: Conv, a: _Array) -> _Array:
    weight, grid = graph.params[node.weight], grid_of(graph, node)
    out, channels, kh, kw = weight.shape
    (_, height, width), (sy, sx), (all_channels, rows, columns) = node.shape, node.stride, graph.shape_of(node.inputs[0])
    wide = np.zeros((out, height, grid.pitch), np.float32)
    wide[:, :, :width] = a.reshape(node.shape)
    wide = wide.reshape(out, -1)[:, : grid.run]
    found = np.zeros((all_channels, grid.step), np.float32)
    per_group, fours = out // node.groups, fours_of(graph, node)
    quads = [list(range(g * per_group + FOUR * i, g * per_group + FOUR * i + FOUR)) for g in range(node.groups) for i in range(fours)]
    for rows_of in [*quads, *([o] for o in singles_of(graph, node).tolist())]:
        first = rows_of[0] // per_group * channels
        for k in range(kh * kw):
            at = int(grid.offsets[k])
            part = found[first : first + channels, at : at + grid.run]
            for o in rows_of:
                part = part + weight[o].reshape(channels, -1)[:, k, None] * wide[o]
            found[first : first + channels, at : at + grid.run] = part
    planes = found.reshape(all_channels, sy, sx, grid.rows, grid.pitch).transpose(0, 3, 1, 4, 2)
    padded = np.zeros((all_channels, node.pads[0] + rows, node.pads[1] + columns), np.float32)
    whole = planes.reshape(all_channels, grid.rows * sy, grid.pitch * sx)[:, : padded.shape[1], : padded.shape[2]]
    padded[:, : whole.shape[1], : whole.shape[2]] = whole
    return padded[:, node.pads[0] :, node.pads[1] :].reshape(-1)


def _spread(shape: tuple[int, ...], node: AveragePool, a: _Array) -> _Array:
    """Returns the coefficients of the input of an average: windows in order, so that an element meets its last place in one first."""
    value = (a * (_F(1) / _F(node.kernel[0] * node.kernel[1]))).reshape(node.shape)
    found = np.zeros(shape, np.float32)
    _, height, width = node.shape
    for y in reversed(range(node.kernel[0])):
        for x in reversed(range(node.kernel[1])):
            rows = slice(y, y + (height - 1) * node.stride[0] + 1, node.stride[0])
            columns = slice(x, x + (width - 1) * node.stride[1] + 1, node.stride[1])
            found[:, rows, columns] += value
    return found.reshape(-1)
