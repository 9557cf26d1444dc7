"""Quantised activations: their ends are whole steps of the grid, found by one rounding (docs/numerics.md, section 15.9).

A product that only a quantisation reads is bounded in steps, τ further out, so that Round and Clip are all that is left to do; and what
reads a quantised activation multiplies its steps, whose scale its weights hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vsparse.bounds.additions import QUANTISED_REACH
from vsparse.bounds.operators.quantised import TAU
from vsparse.graph.core import Graph, Node
from vsparse.graph.ir import Affine, FakeQuant, MaxPool, Relu, Reshape
from vsparse.stages.export.certify_onnx.affine import ChargedSum
from vsparse.stages.export.certify_onnx.charges import with_weight
from vsparse.stages.export.certify_onnx.rounded import UNIT, UP, Float32s, Numbers, down32, up32
from vsparse.stages.export.certify_onnx.writer import EndPair, TwinWriter

# By so many steps ends are moved outward before they are rounded: the τ of the network, and what float32 loses here of 600 steps.
REACH = TAU + TAU / 2
# Beside each weight that is divided or multiplied by a scale in float64.
SCALED = 2.0**-50


def rounded_products(graph: Graph) -> dict[str, FakeQuant]:
    """Returns the products that are read by one quantisation alone, through what rises and rounds nothing at most, and that one."""
    readers, found = graph.consumers(), {}
    for node in graph.nodes:
        if not isinstance(node, Affine):
            continue
        last: Node = node
        while last.name != graph.output and len(readers[last.name]) == 1:
            last = readers[last.name][0]
            if isinstance(last, FakeQuant):
                found[node.name] = last
            if not isinstance(last, Relu | MaxPool | Reshape):
                break
    return found


def of_steps(one: ChargedSum, scale: float) -> ChargedSum:
    """Returns the sum as one of the steps of its input: their scale is in the weights."""
    if scale == 1:
        return one
    weight = one.weight * scale
    return with_weight(one, weight=weight, slope=one.slope * scale * UP + SCALED * np.abs(weight))


def to_steps(one: ChargedSum, scale: float, slack: float) -> ChargedSum:
    """Returns the sum in steps of the grid that rounds it, with ends `REACH` further out."""
    weight, bias = one.weight / scale, one.bias / scale
    return with_weight(
        one,
        weight=weight,
        bias=bias,
        slope=one.slope / scale * UP + SCALED * np.abs(weight),
        constant=(one.constant / scale + SCALED * np.abs(bias) + REACH * slack) * UP,
    )


def in_units(w: TwinWriter, x: EndPair, hint: str) -> EndPair:
    """Returns ends that are steps as ends of the values themselves."""
    if x.scale == 1:
        return x
    limit, scale, key = x.limit, x.scale, x.stacked or x.upper
    if key in w.values:
        return w.values[key]
    assert limit is not None
    x = w.stack(x, hint)
    most = float(limit.max()) * scale
    around = 4 * UNIT * w.slack
    if x.nonnegative:
        factor = _sides(x, up32(np.array(scale * (1 + around))), down32(np.array(scale * (1 - around))))
        values = w.op("Mul", [x.stacked, w.constant(f"{hint}.scale", factor)], f"{hint}.values")
    else:
        product = w.op("Mul", [x.stacked, w.constant(f"{hint}.scale", np.float32(scale))], f"{hint}.product")
        error = up32(np.array(most * around))
        values = w.op("Add", [product, w.constant(f"{hint}.error", _sides(x, error, -error))], f"{hint}.values")
    made: Numbers = limit * scale * (1 + 2.0**-16)
    w.values[key] = EndPair(x.shape, stacked=values, nonnegative=x.nonnegative, limit=made)
    return w.values[key]


def rounded_to_steps(w: TwinWriter, node: FakeQuant, x: EndPair) -> EndPair:
    """Adds the least and the greatest step that a quantisation may round values within the ends `x` to."""
    lowest, highest = node.steps
    if x.nonnegative:
        lowest = max(lowest, 0)
    if not x.in_steps:
        x = w.stack(x, node.name)
        quotient = w.op("Mul", [x.stacked, w.constant(f"{node.name}.inverse", np.float32(1 / node.scale))], f"{node.name}.quotient")
        reach = np.array(REACH * w.slack, np.float32)
        x = replace(x, stacked=w.op("Add", [quotient, w.constant(f"{node.name}.reach", _sides(x, reach, -reach))], f"{node.name}.reaching"))
    ends = [w.constant(f"{node.name}.{which}", np.float32(end)) for which, end in (("lowest", lowest), ("highest", highest))]

    def rounded(source: str) -> str:
        return w.op("Clip", [w.op("Round", [source], f"{node.name}.rounded"), *ends], f"{node.name}.steps")

    limit = np.full(node.shape, float(max(abs(lowest), abs(highest))))
    known = EndPair(node.shape, nonnegative=lowest >= 0, limit=limit, scale=node.scale)
    if x.stacked:
        return replace(known, stacked=rounded(x.stacked))
    return replace(known, upper=rounded(x.upper), lower=rounded(x.lower))


def step_errors(scales: Mapping[str, float], node: Node) -> float:
    """Returns 16u·R of docs/numerics.md, section 7.2: what kernels on integers lose of steps and zero points where they add.

    `scales` are those of all quantised activations, none without such kernels.
    """
    return 16 * UNIT * QUANTISED_REACH * sum(scales.get(name, 0.0) for name in node.inputs)


def _sides(x: EndPair, upper: Float32s, lower: Float32s) -> Float32s:
    """Returns a constant for stacked ends: one number for all upper ends and one for all lower ones."""
    count, rest = x.shape[0], [1] * (len(x.shape) - 1)
    return np.repeat(np.array([upper, lower], np.float32), count).reshape(2 * count, *rest)
