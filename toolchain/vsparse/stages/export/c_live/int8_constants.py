"""What the live certificate of an int8 network is computed with, and what has none (docs/numerics.md, section 14.5)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np

from vsparse.errors import InputError
from vsparse.graph.ir import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu, Reshape
from vsparse.graph.operators.quantised import FakeQuant
from vsparse.graph.quantised import LARGEST_RATIO
from vsparse.stages.export.c_int8.fusion import Step, grids_of, is_integer_sum, steps_of
from vsparse.stages.export.c_live.constants import FLOOR, LIMIT, MOST_TERMS, float32_up, gamma, require_range, require_rows, terms_of
from vsparse.stages.export.c_source.layers import bias_of

# Roundings of executions within `int8`, and of the C itself, beside one for each term.
ROUNDINGS, MORE_OF_MARGIN = 24, 28
# Twice what rounding to a grid may differ by (docs/numerics.md, section 7.3), in steps.
STEP = Fraction(1, 2**9)
# Up to this δ of all sums of a layer no sum is looked at by itself: it would seldom be rounded otherwise.
SMALL = 3 * STEP
_UNIT = Fraction(1, 2**24)


@dataclass(frozen=True)
class Chain:
    """One operator on the way from the input to its grid: `error` is what both ends move outward by."""

    node: Node
    error: np.float32


def reach(graph: Graph, node: Conv | Gemm, grid: FakeQuant) -> Fraction:
    """Returns the largest Σ|w|·m + |b| of a sum of quantised activations, whatever they are, over its rows."""
    return max(_reaches(graph, node, grid), default=Fraction(0)) * (1 + Fraction(1, 2**20))


def _reaches(graph: Graph, node: Conv | Gemm, grid: FakeQuant) -> list[Fraction]:
    stored = graph.integers[node.weight]
    weight = np.abs(stored.values.astype(np.int64)).reshape(len(stored.values), -1).sum(axis=1)
    bias = np.zeros(len(weight), np.int64) if node.bias is None else np.abs(graph.integers[node.bias].values.astype(np.int64))
    scale = np.broadcast_to(stored.scale, (len(weight),))
    most = max(-grid.steps[0], grid.steps[1])
    own = Fraction(float(grid.scale))
    return [own * Fraction(float(s)) * (most * int(w) + int(b)) for w, b, s in zip(weight, bias, scale, strict=True)]


def of_sum(graph: Graph, step: Step, source: FakeQuant) -> np.float32:
    """Returns δ of a sum of quantised activations: in steps of its grid, or in units of its float32 result."""
    node = step.head
    assert isinstance(node, Conv | Gemm)
    error = gamma(terms_of(graph, node) + ROUNDINGS) * reach(graph, node, source)
    return float32_up(error + Fraction(FLOOR)) if step.grid is None else float32_up(error / Fraction(float(step.grid.scale)) + STEP)


def is_refined(graph: Graph, step: Step, source: FakeQuant) -> bool:
    """Returns whether one sum of a layer is looked at by itself where δ of all of them decides its rounding: where δ is not small."""
    return step.grid is not None and float(of_sum(graph, step, source)) > SMALL


def of_one_sum(graph: Graph, node: Conv | Gemm) -> np.float32:
    """Returns what one sum errs by for each unit of Σ|w|m + |b|, the roundings of the C that finds that among it."""
    return float32_up(gamma(terms_of(graph, node) + ROUNDINGS + 4))


def of_average(step: Step, source: FakeQuant) -> np.float32:
    """Returns δ of an average of quantised activations, in steps of its grid."""
    node = step.head
    assert isinstance(node, AveragePool)
    assert step.grid is not None
    size = max(-source.steps[0], source.steps[1]) * Fraction(float(source.scale)) / Fraction(float(step.grid.scale))
    return float32_up(gamma(prod(node.kernel) + ROUNDINGS) * size + STEP)


def of_addition(step: Step, sources: list[FakeQuant]) -> np.float32:
    """Returns δ of an addition of two quantised activations, in steps of its grid."""
    assert step.grid is not None
    size = sum(512 * Fraction(float(one.scale)) for one in sources) / Fraction(float(step.grid.scale))
    return float32_up((gamma(16) + 16 * _UNIT + gamma(12)) * size + STEP)


def of_chain(graph: Graph, step: Step, data_range: tuple[float, float]) -> tuple[np.float32, tuple[Chain, ...], np.float32]:
    """Returns what the region's ends move outward by, the operators between the input and its grid, and δ of the grid in steps."""
    assert step.grid is not None
    low, high = (Fraction(end) for end in data_range)
    most, found, scale = max(abs(low), abs(high)) + high - low, [], Fraction(float(step.grid.scale))
    error = 2 * _UNIT * most + Fraction(FLOOR)
    for node in step.chain:
        own = Fraction(0)
        if isinstance(node, AddConstant | MulConstant):
            largest = Fraction(float(np.abs(graph.params[node.constant]).max(initial=0)))
            most = most + largest if isinstance(node, AddConstant) else most * largest
            own = 4 * _UNIT * most + Fraction(FLOOR)
        if most > Fraction(LIMIT):
            raise InputError(f'node "{node.name}" makes numbers of an input that no live certificate bounds; rescale it')
        found.append(Chain(node, float32_up(own)))
    if most >= LARGEST_RATIO * scale:
        raise InputError(f'the grid of the input, "{step.grid.name}", has too small a step for a live certificate; rescale it')
    if not found:
        return np.float32(0), (), float32_up(error / scale + STEP * 2)
    return float32_up(error), tuple(found), float32_up(STEP * 2)


def of_margin_int8(terms: int) -> np.float32:
    """Returns G of rows of so many weights under `int8`."""
    return float32_up(8 * gamma(terms + MORE_OF_MARGIN))


def last_step(graph: Graph) -> Step:
    """Returns the step whose rows are folded into the margins; InputError for a network that does not end in a fully connected layer."""
    steps = {step.result: step for step in steps_of(graph)}
    name = graph.output
    while isinstance(steps[name].head, Reshape):
        name = steps[name].inputs[0]
    step = steps[name]
    if not isinstance(step.head, Gemm) or step.chain or step.grid is not None:
        raise InputError(
            f'node "{step.result}" ends the int8 network, and its live certificate needs a fully connected layer in float32 there; '
            "leave deploy.live out"
        )
    return step


def require_live_int8(graph: Graph, data_range: tuple[float, float]) -> None:
    """Raises InputError for a quantised network that has no live certificate, naming the node: what would overflow among others."""
    require_range(graph, data_range)
    grids, last = grids_of(graph), last_step(graph)
    assert isinstance(last.head, Gemm)
    require_rows(graph, last.head)
    for step in steps_of(graph):
        read = [grids[name] for name in step.inputs]
        node = step.head
        name = node.name if node is not None else step.result
        known = (
            (node is None and step.inputs == (graph.input,) and step.grid is not None)
            or (is_integer_sum(node, grids) and (step.relu_alone or all(isinstance(one, Relu) for one in step.chain)))
            or step is last
            or step.result == last.result
            or (isinstance(node, MaxPool | Relu) and read[0] is not None)
            or isinstance(node, Reshape)
            or (isinstance(node, AveragePool | Add) and step.relu_alone and all(one is not None for one in read))
        )
        if not known:
            raise InputError(
                f'node "{name}" computes in float32 where the live certificate of an int8 network has integers; leave deploy.live out, or '
                "change export.float_layers"
            )
        if isinstance(node, Conv | Gemm):
            _require_sum(graph, node, read[0], step.grid)
        if node is None:
            of_chain(graph, step, data_range)


def _require_sum(graph: Graph, node: Conv | Gemm, grid: FakeQuant | None, target: FakeQuant | None) -> None:
    if grid is None:
        most = max(
            float(np.abs(graph.params[node.weight].astype(np.float64)).reshape(node.shape[0], -1).sum(axis=1).max(initial=0)),
            float(np.abs(bias_of(graph, node)).max(initial=0)),
        )
    else:
        weight = np.abs(graph.integers[node.weight].values.astype(np.int64)).reshape(node.shape[0], -1).sum(axis=1)
        bias = 0 if node.bias is None else np.abs(graph.integers[node.bias].values.astype(np.int64))
        # A radius may reach one step beyond the grid; what stands for zero is at most 128 (docs/numerics.md, section 6.3).
        if (384 * weight + bias).max(initial=0) >= 2**31:
            raise InputError(
                f'node "{node.name}" adds weights whose bounds may leave int32; its live certificate would be wrong, so none is made'
            )
        most = float(reach(graph, node, grid))
        # Beyond 2^30 steps kernels need not find the right end of a grid (docs/numerics.md, section 7.4).
        if target is not None and most >= LARGEST_RATIO * target.scale:
            raise InputError(f'node "{node.name}" has sums of up to {most:.3g}, too many steps of its grid for a live certificate')
    if terms_of(graph, node) >= MOST_TERMS:
        raise InputError(
            f'node "{node.name}" adds {terms_of(graph, node)} terms, and a live certificate bounds sums of up to {MOST_TERMS - 1}'
        )
    if not most * (1 + 2.0**-20) <= LIMIT:
        raise InputError(f'node "{node.name}" has sums of up to {most:.3g}, beyond the 2^40 of a live certificate; rescale it')
