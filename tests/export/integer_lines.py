"""The second tier of int8 in rational arithmetic: what lines must hold, and what a pass with the same slopes bounds exactly."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from types import SimpleNamespace

import numpy as np

from vsparse.graph import Add, AveragePool, Conv, Gemm, MaxPool, Relu, Reshape
from vsparse.stages.export.c_int8.fusion import Step
from vsparse.stages.export.c_int8.place import offsets_of
from vsparse.stages.export.c_int8.simulation import products, window_sums
from vsparse.stages.export.c_live.int8_backward_simulation import KeptIntegers
from vsparse.stages.export.c_live.int8_plan import factors_of
from vsparse.stages.export.c_live.int8_simulation import BeforeGrid

HALF = Fraction(1, 2)


def units(kept: KeptIntegers, step: Step) -> list[SimpleNamespace]:
    """Returns of each unit of a step, in row-major order: its ends before the grid, exact, its steps, its bias, and its two lines."""
    node, plan = step.head, kept.plan
    assert node is not None
    lows, highs = zip(*(kept.boxes[name] for name in step.inputs), strict=True)
    bias = np.zeros(node.shape, np.int64)
    if isinstance(node, Conv | Gemm):
        middle = products(kept.graph, node, (lows[0] + highs[0])[None])[0]
        spread = products(kept.graph, node, (highs[0] - lows[0])[None], True)[0]
        bias = products(kept.graph, node, 0 * lows[0][None])[0]
        ends = (middle + bias - spread) // 2, (middle + bias + spread) // 2
        factor = np.broadcast_to(factors_of(plan, step)[0].reshape(-1, *[1] * (len(node.shape) - 1)), node.shape)
    elif isinstance(node, AveragePool):
        ends = tuple(window_sums(node, one[None])[0] for one in (lows[0], highs[0]))
        factor = np.broadcast_to(factors_of(plan, step)[0][0], node.shape)
    elif isinstance(node, Relu):
        ends, factor = (lows[0], highs[0]), np.ones(node.shape)
    else:
        assert isinstance(node, Add)
        shares = [Fraction(float(one[0])) for one in factors_of(plan, step)]
        ends = tuple(np.vectorize(lambda a, b: shares[0] * int(a) + shares[1] * int(b), otypes=[object])(*pair) for pair in (lows, highs))
        factor = np.ones(node.shape)
    low, high = kept.boxes[step.result]
    lines = kept.arrays[f"line {step.result}"][offsets_of(plan.stored[step.result].place)]
    first = -(10**6) if step.grid is None else max(step.grid.steps[0], 0) if step.has_relu else step.grid.steps[0]
    last = 10**6 if step.grid is None else step.grid.steps[1]
    rows = zip(ends[0].flat, ends[1].flat, factor.flat, low.flat, high.flat, bias.flat, lines, strict=True)
    return [
        SimpleNamespace(
            least=Fraction(a) if isinstance(a, Fraction) else Fraction(int(a)),
            most=Fraction(b) if isinstance(b, Fraction) else Fraction(int(b)),
            m=Fraction(float(m)),
            low=int(k),
            high=int(top),
            bias=int(c),
            line=[Fraction(float(one)) for one in line],
            whole=not isinstance(node, Add),
            relu=isinstance(node, Relu),
            first=first,
            last=last,
        )
        for a, b, m, k, top, c, line in rows
    ]


def offsets(unit: SimpleNamespace, away: Fraction = Fraction(0)) -> tuple[Fraction, Fraction]:
    """Returns the least offset above and the largest below with which the unit's slopes hold, of sums less their bias.

    `away` is how far a device may be from m · T before it rounds, and ties go either way.
    """
    below, above = Fraction(10**30), Fraction(-(10**30))
    slopes = unit.line[0], unit.line[2]
    for k in range(unit.low, unit.high + 1):
        half = Fraction(0) if unit.relu else HALF + away
        start = unit.least if k == unit.first else (k - half) / unit.m
        stop = unit.most if k == unit.last else (k + half) / unit.m
        if unit.relu:
            start, stop = (unit.least, Fraction(min(0, unit.most))) if k == 0 else (Fraction(k), Fraction(k))
        start, stop = max(start, unit.least), min(stop, unit.most)
        if unit.whole:
            start, stop = Fraction(ceil(start)), Fraction(floor(stop))
        if start > stop:
            continue
        below = min(below, k - slopes[0] * (stop - unit.bias))
        above = max(above, k - slopes[1] * (start - unit.bias))
    return below, above


def exact_pass(kept: KeptIntegers, before: dict[str, BeforeGrid], label: int, other: int) -> Fraction:
    """Returns what one pass with the slopes that were kept bounds in exact arithmetic, of a device that rounds to a grid what may be as far
    from m · T as the bounds move outward by."""
    plan, graph = kept.plan, kept.graph
    node = plan.last.head
    assert isinstance(node, Gemm)
    scale = [Fraction(float(factors_of(plan, plan.last)[0][i])) for i in (label, other)]
    weights = [[scale[e] * int(q) for q in graph.integers[node.weight].values[i].reshape(-1)] for e, i in enumerate((label, other))]
    bias = [0 if node.bias is None else int(graph.integers[node.bias].values[i]) for i in (label, other)]
    total = scale[0] * bias[0] - scale[1] * bias[1]
    place = plan.stored[plan.last.inputs[0]].place
    found = {plan.stop: [Fraction(0)] * plan.size_of(plan.stop)}
    for at, a, b in zip(offsets_of(place).tolist(), *weights, strict=True):
        found[plan.stop][at] += a - b
    for step in plan.walk:
        total += _step(kept, before, step, found)
    for root in plan.ends:
        a, at = found[root], offsets_of(plan.stored[root].place).tolist()
        low, high = (one.reshape(-1).tolist() for one in kept.boxes[root])
        total += sum(a[i] * (low[n] if a[i] >= 0 else high[n]) for n, i in enumerate(at))
    return total


def _step(kept: KeptIntegers, before: dict[str, BeforeGrid], step: Step, found: dict[str, list[Fraction]]) -> Fraction:
    plan, node, total = kept.plan, step.head, Fraction(0)
    a = found.pop(step.result)
    own = offsets_of(plan.stored[step.result].place).tolist()
    into = []
    for name in step.inputs:
        root = plan.root(name)
        into.append((found.setdefault(root, [Fraction(0)] * plan.size_of(root)), offsets_of(plan.stored[name].place)))
    if isinstance(node, Reshape):
        for i, at in zip(own, into[0][1].tolist(), strict=True):
            into[0][0][at] += a[i]
        return total
    if isinstance(node, MaxPool):
        best = kept.arrays[f"best {step.result}"]
        for n, i in enumerate(own):
            if a[i] < 0 and best[i, 0] > 0:
                total += a[i] * int(kept.boxes[step.result][1].reshape(-1)[n])
            else:
                into[0][0][int(abs(best[i, 0])) - 1] += a[i]
        return total
    passed = []
    errors = before[step.result].error[0].reshape(-1).tolist() if step.result in before else [0.0] * len(own)
    for i, unit, error in zip(own, units(kept, step), errors, strict=True):
        below, above = offsets(unit, Fraction(error))
        total += a[i] * (below if a[i] >= 0 else above)
        passed.append(a[i] * unit.line[0 if a[i] >= 0 else 2])
    if isinstance(node, Conv | Gemm):
        _products(kept, node, passed, into[0])
    elif isinstance(node, AveragePool):
        at = into[0][1].reshape(plan.stored[step.inputs[0]].place.shape)
        for t, (c, i, j) in zip(passed, np.ndindex(*node.shape), strict=True):
            y, x = i * node.stride[0], j * node.stride[1]
            for place in at[c, y : y + node.kernel[0], x : x + node.kernel[1]].reshape(-1).tolist():
                into[0][0][place] += t
    else:
        shares = [Fraction(float(one[0])) for one in factors_of(plan, step)] if isinstance(node, Add) else [Fraction(1)]
        for share, (array, at) in zip(shares, into, strict=True):
            for t, place in zip(passed, at.tolist(), strict=True):
                array[place] += share * t
    return total


def _products(kept: KeptIntegers, node: Conv | Gemm, passed: list[Fraction], into: tuple[list[Fraction], np.ndarray]) -> None:
    weight = kept.graph.integers[node.weight].values.astype(int)
    shape = kept.graph.shape_of(node.inputs[0])
    at = into[1].reshape(shape)
    for t, index in zip(passed, np.ndindex(*node.shape), strict=True):
        if not t:
            continue
        if isinstance(node, Gemm):
            for k in np.flatnonzero(weight[index[0]]).tolist():
                into[0][at.reshape(-1)[k]] += t * int(weight[index[0], k])
            continue
        o, i, j = index
        first = o // (len(weight) // node.groups) * weight.shape[1]
        for c, ky, kx in zip(*np.nonzero(weight[o]), strict=True):
            y, x = i * node.stride[0] - node.pads[0] + ky * node.dilation[0], j * node.stride[1] - node.pads[1] + kx * node.dilation[1]
            if 0 <= y < shape[1] and 0 <= x < shape[2]:
                into[0][at[first + c, y, x]] += t * int(weight[o, c, ky, kx])
