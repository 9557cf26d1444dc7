"""What an execution within a contract may lose at each operator, and what float64 may lose here: E of docs/numerics.md, sections 3 and 5.

Notation: u is the unit roundoff of a format and η its smallest normal number (all contracts but `real` allow flushing to zero),
γ_n = n·u / (1 − n·u). `g` is γ_K in float64 with K above the number of all terms that any bound adds up, so one factor covers every
sum formed here (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., lemma 3.1 and section 3.1).
"""

from __future__ import annotations

from collections import Counter
from math import prod

import numpy as np

from vsparse_check.limits import CALL, ELEMENT
from vsparse_check.model import Network
from vsparse_check.op import Array, Op
from vsparse_check.refusal import known, need

Box = tuple[Array, Array]
FORMATS = {  # unit roundoff, smallest normal number, what counts as overflow: below 2^128, which keeps float64 away from its own
    "real": (0.0, 0.0, 2.0**100),
    "fp32": (2.0**-24, 2.0**-126, 2.0**100),
    "tf32": (2.0**-11, 2.0**-126, 2.0**100),
    "fp16": (2.0**-11, 2.0**-14, 65504.0),
    "bf16": (2.0**-8, 2.0**-126, 2.0**100),
    "int8": (2.0**-24, 2.0**-126, 2.0**100),  # operands only: integers times a float32 scale
}
FIELDS = ("name", "storage", "operand", "accumulate", "order", "convolution", "subnormals")
CONTRACTS = {
    line.split()[0]: dict(zip(FIELDS, line.split(), strict=True))
    for line in (
        "real real real real any direct gradual",
        "fp32 fp32 fp32 fp32 any direct flush",
        "tf32 fp32 tf32 fp32 any direct flush",
        "fp16 fp16 fp16 fp32 any direct flush",
        "fp16-accumulate fp16 fp16 fp16 any direct flush",
        "bf16 bf16 bf16 fp32 any direct flush",
        "sequential fp32 fp32 fp32 sequential direct flush",
        "int8 fp32 int8 fp32 any direct flush",
    )
}
# Of the exact sigmoid and tanh, stored (docs/numerics.md, section 3.2), and of float64's own.
FUNCTION_ERROR = {"real": 0.0, "fp32": 2.0**-19, "fp16": 2.0**-9, "bf16": 2.0**-6}
FUNCTION_ERROR_64 = 2.0**-44
SIGNIFICAND = {"fp32": 24, "fp16": 11, "bf16": 8}
FLOOR = 1e-100  # far above what float64 underflow loses anywhere below overflow


def largest(box: Box) -> Array:
    """Returns the largest magnitude in each interval."""
    return np.asarray(np.maximum(np.abs(box[0]), np.abs(box[1])))


def dot(a: Array, b: Array) -> Array:
    """Returns the products [r] of rows a [r, size] with b [1, size] or [r, size]."""
    return np.asarray(a @ b[0] if len(b) == 1 else np.einsum("ps,ps->p", a, b))


class Rounding:
    """The error terms of one network under one contract; Refused where its parameters are not of the contract's storage format."""

    def __init__(self, network: Network, contract: dict[str, str]) -> None:
        self.budget = network.budget
        self.storage, operand, accumulate = (contract[key] for key in FIELDS[1:4])
        self.u, self.eta, a = FORMATS[self.storage]
        (u_operand, self.eta_operand, b), (self.u_pool, self.eta_sum, c) = FORMATS[operand], FORMATS[accumulate]
        # tf32 may be truncated instead of rounded. Matrix units align a block of products to the largest and truncate: a term loses up
        # to 2u of it, and a block of k terms has k + 1 of them, so 4u for each term covers every k.
        self.u_operand = 0.0 if u_operand <= self.u else u_operand * (2 if operand == "tf32" else 1)
        self.u_sum = self.u_pool * (4 if u_operand > self.u_pool else 1)
        self.greatest = a
        self.again, self.limit, self.sequential = self.storage != accumulate, min(a, b, c), contract["order"] == "sequential"
        fits = operand == "real" or bool(network.grids) == (operand == "int8")
        known(fits, f"the contract {contract['name']} is not about {'' if network.grids else 'un'}quantised models")
        self.grids, self.output = network.grids, network.output
        for name, value in ((name, network.parameters[name]) for name in sorted(network.used - {""})):
            if self.storage == "fp16":
                holds = (value.astype(np.float16) == value).all()
            else:
                low = value.astype(np.float32).view(np.uint32) & (0xFFFF if self.storage == "bf16" else 0)
                holds = value.dtype == np.float32 and not low.any()
            need(holds, f'parameter "{name:.60}" is no number of the format {self.storage} that the contract stores')
        need(not network.half or self.storage == "fp16", f"the model converts to float16, and the contract stores {self.storage}")
        network.budget.spend(4 * network.work(1))
        fans = [op.weight.size // len(op.weight) for op in network.ops if op.kind == "linear"]
        k = 8.0 * (prod(network.shape) + sum(prod(op.shape) for op in network.ops) + max(fans, default=0)) + 1000
        self.g = k * 2.0**-53 / (1 - k * 2.0**-53) * 1.01
        self.made = {op.output: op for op in network.ops}
        self.reads = Counter([network.output, *(name for op in network.ops for name in op.inputs)])
        self.kernels = {op.output: self._kernel(op, self._count(op)) for op in network.ops if op.form in ("sum", "pool")}
        self.fused = {op.output: found for op in network.ops if self.u and not self.sequential and (found := self._one_sum(op))[0]}

    def _count(self, op: Op) -> Array:
        """Returns the roundings in a row of a sum, by channel: one for each non-zero weight (a zero is added exactly), one for the bias.

        A pool has two more: of the reciprocal of its size and of the product with it. In quantised models parameters and inputs are
        rounded to floats, or a sum of integers is converted and scaled, which costs 12 more at most.
        """
        more = (3.0 if op.form == "pool" else 1.0) + (12 if self.grids else 0)
        return np.asarray((op.weight != 0).reshape(op.shape[0], -1).sum(axis=1) + more)

    def _gamma(self, n: Array, u: float) -> Array:
        return np.asarray(np.where(n * u < 0.99, n * u / (1 - n * u), np.inf))

    def _kernel(self, op: Op, n: Array) -> tuple[Array, Array]:
        """Returns (kernel, constant): kernel · m + constant bounds the error of the sum z = W·x + b of n terms for all |x| <= m.

        Converted or flushed operands make a product wrong by at most (|w|(1+u) + η)(m(1+u) + η) − |w|m, and n roundings in a row the
        sum of products and bias by γ_n of their magnitudes (Higham 3.1); underflow of products and sums costs 2η each.
        """
        w, eta, (u, u_sum) = np.abs(op.weight), self.eta_operand, (0.0, self.u_pool) if op.form == "pool" else (self.u_operand, self.u_sum)
        w, gamma = w.reshape(op.shape[0], -1), self._gamma(n, u_sum)[:, None]
        each, of_bias = gamma, gamma
        if self.sequential:  # the bias first, then the k non-zero weights in order: product j meets k − j + 2 roundings, the bias k
            terms = (w > 0).sum(axis=1, keepdims=True)
            each, of_bias = self._gamma(terms - np.cumsum(w > 0, axis=1) + 2, u_sum), self._gamma(terms, u_sum)
        # 1 / window may be stored as the weight of a convolution, and is exact there for powers of two.
        stored = self.u if op.form == "pool" and self.again and np.frexp(prod(op.kernel))[0] != 0.5 else 0.0
        kernel = np.where(w > 0, (w * (2 * u + u * u + stored) + eta * (1 + u)) * (1 + gamma) + w * each, 0.0)
        rest = np.where(w > 0, (w * (1 + u) + eta) * eta, 0.0).sum(axis=1) + 2 * n * self.eta_sum
        rest = rest * (1 + gamma[:, 0])
        rest, of_bias = (np.repeat(value, prod(op.shape[1:])) for value in (rest, of_bias[:, 0]))
        return kernel.reshape(op.weight.shape), rest + np.where(op.bias == 0, 0, of_bias * np.abs(op.bias))

    def _one_sum(self, op: Op) -> tuple[list[tuple[Op, Array, Array]], list[str], list[Array], Array]:
        """Returns what a runtime may add up in one sum at an addition: operators with kernels, activations, |constants|; and γ_N.

        A fused kernel may start its accumulator with the residual, so that every partial sum is as large as all terms together: with
        N roundings in all, Higham 3.1 bounds that sum by γ_N times the sum of all magnitudes. Only what nothing else reads is fused.
        """
        linear, values, constants = list[Op](), list[str](), list[Array]()
        pending = [op] if op.kind == "add" or op.form == "shift" else []
        while pending:
            one = pending.pop()
            constants += [np.abs(one.bias)] if one.form == "shift" else []
            for name in one.inputs:
                producer = self.made.get(name)
                if producer is None or self.reads[name] > 1 or (producer.kind != "add" and producer.form not in ("sum", "shift", "neg")):
                    values.append(name)
                else:
                    (linear if producer.form == "sum" else pending).append(producer)
        # By element: a change of shape may lie between an operator and the addition.
        terms = (np.repeat(self._count(one), one.size // one.shape[0]) for one in linear)
        n = sum(terms, np.zeros(op.size)) + len(values) + len(constants) + 1
        self.budget.spend(sum(CALL + 5 * ELEMENT * (one.weight.size + one.size) for one in linear))
        self.budget.hold(sum(8.0 * (2 * one.weight.size + one.size) for one in linear))
        kernels = [(one, *self._kernel(one, n.reshape(one.shape[0], -1).max(axis=1))) for one in linear]
        return kernels, values, constants, self._gamma(n, self.u_sum)

    def stored_input(self, box: Box) -> Array:
        """Returns E of the input [n, size]: one rounding where the device stores it in a format below float32, and flushing."""
        m = largest(box)
        return self._finite(((0.0 if self.storage == "fp32" else self.u) * m + self.eta) * (1 + 1e-9), m)

    def _finite(self, error: Array, reach: Array) -> Array:
        return np.asarray(np.where((reach + error) * 1.02 < self.limit, error, np.inf))

    def error(self, op: Op, boxes: dict[str, Box], out: Box) -> Array:
        """Returns E [n, size]: |executed − exact operator on executed inputs|, and the float64 rounding of bounds through this operator.

        `out` is the box of the result, exact or executed: one rounding costs at most u·|exact| and u/(1 − u)·|executed|. Where a sum may
        reach the largest number of a format E is infinite, and proves nothing.
        """
        m = largest(boxes[op.inputs[0]])
        if op.kind == "linear" and op.form not in ("div", "neg"):
            return self._of_sum(op, boxes, m, _magnitude(op, m), out)
        if op.kind == "add":
            return self._of_sum(op, boxes, m, m + largest(boxes[op.inputs[1]]), out)
        if op.kind == "curve":
            return self._of_curve(op, boxes[op.inputs[0]], m)
        if op.form == "div":
            return self._of_division(op, m)
        # Exact; g pays for coefficients that are multiplied or added on the way back.
        rounded = 2 * self.u * largest(out) if op.kind == "quant" and op.output == self.output else 0.0  # to float; else readers pay
        if op.kind == "maxpool":
            return self.g * op.largest_view(m, 0.0)
        if op.kind == "move":
            padding = self.of_constant(op.ends[0]) if op.form == "move" else 0.0
            return self.g * largest(out) + np.where(op.bias != 0, padding, 0.0)
        return self.g * m + rounded

    def of_constant(self, value: float) -> float:
        """Returns how far a constant may be from the storage format's number for it: 0 where that is exact, inf beyond the format."""
        if not self.u or value == 0:
            return 0.0
        if abs(value) >= self.greatest:
            return np.inf
        if abs(value) < self.eta:
            return self.eta
        significand = np.frexp(abs(value))[0] * 2.0 ** SIGNIFICAND[self.storage]
        return 0.0 if significand == np.floor(significand) else abs(value) * self.u

    def _of_curve(self, op: Op, box: Box, m: Array) -> Array:
        """Returns E of a function of each element (docs/numerics.md, sections 3.1 and 3.2).

        Leaky ReLU: γ_1·|slope·x| + 3η where x may be negative, γ_2 where storage is not the accumulator's format, one more and the slope's
        own rounding where the format does not hold the slope. Clip: the rounding of its ends. Sigmoid and tanh: what is assumed.
        """
        if op.form == "leaky":
            (slope,), negative = op.ends, np.maximum(-box[0], 0)
            inexact = self.of_constant(slope)
            gamma = float(self._gamma(np.array(1.0 + self.again + (inexact > 0)), self.u))
            lost = np.where(negative > 0, (3 + inexact) * self.eta, 0.0)
            error = gamma * slope * negative + 2 * inexact * negative + lost
        elif op.form == "clip":
            # An end beyond the format clips nothing there.
            ends = (
                0.0 if np.isinf(end) or side * end >= self.greatest else self.of_constant(end)
                for end, side in zip(op.ends, (-1, 1), strict=True)
            )
            error = np.full_like(m, max(ends))
        else:
            known(self.storage in FUNCTION_ERROR, f"no error of {op.form} is assumed under a contract that stores {self.storage}")
            error = np.full_like(m, FUNCTION_ERROR[self.storage] + FUNCTION_ERROR_64)
        return self._finite((error + self.g * m) * (1 + 1e-9) + FLOOR, m)

    def _of_division(self, op: Op, m: Array) -> Array:
        """Returns E of x / c: γ_2·|x/c| + 2η(m + 1 + 1/|c|), γ_3 where storage is not the accumulator's format.

        It covers one correctly rounded division, and a rounded reciprocal with a multiplication; infinite where c may be flushed to zero
        or 1/c overflows.
        """
        inverse = np.abs(op.weight)
        size = m * inverse
        gamma = float(self._gamma(np.array(2.0 + self.again), self.u))
        error = (gamma * size + 2 * self.eta * (m + 1 + inverse)) * (1 + 1e-9) + self.g * size + FLOOR
        usable = not self.u or (op.ends[0] >= self.eta and 2 * inverse.max() < self.greatest)
        return self._finite(error if usable else np.full_like(m, np.inf), np.maximum(m, size))

    def _of_sum(self, op: Op, boxes: dict[str, Box], m: Array, size: Array, out: Box) -> Array:
        """Returns E of what adds: sums of products, pools, additions and operations with one rounding, alone or in one fused sum."""
        once = self.u * (1 + 2 * self.u) * np.minimum(largest(out), size)
        if op.output in self.kernels:
            error = op.forward(self.kernels[op.output][0], m) + self.kernels[op.output][1]
            error = error * (1 + 2 * self.u) + once + self.eta if self.again else error
        else:
            error = once + self.eta * (m + np.abs(op.weight) + 2 if op.form == "scale" else 3)
            if self.grids:  # QLinearAdd: at most 6 roundings of each term scale · q / scale' with |q|, |zero point| <= 255
                error = error + self.u * (12 * size + 2**13 * sum(self.grids[name][0] for name in op.inputs if name in self.grids))
        if op.output in self.fused:
            linear, values, constants, growth = self.fused[op.output]
            added = [*constants, *(largest(boxes[name]) for name in values)]
            size = sum(added, np.zeros(1))
            one_sum = growth * size + 3 * self.eta_sum * len(added)
            for one, kernel, rest in linear:
                x = largest(boxes[one.inputs[0]])
                one_sum, size = one_sum + one.forward(kernel, x) + rest, size + _magnitude(one, x)
            error = np.maximum(error, one_sum * (1 + 2 * self.u) + once + self.eta if self.again else one_sum)
        reach = np.maximum(size * (prod(op.kernel) if op.form == "pool" else 1), m.max(axis=1, keepdims=True))
        return self._finite((error + self.g * size) * (1 + 1e-6) + FLOOR, reach)


def _magnitude(op: Op, m: Array) -> Array:
    """Returns Σ|w|m + |b|."""
    return op.forward(np.abs(op.weight), m) + np.abs(op.bias)
