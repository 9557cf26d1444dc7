"""How the interval of each operator is written; one without a rule is refused by name (docs/numerics.md, section 15)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import singledispatch
from math import isinf

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.bounds.float64 import gamma
from vsparse.contract import FUNCTION_ERROR, LARGEST, SMALLEST_NORMAL
from vsparse.errors import InputError
from vsparse.graph.core import Graph, Node
from vsparse.graph.execute import apply
from vsparse.graph.ir import (
    Add,
    AddConstant,
    Affine,
    AveragePool,
    Clip,
    DivConstant,
    FakeQuant,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Neg,
    Relu,
    Reshape,
    Sigmoid,
    Sub,
    Tanh,
)
from vsparse.graph.operators.move import Move
from vsparse.graph.rules import onnx_form
from vsparse.graph.shapes import show
from vsparse.stages.export.certify_onnx.affine import bounded
from vsparse.stages.export.certify_onnx.charges import Charges
from vsparse.stages.export.certify_onnx.quantised import in_units, of_steps, rounded_to_steps, step_errors, to_steps
from vsparse.stages.export.certify_onnx.rounded import CONSTANT_FLOOR, ETA, UNIT, UP, Numbers, down32, up32
from vsparse.stages.export.certify_onnx.stored_sums import bounded_and_stored, magnitude, of_unstored
from vsparse.stages.export.certify_onnx.writer import EndPair, TwinWriter

# Magnitudes below this are charged as this one: what underflow may cost is then far below what is relative to them.
SMALL = 2.0**-70


@dataclass(frozen=True)
class TwinContext:
    """What rules work with: the writer, the errors of the network, and the ends of every activation that has some already.

    `unstored` names the activation whose ends are those before it is stored; "" where there is none. `rounded_by` has the quantisation of
    each product that is bounded in its steps.
    """

    writer: TwinWriter
    charges: Charges
    known: dict[str, EndPair]
    unstored: str = ""
    rounded_by: Mapping[str, FakeQuant] = field(default_factory=dict)


@singledispatch
def enclosed(node: Node, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    """Adds what bounds one operator over the ends of its inputs; InputError for an operator that has no interval here."""
    raise _refusal(node)


def require_intervals(graph: Graph) -> None:
    """Raises InputError, which names the node, unless every operator has an interval here."""
    for node in graph.nodes:
        if enclosed.dispatch(type(node)) is enclosed.dispatch(object):
            raise _refusal(node)


def _refusal(node: Node) -> InputError:
    return InputError(
        f'node "{show(node.name)}" has type {type(node).__name__}, which has no interval in float32 operators; '
        "leave deploy.live out, or export the float32 network"
    )


@enclosed.register
def _(node: Affine, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    one, storage = c.charges.sum_of(node), c.charges.storage
    if storage is None:
        (x,), grid = inputs, c.rounded_by.get(node.name)
        one = of_steps(one, x.scale)
        if grid is None:
            return bounded(c.writer, one, x, node.name)
        return replace(bounded(c.writer, to_steps(one, grid.scale, c.writer.slack), x, node.name), in_steps=True)
    if node.inputs[0] == c.unstored:
        one = of_unstored(one, storage)
    return bounded_and_stored(c.writer, one, c.charges.storage_of(node.name), inputs[0], node.name)


@enclosed.register
def _(node: Relu, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    if inputs[0].in_steps:  # the clip of the steps is left to do it
        return replace(inputs[0], nonnegative=True)
    return replace(_each(node, c, inputs[0]), nonnegative=True, limit=inputs[0].limit)


@enclosed.register
def _(node: FakeQuant, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    return rounded_to_steps(c.writer, node, inputs[0])


@enclosed.register
def _(node: Clip, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    (x,) = inputs
    ends = [node.lowest, node.highest]
    limit = x.limit
    if not isinf(node.lowest) and not isinf(node.highest):
        largest = max(abs(node.lowest), abs(node.highest))
        # A range without 0 makes numbers that are larger than what it is given.
        holds_zero = node.lowest <= 0 <= node.highest
        limit = np.full(node.shape, largest) if limit is None or not holds_zero else np.minimum(limit, largest)
    elif limit is not None:
        limit = np.maximum(limit, max(abs(end) for end in ends if not isinf(end)))
    nonnegative = node.lowest >= 0 or (x.nonnegative and node.highest >= 0)
    clipped = replace(_each(node, c, x), nonnegative=nonnegative, limit=limit)
    return _with_inexact(node, c, clipped, max((c.charges.rounding.constant_error(end) for end in ends if not isinf(end)), default=0.0))


@enclosed.register
def _(node: LeakyRelu, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    """The function rises, so ends go to ends; what is rounded is slope·x where x is negative, in the network and here."""
    w, x = c.writer, c.writer.pair(inputs[0], node.name)
    upper, lower = (
        w.op("LeakyRelu", [end], f"{node.name}.{which}", alpha=node.slope) for which, end in (("up", x.upper), ("low", x.lower))
    )
    inexact = abs(float(np.float32(node.slope)) - node.slope)
    rate, model = (gamma(8, UNIT) * node.slope + 4 * inexact + 2.0**-30) * UP, c.charges.rounding
    constant = 0.0
    if c.charges.storage is not None:
        inexact = model.constant_error(node.slope)
        rate = (rate + gamma(3, model.storage_unit) * node.slope + 2 * inexact) * UP
        constant = (3 + inexact) * model.storage_floor
    read: Numbers | float = 0.0
    quantised = bool(model.scales.get(node.inputs[0]))  # such a value is rounded once more where it is read
    if quantised and x.limit is not None:
        read = 3 * UNIT * UP * x.limit
    negative = w.op("Min", [x.lower, w.constant(f"{node.name}.small", np.float32(-SMALL))], f"{node.name}.negative")
    less = w.op("Mul", [negative, w.constant(f"{node.name}.rate", -up32(np.array(rate)))], f"{node.name}.error")
    if quantised and x.limit is None:  # beside float values, which have no limit
        more = w.op("Mul", [magnitude(w, x, node.name), w.constant(f"{node.name}.read", np.float32(4 * UNIT))], f"{node.name}.more")
        less = w.op("Add", [less, more], f"{node.name}.errors")
    return _moved_out(w, node, upper, lower, _and_constant(w, node, less, constant + read))


@enclosed.register(Sigmoid)
@enclosed.register(Tanh)
def _(node: Sigmoid | Tanh, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    """Both rise; a device errs by an absolute amount that the contract assumes (docs/numerics.md, section 3.2), in the network and here."""
    w, x = c.writer, inputs[0]
    error = (FUNCTION_ERROR[c.charges.rounding.contract.storage] + FUNCTION_ERROR["fp32"] + 4 * UNIT) * UP * w.slack
    stacked = w.op(type(node).onnx, [w.stack(x, node.name).stacked], f"{node.name}.both")
    shift = np.stack([np.full(node.shape[0], error), np.full(node.shape[0], -error)]).reshape(-1, *[1] * (len(node.shape) - 1))
    outward = np.concatenate([up32(shift[: node.shape[0]]), down32(shift[node.shape[0] :])])
    moved = w.op("Add", [stacked, w.constant(f"{node.name}.error", outward)], f"{node.name}.ends")
    return EndPair(node.shape, stacked=moved, limit=np.full(node.shape, 1 + 4 * error))


@enclosed.register
def _(node: MaxPool, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    (x,) = inputs
    limit = None if x.limit is None or x.in_steps else apply(node, {}, torch.from_numpy(np.ascontiguousarray(x.limit))[None])[0].numpy()
    return replace(_each(node, c, x), nonnegative=x.nonnegative, limit=limit)


@enclosed.register
def _(node: AveragePool, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    """A mean rises with each of its elements; its error is relative to the mean of magnitudes, and so is the error of this one."""
    w, x = c.writer, inputs[0]
    kernels, count = c.charges.rounding.sums[node.name], node.kernel[0] * node.kernel[1]
    rate = (float(kernels.error.max()) * count * UP + 2 * gamma(count + 8, UNIT)) * UP
    constant, storage = 0.0, c.charges.storage_of(node.name)
    if c.charges.storage is not None:
        constant = float(kernels.error_constant.max()) * (1 + 2 * c.charges.storage.unit) * UP
    if storage is not None:
        rate, constant = rate * (1 + 2 * storage.unit) + storage.unit, constant + storage.floor
    if x.nonnegative:
        pooled = w.pair(_each(node, c, x), node.name)
        size, upper, lower = pooled.upper, pooled.upper, pooled.lower
    else:
        pair = w.pair(x, node.name)
        upper, lower = (_alone(node, c, end, f"{node.name}.{which}") for which, end in (("mean", pair.upper), ("mean", pair.lower)))
        size = _alone(node, c, magnitude(w, pair, node.name), f"{node.name}.mean")
    least = w.op("Max", [size, w.constant(f"{node.name}.small", np.float32(SMALL))], f"{node.name}.size")
    less = w.op("Mul", [least, w.constant(f"{node.name}.rate", up32(np.array(rate + 2.0**-30)))], f"{node.name}.error")
    return _moved_out(w, node, upper, lower, _and_constant(w, node, less, constant))


@enclosed.register(Add)
@enclosed.register(Sub)
def _(node: Add | Sub, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    w, (a, b) = c.writer, (c.writer.pair(x, node.name) for x in inputs)
    kind, (up, low) = ("Add", (b.upper, b.lower)) if isinstance(node, Add) else ("Sub", (b.lower, b.upper))
    upper, lower = (w.op(kind, ends, f"{node.name}.end") for ends in ([a.upper, up], [a.lower, low]))
    return _rounded_once(node, c, EndPair(node.shape, upper=upper, lower=lower))


@enclosed.register
def _(node: AddConstant, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    w, (x,) = c.writer, inputs
    constant = np.broadcast_to(c.charges.graph.params[node.constant].astype(np.float64), node.shape)
    if x.limit is not None and node.name not in c.charges.rounding.fused:
        size = x.limit + np.abs(constant)
        error = ((size * (6 * UNIT + c.charges.integers) + step_errors(c.charges.rounding.scales, node)) * UP + CONSTANT_FLOOR) * w.slack
        shift = np.concatenate([up32(constant + error), down32(constant - error)])
        stacked = w.op("Add", [w.stack(x, node.name).stacked, w.constant(f"{node.name}.shift", _short(shift))], f"{node.name}.ends")
        return EndPair(node.shape, stacked=stacked, limit=size * 1.001 + SMALL)
    x, own = w.pair(x, node.name), w.constant(f"{node.name}.constant", c.charges.graph.params[node.constant])
    upper, lower = (w.op("Add", [end, own], f"{node.name}.end") for end in (x.upper, x.lower))
    return _rounded_once(node, c, EndPair(node.shape, upper=upper, lower=lower))


@enclosed.register(MulConstant)
@enclosed.register(DivConstant)
def _(node: MulConstant | DivConstant, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    """The factor's sign decides which end becomes which; the product is rounded in the network, and here."""
    w, x = c.writer, inputs[0]
    own = c.charges.graph.params[node.constant].astype(np.float64)
    model = c.charges.rounding
    kind, factor = ("Mul", np.abs(own)) if isinstance(node, MulConstant) else ("Div", 1 / _usable(node, own, model.contract.storage))
    factor = np.broadcast_to(factor, node.shape)
    stored, pair = w.constant(f"{node.name}.factor", c.charges.graph.params[node.constant]), w.pair(x, node.name)
    first, second = (w.op(kind, [end, stored], f"{node.name}.end") for end in (pair.upper, pair.lower))
    if (own >= 0).all():
        upper, lower = first, second
    elif (own <= 0).all():
        upper, lower = second, first
    else:
        upper, lower = w.op("Max", [first, second], f"{node.name}.upper"), w.op("Min", [first, second], f"{node.name}.lower")
    limit = None if x.limit is None else x.limit * factor * 1.001 + SMALL
    flush = 8 * ETA * (factor.max() + 1) * UP
    if limit is not None:
        assert x.limit is not None
        error = up32(x.limit * (factor * (gamma(10, UNIT) + c.charges.integers) + flush) * UP + CONSTANT_FLOOR + flush)
        less = w.constant(f"{node.name}.error", _short(error))
        return replace(_moved_out(w, node, upper, lower, less), limit=limit)
    # Underflow of a factor or of an operand is relative to the other one.
    size = magnitude(w, pair, node.name)
    least = w.op("Max", [size, w.constant(f"{node.name}.small", np.float32(SMALL))], f"{node.name}.least")
    own_rate, constant = gamma(10, UNIT) + c.charges.integers + 2.0**-30, np.zeros(())
    if c.charges.storage is not None:
        own_rate += c.charges.storage.unit if isinstance(node, MulConstant) else gamma(3, model.storage_unit)
        flush += 2 * model.storage_floor * UP
        constant = 2 * model.storage_floor * (factor + 1) * UP
    rate = np.maximum(up32(factor * own_rate * UP + flush), np.float32(2.0**-50))
    less = w.op("Mul", [least, w.constant(f"{node.name}.rate", _short(rate))], f"{node.name}.error")
    return _moved_out(w, node, upper, lower, _and_constant(w, node, less, constant))


@enclosed.register
def _(node: Neg, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    w, x = c.writer, c.writer.pair(inputs[0], node.name)
    upper, lower = w.op("Neg", [x.lower], f"{node.name}.upper"), w.op("Neg", [x.upper], f"{node.name}.lower")
    return EndPair(node.shape, upper=upper, lower=lower, limit=x.limit)


@enclosed.register
def _(node: Reshape, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    """Elements keep their order, so that the stacked ends stay stacked."""
    (x,) = inputs
    limit = None if x.limit is None else x.limit.reshape(node.shape)
    if x.stacked:
        whole = replace(node, shape=(2 * node.shape[0], *node.shape[1:]))
        return EndPair(node.shape, stacked=_alone(whole, c, x.stacked, node.name), nonnegative=x.nonnegative, limit=limit)
    upper, lower = (_alone(node, c, end, node.name) for end in (x.upper, x.lower))
    return EndPair(node.shape, upper=upper, lower=lower, nonnegative=x.nonnegative, limit=limit)


@enclosed.register
def _(node: Move, c: TwinContext, inputs: list[EndPair]) -> EndPair:
    """Upper ends are moved as the elements are, and so are lower ones."""
    pairs = [c.writer.pair(x, node.name) for x in inputs]
    form = onnx_form(node, c.writer)
    upper, lower = (
        c.writer.op(form.operator, [*names, *form.inputs], f"{node.name}.end", **form.attributes)
        for names in ([x.upper for x in pairs], [x.lower for x in pairs])
    )
    value = float(getattr(node, "value", 0.0))
    limit = None
    if all(x.limit is not None for x in pairs):
        moved = apply(node, {}, *(torch.from_numpy(np.ascontiguousarray(x.limit))[None] for x in pairs))
        limit = np.abs(moved[0].numpy())
    nonnegative = all(x.nonnegative for x in pairs) and value >= 0
    moved_ends = EndPair(node.shape, upper=upper, lower=lower, nonnegative=nonnegative, limit=limit)
    return _with_inexact(node, c, moved_ends, c.charges.rounding.constant_error(value))


def _rounded_once(node: Node, c: TwinContext, exact: EndPair) -> EndPair:
    """Moves the ends of an addition outward: by a rounding of its result, and by what the one sum that it may end errs beside.

    Of that sum what affine operators add is charged where they are bounded; here it is γ of all terms for every other one.
    """
    w, terms = c.writer, c.charges.rounding.fused.get(node.name)
    size = w.op("Max", [magnitude(w, exact, node.name), w.constant(f"{node.name}.small", np.float32(SMALL))], f"{node.name}.size")
    storage = c.charges.storage
    rate, constant = gamma(10, UNIT) + 2.0**-30, 0.0
    if storage is not None:
        rate, constant = rate + storage.unit, 4 * storage.floor
    less = w.op("Mul", [size, w.constant(f"{node.name}.rate", up32(np.array(rate)))], f"{node.name}.error")
    if c.charges.integers:
        less, constant = _integer_errors(node, c, less)
    if terms is not None:
        sizes = [magnitude(w, w.pair(in_units(w, c.known[name], node.name), node.name), node.name) for name in terms.values]
        constants = [np.abs(c.charges.graph.params[name]).astype(np.float32) for name in terms.constants]
        sizes += [w.constant(f"{node.name}.constant_size", value) for value in constants]
        grown = c.charges.growth_of(terms) + gamma(10, UNIT)
        if storage is not None:
            grown = grown * (1 + 2 * storage.unit) + 2 * storage.unit
        growth = up32(np.array(grown * (1 + 2.0**-10)))
        for one in sizes:
            more = w.op("Mul", [one, w.constant(f"{node.name}.growth", growth)], f"{node.name}.more")
            less = w.op("Add", [less, more], f"{node.name}.errors")
    return _moved_out(w, node, exact.upper, exact.lower, _and_constant(w, node, less, constant))


def _integer_errors(node: Node, c: TwinContext, less: str) -> tuple[str, float]:
    """Adds to an error what kernels on integers lose of each term of an addition, and returns it and a constant that is missing there.

    See docs/numerics.md, section 7.2.
    """
    w, rate = c.writer, c.charges.integers
    constant = step_errors(c.charges.rounding.scales, node)
    for name in node.inputs:
        x = in_units(w, c.known[name], node.name)
        if x.limit is not None:
            constant += rate * float(x.limit.max())
            continue
        size, factor = magnitude(w, w.pair(x, node.name), node.name), w.constant(f"{node.name}.integers", up32(np.array(rate)))
        more = w.op("Mul", [size, factor], f"{node.name}.more")
        less = w.op("Add", [less, more], f"{node.name}.errors")
    if isinstance(node, AddConstant):
        constant += rate * float(np.abs(c.charges.graph.params[node.constant]).max())
    return less, constant * UP


def _and_constant(w: TwinWriter, node: Node, error: str, constant: Numbers | float) -> str:
    """Adds a constant to an error, where there is one: what underflow costs that is no small part of what is relative to values."""
    value = np.asarray(constant, np.float64)
    if not value.any():
        return error
    stored = up32(value * (1 + 2.0**-20))
    stored = _short(stored) if stored.ndim else stored
    return w.op("Add", [error, w.constant(f"{node.name}.floor", stored)], f"{node.name}.underflow")


def _with_inexact(node: Node, c: TwinContext, x: EndPair, inexact: float) -> EndPair:
    """Moves ends outward by what a number of the operator is rounded by, where the format of the network does not hold it."""
    if inexact == 0 or c.charges.storage is None:
        return x
    w = c.writer
    pair, error = w.pair(x, node.name), w.constant(f"{node.name}.inexact", up32(np.array(inexact * (1 + 2.0**-20) + CONSTANT_FLOOR)))
    return _moved_out(w, node, pair.upper, pair.lower, error)


def _moved_out(w: TwinWriter, node: Node, upper: str, lower: str, error: str) -> EndPair:
    if w.slack != 1:
        error = w.op("Mul", [error, w.constant(f"{node.name}.slack", np.float32(w.slack))], f"{node.name}.slackened")
    ends = [w.op(kind, [end, error], f"{node.name}.{which}") for kind, end, which in (("Add", upper, "upper"), ("Sub", lower, "lower"))]
    return EndPair(node.shape, upper=ends[0], lower=ends[1])


def _each(node: Node, c: TwinContext, x: EndPair) -> EndPair:
    """Adds an operator that rises and rounds nothing: to both ends, at once where they are stacked."""
    if x.stacked:
        return EndPair(node.shape, stacked=_alone(node, c, x.stacked, f"{node.name}.both"))
    upper, lower = (_alone(node, c, end, f"{node.name}.{which}") for which, end in (("up", x.upper), ("low", x.lower)))
    return EndPair(node.shape, upper=upper, lower=lower)


def _alone(node: Node, c: TwinContext, source: str, hint: str) -> str:
    form = onnx_form(node, c.writer)
    return c.writer.op(form.operator, [source, *form.inputs], hint, **form.attributes)


def _usable(node: DivConstant, divisor: Numbers, storage: str) -> Numbers:
    size: Numbers = np.abs(divisor)
    with np.errstate(divide="ignore"):
        if (size < SMALLEST_NORMAL[storage]).any() or (1 / size >= LARGEST[storage] / 2).any():
            raise InputError(f'node "{show(node.name)}" divides by a number that a device may read as zero; leave deploy.live out')
    return size


def _short(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a constant [channels, …] with one number for each channel where all of a channel are the same."""
    flat = value.reshape(len(value), -1)
    if value.ndim > 1 and (flat == flat[:, :1]).all():
        return flat[:, 0].reshape(-1, *[1] * (value.ndim - 1))
    return value
