"""What same_bits.py compares with: the inputs that same_bits.c draws, what each form of a network may make of them, and the judgement."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.bounds import Rounding, interval
from vsparse.contract import CONTRACTS
from vsparse.graph import FakeQuant, Graph
from vsparse.stages.export.c_int8 import simulate_integers
from vsparse.stages.export.c_source import simulate
from vsparse.stages.export.c_source.simulation import execute as execute_operator

KINDS, NOT_ASKED = 8, -(2**31)

Values = NDArray[np.float32]


def inputs_of(seed: int, count: int, shape: tuple[int, ...]) -> Values:
    """Returns the inputs [count, *shape] that same_bits.c draws, to the bit."""
    index = np.arange(count, dtype=np.uint32)
    state = (np.uint32(seed * 0x9E3779B9 % 2**32) + index * np.uint32(0x85EBCA6B)) | np.uint32(1)

    def draw() -> NDArray[np.uint32]:
        nonlocal state
        state = state ^ (state << np.uint32(13))
        state = state ^ (state >> np.uint32(17))
        state = state ^ (state << np.uint32(5))
        return state

    for _ in range(8):
        draw()
    size = prod(shape)
    place = draw() % np.uint32(size)
    a, b = np.empty((count, size), np.uint32), np.empty((count, size), np.uint32)
    for i in range(size):
        a[:, i], b[:, i] = draw(), draw()
    positive = (a >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
    both = ((a >> np.uint32(8)).astype(np.float32) - np.float32(2**23)) * np.float32(2**-23)
    tiny = np.where(b % 4 != 0, a & np.uint32(0x807FFFFF), np.uint32(0)).view(np.float32)
    wide = ((a & np.uint32(0x807FFFFF)) | (np.uint32(107) + b % np.uint32(24)) << np.uint32(23)).view(np.float32)
    ends = np.array(
        [0, 1 << 31, 0x3F800000, 0xBF800000, 0x3F7FFFFF, 0x3F800001, 0x800000, 0x80800000, 0x7FFFFF, 1, 0x80000001, 0x3F000000], np.uint32
    ).view(np.float32)
    mixed = np.where(b & np.uint32(16), tiny, both)
    kinds = [positive, both, np.float32(4) * both, wide, tiny, ends[b % 12], mixed, both]
    x = np.select([(index % KINDS == kind)[:, None] for kind in range(KINDS)], kinds).astype(np.float32)
    far = np.array([0x7FC00000, 0x7F800000, 0x7F7FFFFF, 0xFF7FFFFF], np.uint32).view(np.float32)
    last = np.flatnonzero(index % KINDS == KINDS - 1)
    x[last, place[last]] = far[last // KINDS % 4]
    return x.reshape(count, *shape)


@dataclass(frozen=True)
class Expected:
    """What a form of a network may compute for each input: logits [n, classes], the other choice where terms of zeros are left out, bounds.

    `finite` are the inputs that the bounds are about.
    """

    logits: Values
    absent: Values
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    finite: NDArray[np.bool_]


def expected(graph: Graph, x: Values, integers: bool) -> Expected:
    """Returns what the simulation and the bounds say of inputs [n, *shape]."""
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if integers:
        logits = simulate_integers(graph, np.where(np.isnan(x), np.float32(0), x))
        logits[_meets_nan(graph, x)] = np.nan
        absent = logits
    else:
        logits = simulate(graph, x)[graph.output].reshape(len(x), -1)
        absent = simulate(graph, x, pruned_absent=True)[graph.output].reshape(len(x), -1)
    rounding = Rounding(graph, CONTRACTS["int8" if integers else "sequential"])
    lower, upper = np.full(logits.shape, -np.inf), np.full(logits.shape, np.inf)
    rows = np.flatnonzero(finite)
    for part in np.array_split(rows, -(-len(rows) // 128)):
        point = torch.from_numpy(x[part]).double()
        low, high = interval(graph, rounding.params, (point, point), rounding)[graph.output]
        lower[part], upper[part] = low.numpy().reshape(len(part), -1), high.numpy().reshape(len(part), -1)
    return Expected(logits, absent, lower, upper, finite)


def _meets_nan(graph: Graph, x: Values) -> NDArray[np.bool_]:
    """Returns of which inputs [n, *shape] a value that is not a number meets a grid: one that no operator reads does not."""
    values = {graph.input: x}
    found = np.zeros(len(x), bool)
    for node in graph.nodes:
        if not all(name in values for name in node.inputs):
            continue
        if isinstance(node, FakeQuant):
            found |= np.isnan(values[node.inputs[0]]).reshape(len(x), -1).any(axis=1)
        else:
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                values[node.name] = execute_operator(graph, node, [values[name] for name in node.inputs])
    return found


def judge(wanted: Expected, logits: Values, classes: NDArray[np.int32], same: bool) -> dict[str, int]:
    """Returns counts of logits with other bits (but for the sign of zero), of logits outside their enclosures, and of wrong classes."""
    n = len(logits)
    agree = _equal(wanted.logits[:n], wanted.absent[:n])
    right = np.where(agree, _equal(logits, wanted.logits[:n]), _equal(logits, wanted.absent[:n]) | ~np.isfinite(logits))
    unbounded = np.isinf(wanted.lower[:n]) & np.isinf(wanted.upper[:n])
    inside = ((logits >= wanted.lower[:n]) & (logits <= wanted.upper[:n])) | unbounded
    visible = np.isfinite(logits).all(axis=1)
    best = np.where(visible, np.where(np.isnan(logits), -np.inf, logits).argmax(axis=1), -1)
    asked = classes != NOT_ASKED
    return {
        "logits": logits.size,
        "other_bits": int((~right).sum()) if same else 0,
        "outside": int((~inside)[wanted.finite[:n]].sum()),
        "classes": int(asked.sum()),
        "wrong_classes": int((best != classes)[asked].sum()),
        "refused_classes": int((classes == -1).sum()),
        "bounded": int((~unbounded)[wanted.finite[:n]].sum()),
    }


def _equal(a: Values, b: Values) -> NDArray[np.bool_]:
    return (a == b) | (np.isnan(a) & np.isnan(b))
