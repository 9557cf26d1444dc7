"""The second tier of an int8 network executed in numpy: the float32 operations of `NAME_int8_certify_budget`, where nothing is fused.

It shares with the C the plan and its constants, and where activations lie, which decides the order of sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Add, AveragePool, Conv, Gemm, Graph, MaxPool, Relu, Reshape
from vsparse.stages.export.c_int8.fusion import Step
from vsparse.stages.export.c_int8.place import offsets_of
from vsparse.stages.export.c_int8.program import Int8Program
from vsparse.stages.export.c_int8.sums import layer_of
from vsparse.stages.export.c_live.backward_plan import UP
from vsparse.stages.export.c_live.backward_simulation import lane_sum
from vsparse.stages.export.c_live.constants import ENLARGE, LOWER
from vsparse.stages.export.c_live.int8_constants import STEP
from vsparse.stages.export.c_live.int8_plan import (
    FEW,
    TINY,
    absence_of_second,
    factors_of,
    from_places,
    of_rows,
    of_window,
    share_of,
    spare_of_lanes,
    total_of_integers,
)
from vsparse.stages.export.c_live.int8_simulation import BeforeGrid, LogitRows, bounds_int8, simulate_live_int8
from vsparse.stages.export.c_live.simulation import UNKNOWN, Verdicts

_Array = NDArray[np.float32]
_Integers = NDArray[np.int64]
_F = np.float32


def simulate_budget_int8(
    graph: Graph, inputs: _Array, epsilon: float, budget: int, data_range: tuple[float, float] = (0.0, 1.0)
) -> Verdicts:
    """Returns the verdicts on float32 inputs [n, *input_shape] as NAME_int8_certify_budget gives them; InputError as `emit_live_int8_c`."""
    x = np.ascontiguousarray(inputs, np.float32)
    first = simulate_live_int8(graph, x, epsilon, data_range)
    if budget <= 0 or absence_of_second(graph, data_range):
        return first
    label, margin, width = first.label, first.margin.copy(), _F(data_range[1]) - _F(data_range[0])
    if 0 <= _F(epsilon) <= width:
        for i in np.flatnonzero(~first.certified & (label >= 0)):
            kept = KeptIntegers(graph, x[i : i + 1], _F(epsilon), data_range)
            margin[i] = max(margin[i], kept.margin(int(label[i]), budget)) if kept.within else margin[i]
    return Verdicts(label, (label >= 0) & (margin > 0), margin)


class KeptIntegers:
    """What the interval pass keeps of one input [1, …] for backward passes."""

    def __init__(self, graph: Graph, x: _Array, epsilon: np.float32, data_range: tuple[float, float]) -> None:
        self.graph, self.plan = graph, from_places(graph, data_range)
        self.program, self.arrays = Int8Program(graph, dict(self.plan.stored)), dict[str, _Array]()
        before: dict[str, BeforeGrid] = {}
        with np.errstate(all="ignore"):
            boxes, beyond = bounds_int8(graph, x, epsilon, data_range, before)
            self.within = not beyond.any()
            self.boxes = {name: tuple(np.asarray(one[0], np.int64) for one in pair) for name, pair in boxes.items()}
            for root in (self.plan.stop, *self.plan.ends):
                self.arrays[f"end {root}"] = self._ends(root)
            for step in self.plan.walk:
                if isinstance(step.head, MaxPool):
                    self.arrays[f"best {step.result}"] = self._windows(step, step.head)
                elif not isinstance(step.head, Reshape):
                    self.arrays[f"line {step.result}"] = self._lines(step, before)
        self.rows = LogitRows(graph, boxes)

    def _flat(self, root: str, values: _Array) -> _Array:
        """Returns elements [*shape, k] where they lie, zeros in margins: [size, k]."""
        place = self.plan.stored[root].place
        found = np.zeros((place.size, values.shape[-1]), np.float32)
        found[offsets_of(place)] = values.reshape(-1, values.shape[-1])
        return found

    def _ends(self, root: str) -> _Array:
        low, high = (one.astype(np.float32) for one in self.boxes[root])
        spare = spare_of_lanes(self.plan.size_of(root))
        return self._flat(root, np.stack([low - np.abs(low) * spare, high + np.abs(high) * spare], axis=-1))

    def _lines(self, step: Step, before: dict[str, BeforeGrid]) -> _Array:
        node, share, spare = step.head, share_of(self.plan, step), spare_of_lanes(self.plan.size_of(step.result))
        low, high = self.boxes[step.result]
        m, bias = np.ones(1, np.float32), np.zeros(1, np.float32)
        if isinstance(node, Relu):
            least, most = (one.astype(np.float32) for one in self.boxes[step.inputs[0]])
            size, half = np.maximum(-least, most), np.zeros(1, np.float32)
            back = size * share
        else:
            found = before[step.result]
            least, most, size, half = found.least[0], found.most[0], found.size[0], (_F(0.5) + found.error[0]) * _F(UP)
            back = size * share
            if not isinstance(node, Add):
                shape = (-1, *[1] * (least.ndim - 1))
                m = factors_of(self.plan, step)[0].reshape(shape)
                back = ((found.error[0] - _F(STEP)) + found.error[0] * _F(TINY)) * share
                if isinstance(node, Conv | Gemm) and node.bias is not None:
                    bias = self.graph.integers[node.bias].values.astype(np.int32).astype(np.float32).reshape(shape)
        relu = step.has_relu or isinstance(node, Relu)
        return self._flat(step.result, lines(least, most, size, m, bias, half, back, low, high, spare, relu))

    def _windows(self, step: Step, node: MaxPool) -> _Array:
        source = step.inputs[0]
        (low, high), at = self.boxes[source], offsets_of(self.plan.stored[source].place).reshape(self.boxes[source][0].shape)
        spare, cost = spare_of_lanes(self.plan.size_of(step.result)), of_window(self.plan, step)
        found = np.zeros((*node.shape, 3), np.float32)
        _, height, width = low.shape
        for o, i, j in np.ndindex(*node.shape):
            y, x = i * node.stride[0] - node.pads[0], j * node.stride[1] - node.pads[1]
            rows, columns = range(max(y, 0), min(y + node.kernel[0], height)), range(max(x, 0), min(x + node.kernel[1], width))
            places = [(o, row, column) for row in rows for column in columns]
            best = max(places, key=lambda one: low[one])
            index, top = _F(at[best] + 1), _F(max(high[one] for one in places))
            surely = all(low[best] >= high[one] for one in places if one != best)
            found[o, i, j] = -index if surely else index, top + np.abs(top) * spare, cost
        return self._flat(step.result, found)

    def margin(self, label: int, budget: int) -> np.float32:
        """Returns the lower bound of the margin: intervals at the stop, then passes for at most `budget` open ones."""
        with np.errstate(all="ignore"):
            classes = range(len(self.rows.weight))
            found = np.array([np.inf if i == label else IntegerPass(self, label, i).bound(whole=False) for i in classes], np.float32)
            if int((~(found > 0)).sum()) <= budget:
                while not found.min() > 0:
                    at = int(found.argmin())
                    value = IntegerPass(self, label, at).bound(whole=True)
                    found[at] = max(value, found[at])
                    if not value > 0:
                        break
        return _F(found.min())


def lines(
    least: _Array,
    most: _Array,
    size: _Array,
    m: _Array,
    bias: _Array,
    half: _Array,
    back: _Array,
    low: _Integers,
    high: _Integers,
    spare: np.float32,
    relu: bool,
) -> _Array:
    """Returns slope and offset of the line below, and those of the line above, [*shape, 4] (`vs_lines`)."""
    first, last, span = low.astype(np.float32), high.astype(np.float32), (high - low).astype(np.float32)
    middle, above, below = _F(0.5) * (least + most), last - half, first + half
    ends, reach = np.abs(first) + np.abs(last) + half, size + np.abs(bias) * m
    one = _F(1)
    up = np.where(middle < above, np.where(span < above - least, span / (above - least), one), _F(0))
    down = np.where(middle > below, np.where(span < most - below, span / (most - below), one), _F(0))
    if relu:
        down = np.where((least < 0) & (most > 0), np.where(most > -least, one, _F(0)), down)

    def line(slope: _Array, corner: _Array, first: _Array, last: _Array, end: _Array, sign: int) -> list[_Array]:
        step = slope * m
        offset = (np.maximum if sign > 0 else np.minimum)(last - slope * corner, first - slope * end) + step * bias
        return [step, offset + _F(sign) * (np.abs(offset) * spare + (ends + slope * reach) * _F(FEW) + slope * back)]

    found = [*line(down, np.minimum(most, below), last, first, most, -1), *line(up, np.maximum(least, above), first, last, least, 1)]
    zero, moved = np.zeros_like(first), np.abs(first) * spare
    same = [zero, first - moved, zero, first + moved]
    return np.stack([np.where(high == low, a, b) for a, b in zip(same, found, strict=True)], axis=-1).astype(np.float32)


class IntegerPass:
    """One backward pass for one margin of one input."""

    def __init__(self, kept: KeptIntegers, label: int, other: int) -> None:
        self.kept, self.plan = kept, kept.plan
        self.sum, self.size = _F(0), _F(0)
        self.coefficients: dict[str, _Array] = {}
        self._begin(label, other)

    def bound(self, whole: bool) -> np.float32:
        """Returns the lower bound over the last activation, or where `whole` is set over the input."""
        if not whole:
            self._end(self.plan.stop)
            return self._total()
        for step in self.plan.walk:
            self._step(step)
        for root in self.plan.ends:
            self._end(root)
        return self._total()

    def _begin(self, label: int, other: int) -> None:
        """Begins with the difference of two rows of the last layer."""
        rows, stop = self.kept.rows, self.plan.stop
        end = self.kept.arrays[f"end {stop}"]
        offsets = offsets_of(self.plan.stored[stop].place)
        order = np.argsort(offsets, kind="stable")
        m = np.maximum(-end[:, 0], end[:, 1])[offsets[order]]
        a, error = np.zeros(self.plan.size_of(stop), np.float32), _F(0)
        for row, sign in ((label, _F(1)), (other, _F(-1))):
            own = sign * rows.weight[row]
            self._add(sign * rows.bias[row])
            one = np.abs(rows.bias[row])
            for k in range(len(own)):
                one = one + np.abs(own[k]) * m[k]
            a[offsets[order]] += own
            error = error + one
        self._add(-(of_rows(self.plan) * error))
        self.coefficients[stop] = a

    def _total(self) -> np.float32:
        factor, constant = total_of_integers(self.plan)
        margin = self.sum - (self.size * factor + constant) * _F(ENLARGE)
        margin = margin - np.abs(margin) * _F(LOWER)
        return _F(margin) if -np.inf < margin < np.inf else UNKNOWN

    def _add(self, part: np.float32) -> None:
        self.sum, self.size = self.sum + part, self.size + np.abs(part)

    def _end(self, root: str) -> None:
        a, end = self.coefficients.pop(root), self.kept.arrays[f"end {root}"]
        self._add(lane_sum(a * np.where(a < 0, end[:, 1], end[:, 0])))

    def _into(self, name: str) -> _Array:
        """Returns the coefficients of what a step reads, zeros at first."""
        root = self.plan.root(name)
        return self.coefficients.setdefault(root, np.zeros(self.plan.size_of(root), np.float32))

    def _step(self, step: Step) -> None:
        node, a = step.head, self.coefficients.pop(step.result)
        target = self.plan.stored[step.result]
        if isinstance(node, MaxPool):
            best = self.kept.arrays[f"best {step.result}"]
            open_ = (a < 0) & (best[:, 0] > 0)
            self._add(lane_sum(np.where(open_, a * best[:, 1], -np.abs(a) * best[:, 2])))
            into = self._into(step.inputs[0])
            for i in np.flatnonzero((best[:, 0] != 0) & ~open_):
                at = int(np.abs(best[i, 0])) - 1
                into[at] = into[at] + a[i]
            return
        own = offsets_of(target.place)
        if isinstance(node, Reshape):
            into, source = self._into(step.inputs[0]), self.plan.stored[step.inputs[0]]
            into[offsets_of(source.place)] += a[own]
            return
        line = self.kept.arrays[f"line {step.result}"]
        self._add(lane_sum(a * np.where(a < 0, line[:, 3], line[:, 1])))
        t = (a * np.where(a < 0, line[:, 2], line[:, 0]))[own]
        if isinstance(node, Conv | Gemm):
            self._products(step, node, t.reshape(node.shape))
        elif isinstance(node, AveragePool):
            self._windows(step, node, t.reshape(node.shape))
        else:
            factors = factors_of(self.plan, step) if isinstance(node, Add) else [np.ones(1, np.float32)]
            for name, factor in zip(step.inputs, factors, strict=True):
                into = self._into(name)
                into[offsets_of(self.plan.stored[name].place)] += t * factor

    def _products(self, step: Step, node: Conv | Gemm, t: _Array) -> None:
        """Adds each output's coefficient times its weights: outputs one after the other, of each its positions in their order."""
        source, into = self.plan.stored[step.inputs[0]], self._into(step.inputs[0])
        layer = layer_of(self.kept.program, step, node, source)
        (down, across), per_group = layer.apart, len(layer.weight) // layer.groups
        rows, columns = np.indices(layer.size).reshape(2, -1)
        begin, t = layer.first + rows * down + columns * across, t.reshape(len(layer.weight), -1)
        # A later position meets an element with an earlier place of the filter.
        order = np.argsort(-layer.offsets, kind="stable")
        for o, weights in enumerate(layer.weight):
            (moved,) = np.nonzero(t[o])
            for k in order if len(moved) else ():
                at = begin[moved] + o // per_group * layer.group_step + layer.offsets[k]
                into[at] += _F(weights[k]) * t[o][moved]

    def _windows(self, step: Step, node: AveragePool, t: _Array) -> None:
        source, into = self.plan.stored[step.inputs[0]], self._into(step.inputs[0])
        at = offsets_of(source.place).reshape(source.place.shape)
        for c, i, j in np.ndindex(*node.shape):
            y, x = i * node.stride[0], j * node.stride[1]
            into[at[c, y : y + node.kernel[0], x : x + node.kernel[1]]] += t[c, i, j]
