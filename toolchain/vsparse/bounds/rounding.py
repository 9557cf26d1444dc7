"""The rounding of a device, and of the verifier itself, as one error term E per activation (docs/numerics.md, sections 3.1 and 5.1).

For each node E bounds |deployed value − exact operator on the deployed inputs| plus everything that float64 may lose while it
computes with that node. It is evaluated from an enclosure of the node's inputs, in float64, and rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch
from math import frexp, inf, prod

import numpy as np
import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.formats import check_format
from vsparse.bounds.fusion import OneSum, one_sums
from vsparse.bounds.linear import Linear, forward, per_output, pool_weight
from vsparse.bounds.sequential import sequential_growth
from vsparse.contract import LARGEST, SIGNIFICAND_BITS, SMALLEST_NORMAL, SMALLEST_SUBNORMAL, Contract
from vsparse.errors import InputError
from vsparse.graph.ir import Add, AddConstant, Affine, AveragePool, BatchNorm, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu, Reshape
from vsparse.graph.quantised import quantised_scales

UNIT64 = 2.0**-53
# Magnitudes beyond this are treated as overflow: it keeps every float64 product far from its own overflow and underflow.
RANGE64 = 2.0**200
# Far above what float64 underflow can lose within RANGE64 (2^-1074 · 2^200 for each product), far below anything that matters.
TINY = 2.0**-700
# Multiply-accumulate units (tensor cores and their like) align the terms of a block to the largest and truncate: each term, the
# running sum included, loses up to one unit in the last place of the largest, twice the unit roundoff, and a block of k terms
# has k + 1 of them. Four unit roundoffs for each term cover every k >= 1.
MATRIX_UNIT_SLACK = 4
# What kernels on integers lose beside a float sum: operands fl(s·q), the scale of the result, its conversion (docs/numerics.md, section
# 7.2).
INTEGER_ROUNDINGS = 12
# |q| + |zero point| of a quantised activation is below this.
QUANTISED_REACH = 512
# Hardware reads float32 operands as tf32 by dropping the low bits, unless the kernel rounds them first.
TF32_TRUNCATES = 2


def gamma(n: float, u: float) -> float:
    """Returns γ_n = n·u / (1 − n·u), rounded up; inf where n·u >= 1 (Higham 2002, lemma 3.1)."""
    if u == 0:
        return 0.0
    return n * u / (1 - n * u) * (1 + 2.0**-48) if n * u < 1 - 2.0**-20 else inf


def magnitude(box: Box) -> Tensor:
    """Returns max(|lower|, |upper|), exact."""
    return torch.maximum(box[0].abs(), box[1].abs())


@dataclass(frozen=True)
class _Sum:
    """The error of one sum of products, as kernels on m, the largest magnitude of each input.

    E before storage = `error`·m + `error_constant`; Σ|w|m + |b| <= `size`·m + `size_constant`; `pad` is γ64 of the longest
    sum through this operator in either direction; `terms` [out] counts the roundings γ was taken of.
    """

    error: Tensor
    error_constant: Tensor
    size: Tensor
    size_constant: Tensor
    pad: float
    terms: Tensor


class Rounding:
    """Error terms of a graph under a contract.

    `graph.params` are the deployed weights; bounds are computed with `rounding.params`, the same in float64. InputError when a
    weight is not finite, or cannot be stored in the contract's storage format, or when batch normalisation is not folded.
    Without `any_kernel` operators are executed one by one in floating point, and a quantised graph need not fit integer kernels.
    """

    def __init__(self, graph: Graph, contract: Contract, device: torch.device | str = "cpu", any_kernel: bool = True) -> None:
        self.graph, self.contract = graph, contract
        if any_kernel:
            check_format(graph, contract)
        for node in graph.nodes:
            if isinstance(node, BatchNorm):
                raise InputError(
                    f'node "{node.name}" is a batch normalisation, which runtimes fold as they please; '
                    "`vsparse export MODEL` writes the network with it folded"
                )
        for name, value in graph.params.items():
            _check_storable(name, value, contract)
        self.params = {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in graph.params.items()}
        real = contract.exact
        self.storage_unit = 0.0 if real else 2.0 ** -SIGNIFICAND_BITS[contract.storage]
        self.storage_floor = 0.0 if real else _floor(contract.storage, contract)
        self._largest = min([RANGE64, *(LARGEST[f] for f in (contract.storage, contract.operand, contract.accumulate) if f != "real")])
        self._scales = quantised_scales(graph) if contract.integers else {}
        self._readers = {name: len(readers) for name, readers in graph.consumers().items()}
        # Our own C stores each operator's result before the next one reads it.
        self._fused = one_sums(graph) if contract.order == "any" and any_kernel and not real else {}
        self._sums = {node.name: self._sum(node) for node in graph.nodes if isinstance(node, Affine | AveragePool)}

    def check(self, params: Mapping[str, Tensor], box: Box) -> None:
        """Raises InputError unless `box` is float64 and `params` are the graph's own: nothing else may decide a verdict."""
        if box[0].dtype != torch.float64 or box[1].dtype != torch.float64:
            raise InputError(f"bounds that decide a verdict are computed in float64, and the box is {box[0].dtype}; convert it")
        for name, value in self.params.items():
            given = params.get(name)
            if given is not value and (given is None or given.dtype != torch.float64 or not torch.equal(given, value)):
                raise InputError(f'parameter "{name}" is not the deployed one in float64; pass rounding.params')

    def input_error(self, box: Box) -> Tensor:
        """Returns E of the input: what the device loses when it stores the float32 input in its format or reads as zero."""
        m = magnitude(box)
        error = torch.zeros_like(m)
        if self.contract.storage not in ("real", "fp32"):
            error = (self.storage_unit * m + self.storage_floor) * (1 + 2.0**-48)
        elif self.contract.subnormals == "flush":
            error = torch.full_like(m, self.storage_floor)
        return self._checked(error, m + error)

    def error(self, node: Node, boxes: Mapping[str, Box], box: Box) -> Tensor:
        """Returns E [batch, *node.shape], float64, for activations within `boxes`; inf where the device may overflow.

        `boxes` holds the node's inputs, and those of the operators it may be fused with. `box` encloses the exact operator's
        value on these inputs, up to float64's rounding, or the deployed value itself.
        """
        return self._checked(*operator_error(node, self, boxes, box))

    def coefficient_error(self, name: str, boxes: Mapping[str, Box]) -> Tensor:
        """Returns what float64 may lose, for each unit of |coefficient|, while a row of coefficients passes through `name`.

        A dozen roundings at most (slopes of a relaxation, constants), and the sum of the coefficients of several readers or
        of overlapping windows; each is relative to the coefficient times the node's output or input. Sums through affine
        operators are in `error` already.
        """
        out = magnitude(boxes[name])
        size, count = out, 16.0 + self._readers[name]
        if name != self.graph.input:
            node = self.graph.node(name)
            for one in node.inputs:
                size = size + magnitude(boxes[one]).flatten(1).amax(dim=1).view(-1, *[1] * (out.dim() - 1))
            count += prod(node.kernel) if isinstance(node, MaxPool) else 0
        return size * (count * UNIT64)

    def constant_error(self, value: float) -> float:
        """Returns how far a constant of an operator is from the storage format's number for it: 0 if exact, inf beyond the format."""
        if self.contract.exact or value == 0:
            return 0.0
        storage = self.contract.storage
        if abs(value) >= LARGEST[storage]:
            return inf
        significand = abs(frexp(value)[0]) * 2.0 ** SIGNIFICAND_BITS[storage]
        if abs(value) < SMALLEST_NORMAL[storage]:
            return self.storage_floor
        return 0.0 if significand == int(significand) else abs(value) * self.storage_unit

    def read_error(self, name: str, value: Tensor) -> Tensor:
        """Returns how far what is seen of an activation may be from the value that another kernel reads.

        Quantised: fl(s·k) from s·k, since kernels on integers read k itself. A float16 file: once more rounded, as a runtime may keep
        values in float32 between operators (docs/numerics.md, section 8).
        """
        if self._scales.get(name):
            return value.abs() * (2 * self.storage_unit)
        if self.graph.storage == "fp16" and not self.contract.exact:
            return value.abs() * (2 * self.storage_unit) + self.storage_floor
        return torch.zeros_like(value)

    def one_rounding(self, node: Node, boxes: Mapping[str, Box], box: Box, size: Tensor, lost: Tensor | float) -> tuple[Tensor, Tensor]:
        """Returns E and the magnitude of an operator whose result is rounded once, or summed up with operators it is fused with.

        `size` is the magnitude of its terms, `lost` what underflow may cost.
        """
        error = self._relative_to_result(magnitude(box) + 16 * UNIT64 * size, size) + lost
        if self.contract.integers:
            widest = QUANTISED_REACH * sum(self._scales[name] for name in node.inputs)
            error = error + self.storage_unit * (INTEGER_ROUNDINGS * size + 16 * widest)
        if node.name in self._fused:
            together, reach = self._fused_error(self._fused[node.name], boxes)
            error, size = torch.maximum(error, together), torch.maximum(size, reach)
        return (error + 16 * UNIT64 * size) * (1 + 2.0**-48) + TINY, size + error

    def _relative_to_result(self, result: Tensor, size: Tensor) -> Tensor:
        """Returns the error of storing a result, u/(1 − u) rounded up times its magnitude, whether that is taken before or after."""
        unit = self.storage_unit
        return torch.minimum(result, size) * (unit * (1 + 2 * unit))

    def sum_error(self, node: Linear, m: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """Returns E and the magnitude of a sum of products of inputs up to m in magnitude; `out` is the magnitude of the result."""
        terms = self._sums[node.name]
        up = 1 + 2.0**-30  # outward rounding of the evaluation itself: sums of non-negative terms, far shorter than 2^20
        accumulated = (forward(node, terms.error, m) + per_output(node, terms.error_constant)) * up
        size = (forward(node, terms.size, m) + per_output(node, terms.size_constant)) * up
        error = accumulated
        if self.contract.storage != self.contract.accumulate:
            error = (
                error + self._relative_to_result(out + terms.pad * size, size) + self.storage_unit * accumulated * 2 + self.storage_floor
            )
        # An average pool divides last, so the sum itself is what must not overflow.
        reach = size * prod(node.kernel) if isinstance(node, AveragePool) else size
        error = (error + terms.pad * size) * (1 + 2.0**-40) + TINY
        operand = m.flatten(1).amax(dim=1).view(-1, *[1] * (out.dim() - 1))
        return error, torch.maximum(reach + error, operand)

    def reads(self, node: Node) -> set[str]:
        """Returns the activations whose boxes `error` looks at: the node's inputs, and those of operators it may be fused with."""
        terms = self._fused.get(node.name)
        further = [name for one in terms.affine for name in one.inputs] + list(terms.values) if terms else []
        return {*node.inputs, *further}

    def _fused_error(self, terms: OneSum, boxes: Mapping[str, Box]) -> tuple[Tensor, Tensor]:
        """Returns E and the magnitude of one sum over the terms of affine operators and what is added to them, in any order.

        With N roundings in all, an operator's own error grows from γ_n to at most γ_N/γ_n times itself, as (1+γ_N)/(1+γ_n) <=
        γ_N/γ_n, and each added term loses γ_N of its magnitude. In the unfused execution E is the larger of this and its own.
        """
        accumulate = self.contract.accumulate
        unit, floor = _sum_unit(self.contract), _floor(accumulate, self.contract)
        count = sum(self._sums[node.name].terms for node in terms.affine) + float(terms.added + 1)
        growth = torch.tensor([gamma(n, unit) for n in torch.as_tensor(count).tolist()], dtype=torch.float64, device=self._device())
        up = 1 + 2.0**-30
        error = size = torch.zeros((), dtype=torch.float64, device=self._device())
        for node in terms.affine:
            one, m = self._sums[node.name], magnitude(boxes[node.inputs[0]])
            own = torch.tensor([gamma(n, unit) for n in one.terms.tolist()], dtype=torch.float64, device=m.device)
            ratio = per_output(node, torch.where(torch.isfinite(own), growth / own, torch.full_like(own, inf)))
            error = error + ratio * (forward(node, one.error, m) + per_output(node, one.error_constant))
            size = size + forward(node, one.size, m) + per_output(node, one.size_constant)
        others = [magnitude(boxes[name]) for name in terms.values] + [self.params[name].abs() for name in terms.constants]
        for other in others:
            error = error + per_output(terms.affine[0], growth) * other + 3 * floor
            size = size + other
        error, size = error * up, size * up
        if self.contract.storage != accumulate:
            error = error + 2 * self.storage_unit * (size + error) + self.storage_floor
        return error, size

    def _checked(self, error: Tensor, size: Tensor) -> Tensor:
        """Returns E, and inf where the magnitude `size` may reach the largest finite number of a format on the way, or is NaN."""
        # The margin of a factor covers the rounding of this sum and of operands on their way to another format.
        return torch.where((size * 1.02 < self._largest) & ~torch.isnan(error), error, inf)

    def _sum(self, node: Linear) -> _Sum:
        """Prepares the kernels of one affine node or average pool."""
        if isinstance(node, AveragePool):
            channels, window = node.shape[0], prod(node.kernel)
            weight = pool_weight(node, channels, torch.empty(0, dtype=torch.float64, device=self._device())) / window
            bias = torch.zeros(channels, dtype=torch.float64, device=weight.device)
            # The sum, the reciprocal of the window's size where it is multiplied by, and one more rounding (docs/numerics.md, section 3.1).
            rounded, fan_out = 3, prod(-(-k // s) for k, s in zip(node.kernel, node.stride, strict=True))
            survivors = torch.ones_like(weight)
        else:
            weight = self.params[node.weight].abs()
            bias = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
            bias = bias if node.bias is None else self.params[node.bias].abs()
            survivors = (weight != 0).to(torch.float64)
            rounded, fan_out = 1, _fan_out(node, survivors)
        count = survivors.flatten(1).sum(dim=1)
        contract = self.contract
        rounded += INTEGER_ROUNDINGS if contract.integers else 0
        units = SIGNIFICAND_BITS
        u_sum = 0.0
        if not contract.exact:
            u_sum = 2.0 ** -units[contract.accumulate] if isinstance(node, AveragePool) else _sum_unit(contract)
        u_operand = 0.0
        if not contract.exact and units[contract.operand] < units[contract.storage] and not isinstance(node, AveragePool):
            u_operand = 2.0 ** -units[contract.operand] * (TF32_TRUNCATES if contract.operand == "tf32" else 1)
        eta_sum = 0.0 if contract.exact else _floor(contract.accumulate, contract)
        # Operands lose something to underflow when they are converted, or when the hardware reads subnormal ones as zero.
        eta = 0.0 if contract.exact or (u_operand == 0 and contract.subnormals == "gradual") else _floor(contract.operand, contract)
        growth = torch.tensor([gamma(n + rounded, u_sum) for n in count.tolist()], dtype=torch.float64, device=weight.device)
        g, of_bias = growth.view(-1, *[1] * (weight.dim() - 1)), growth
        if contract.order == "sequential":
            g, of_bias = sequential_growth(survivors, u_sum)
        # Products of rounded or flushed operands: (|w|(1+u) + η)(m(1+u) + η) − |w|m, split into what m multiplies and what it does not.
        slope = weight * (2 * u_operand + u_operand**2) + survivors * (eta * (1 + u_operand))
        if (
            isinstance(node, AveragePool)
            and not contract.exact
            and contract.storage != contract.accumulate
            and frexp(prod(node.kernel))[0] != 0.5
        ):
            # As a depthwise convolution it has the weight 1/n as it is stored, which only for powers of two is exact.
            slope = slope + weight * self.storage_unit
        constant = ((weight * (1 + u_operand) + eta) * eta * survivors).flatten(1).sum(dim=1)
        up = 1 + 2.0**-40
        error = ((slope * (1 + g)) + weight * g) * survivors * up
        error_constant = ((1 + growth) * (constant + 2 * (count + rounded) * eta_sum) + of_bias * bias) * up
        error = torch.where(survivors.bool(), error, torch.zeros_like(error))  # inf · 0 must not turn a pruned weight into NaN
        longest = float(count.max()) if count.numel() else 0.0
        pad = gamma(max(longest, float(fan_out)) + 16, UNIT64)
        if contract.exact:
            # A float64 execution must lie within the bounds too (`executions`); a device's E holds its rounding many times over.
            pad += gamma(longest + 4, UNIT64)
        return _Sum(error, error_constant, weight * up, bias * up, pad, count + rounded)

    def _device(self) -> torch.device:
        return next(iter(self.params.values())).device if self.params else torch.device("cpu")


@singledispatch
def operator_error(node: Node, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    """Returns E and the largest magnitude on the way, each [batch, *node.shape], for one operator; arguments as for `Rounding.error`.

    One rule for each type of node; InputError where there is none.
    """
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, for which no rounding error is known')


@operator_error.register
def _(node: Affine | AveragePool, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    return rounding.sum_error(node, magnitude(boxes[node.inputs[0]]), magnitude(box))


@operator_error.register
def _(node: Relu | Reshape | MaxPool, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    out = magnitude(box)
    return torch.zeros_like(out), out


@operator_error.register
def _(node: Add, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    size = magnitude(boxes[node.inputs[0]]) + magnitude(boxes[node.inputs[1]])
    return rounding.one_rounding(node, boxes, box, size, 3 * rounding.storage_floor)


@operator_error.register
def _(node: AddConstant, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    size = magnitude(boxes[node.inputs[0]]) + rounding.params[node.constant].abs()
    return rounding.one_rounding(node, boxes, box, size, 3 * rounding.storage_floor)


@operator_error.register
def _(node: MulConstant, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    m, constant = magnitude(boxes[node.inputs[0]]), rounding.params[node.constant].abs()
    return rounding.one_rounding(node, boxes, box, m * constant, rounding.storage_floor * (m + constant + 2))


def _sum_unit(contract: Contract) -> float:
    """Returns the relative error of one step of an accumulation of products."""
    narrow = SIGNIFICAND_BITS[contract.operand] < SIGNIFICAND_BITS[contract.accumulate]
    return 2.0 ** -SIGNIFICAND_BITS[contract.accumulate] * (MATRIX_UNIT_SLACK if narrow else 1)


def _floor(name: str, contract: Contract) -> float:
    """Returns η: the most that underflow costs one operation."""
    return SMALLEST_NORMAL[name] if contract.subnormals == "flush" else SMALLEST_SUBNORMAL[name]


def _fan_out(node: Affine, survivors: Tensor) -> int:
    """Returns the largest number of outputs that one input reaches: the length of the sums of backward propagation."""
    if isinstance(node, Gemm):
        return int(survivors.sum(dim=0).max()) if survivors.numel() else 0
    assert isinstance(node, Conv)
    grouped = survivors.view(node.groups, -1, *survivors.shape[1:])
    return int(grouped.flatten(3).sum(dim=3).sum(dim=1).max()) if survivors.numel() else 0


def _check_storable(name: str, value: np.ndarray, contract: Contract) -> None:
    if value.dtype != np.float32:
        raise InputError(f'parameter "{name}" is {value.dtype}; deployed parameters are float32 arrays')
    if not np.isfinite(value).all():
        raise InputError(f'parameter "{name}" holds a value that is not finite; such a network cannot be certified')
    if not contract.exact and value.size and 1.02 * float(np.abs(value).max()) >= min(LARGEST[contract.storage], LARGEST[contract.operand]):
        raise InputError(f'parameter "{name}" reaches the largest number of {contract.operand}; such a network cannot be certified')
    if contract.storage in ("real", "fp32"):
        return
    format_ = {"fp16": torch.float16, "bf16": torch.bfloat16}[contract.storage]
    exact = torch.tensor(value)
    if not torch.equal(exact.to(format_).to(torch.float32), exact):
        raise InputError(
            f'parameter "{name}" is not representable in {contract.storage}; round the model to {contract.storage} before it is verified'
        )
