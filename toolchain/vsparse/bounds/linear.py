"""Operators that are sums of products: every rule is derived from the forward application of weights and its transpose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from vsparse.bounds.affine_forms import UP, AffineForm, ZonotopePass, spread_of
from vsparse.bounds.backward import CrownPass
from vsparse.bounds.ball import Box
from vsparse.bounds.chain import any_order
from vsparse.bounds.error_model import ErrorModel, SumKernels
from vsparse.bounds.float64 import TINY, gamma, gamma64, magnitude
from vsparse.bounds.rules import BoundRules, Params, rules_of
from vsparse.bounds.sequential import sequential_growth
from vsparse.bounds.wide_sums import is_wide, magnitude_sums, whole_float32, wide_sum
from vsparse.contract import SIGNIFICAND_BITS
from vsparse.graph.ir import Node

N = TypeVar("N", bound=Node)
# What kernels on integers lose beside a float sum: operands fl(s·q), the scale of the result, its conversion (docs/numerics.md, section
# 7.2).
INTEGER_ROUNDINGS = 12


class SumOfProducts(BoundRules[N]):
    """y = W·x + b: a subclass defines W and b (`weight`, `bias`), and how any weight of that shape is applied and transposed.

    The error of the sum is the same whatever the order: docs/numerics.md, section 3.1 (Higham 2002, section 3.1).
    """

    linear: ClassVar[bool] = True
    # Roundings beside those of the n − 1 additions of n products, and whether the products are ones that matrix units may compute.
    roundings: ClassVar[int] = 1
    multiplies: ClassVar[bool] = True

    def weight(self, node: N, params: Params, like: Tensor) -> Tensor:
        """Returns W, of the dtype of `params`, or of `like` where it is no parameter."""
        raise NotImplementedError

    def bias(self, node: N, params: Params) -> Tensor | None:
        """Returns b [out], None where there is none."""
        return None

    def forward(self, node: N, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns `weight`, W or |W| or a kernel of error coefficients, applied to x [batch, *input shape], plus bias [out]."""
        raise NotImplementedError

    def transposed(self, node: N, weight: Tensor, a: Tensor, input_shape: tuple[int, ...]) -> Tensor:
        """Returns the transpose of `forward` applied to a [batch, *output shape]: [batch, *input_shape]."""
        raise NotImplementedError

    def per_output(self, node: N, value: Tensor) -> Tensor:
        """Returns value [out] viewed so that it broadcasts against one sample's output."""
        return value.view(-1, *(1 for _ in node.shape[1:]))

    def fan_out(self, node: N, survivors: Tensor) -> int:
        """Returns the largest number of outputs that one input reaches: the length of the sums of backward propagation."""
        raise NotImplementedError

    def weight_unit(self, node: N, model: ErrorModel) -> float:
        """Returns the relative error of a weight that is computed and not stored; 0 where the weight is a parameter."""
        return 0.0

    def divisor(self, node: N) -> int:
        """Returns what the sum itself, before a division at its end, is larger by: it is what must not overflow."""
        return 1

    def interval(self, node: N, params: Params, inputs: list[Box]) -> Box:
        """The centre by W and the radius by |W| (Gowal et al., arXiv 1810.12715, equations 5 and 6)."""
        lower, upper = inputs[0]
        half = self.weight(node, params, lower) * 0.5
        centre = self.forward(node, half, lower + upper, self.bias(node, params))
        radius = self.forward(node, half.abs(), upper - lower)
        return centre - radius, centre + radius

    def backward(self, node: N, a: Tensor, state: CrownPass) -> None:
        source = node.inputs[0]
        shape = state.graph.shape_of(source)
        weight, bias = self.weight(node, state.params, a), self.bias(node, state.params)
        if bias is not None:
            state.add(a, self.per_output(node, bias).expand(node.shape).reshape(1, -1))
        batch, count = a.shape[:2]
        state.pass_on(source, self.transposed(node, weight, a.reshape(batch * count, *node.shape), shape).reshape(batch, count, -1))

    def zonotope(self, node: N, inputs: list[AffineForm], box: Box, state: ZonotopePass) -> AffineForm:
        (form,) = inputs
        weight, bias = self.weight(node, state.params, form.centre), self.bias(node, state.params)
        symbols = self.forward(node, weight, form.symbols.flatten(0, 1)).view(*form.symbols.shape[:2], *node.shape)
        size, rest = self.forward(node, weight.abs(), torch.cat([form.reach, form.rest])).chunk(2)
        if bias is not None:
            size = size + self.per_output(node, bias.abs())
        # γ of one more than the fan-in for each of centre and symbols, and some to spare (Higham 2002, section 3.1).
        charged = size * (gamma64(weight[0].numel() + 16, size.device) * UP)
        return AffineForm(self.forward(node, weight, form.centre, bias), symbols, rest * UP + charged + TINY, spread_of(symbols))

    def error(self, node: N, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        m, out = magnitude(boxes[node.inputs[0]]), magnitude(box)
        terms = model.sums[node.name]
        accumulated, size = self.error_sums(node, model, m)
        error = accumulated
        if model.contract.storage != model.contract.accumulate and node.name not in model.unrounded:
            error = (
                error + model.relative_to_result(out + terms.pad * size, size) + model.storage_unit * accumulated * 2 + model.storage_floor
            )
        divisor = self.divisor(node)
        reach = size * divisor if divisor != 1 else size
        error = (error + terms.pad * size) * (1 + 2.0**-40) + TINY
        operand = m.flatten(1).amax(dim=1).view(-1, *[1] * (out.dim() - 1))
        return error, torch.maximum(reach + error, operand)

    def error_sums(self, node: N, model: ErrorModel, m: Tensor) -> tuple[Tensor, Tensor]:
        """Returns E before storage and Σ|w|m + |b|, rounded up, for inputs of magnitude m [batch, *input shape]."""
        terms = model.sums[node.name]
        up = 1 + 2.0**-30  # outward rounding of the evaluation itself: sums of non-negative terms, far shorter than 2^20
        if terms.wide is not None and whole_float32():
            wide, sums = terms.wide, magnitude_sums(node, terms.wide, m)
            most = m.flatten(1).amax(dim=1).view(-1, *[1] * len(node.shape))
            error = sums * self.per_output(node, wide.factor) + self.per_output(node, wide.floor) * most
            return (error + self.per_output(node, terms.error_constant)) * up, (sums + self.per_output(node, terms.size_constant)) * up
        accumulated = (self.forward(node, terms.error, m) + self.per_output(node, terms.error_constant)) * up
        size = (self.forward(node, terms.size, m) + self.per_output(node, terms.size_constant)) * up
        return accumulated, size

    def kernels(self, node: N, model: ErrorModel) -> SumKernels:
        contract = model.contract
        weight = self.weight(node, model.params, torch.empty(0, dtype=torch.float64)).abs()
        given = self.bias(node, model.params)
        bias = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device) if given is None else given.abs()
        survivors = (weight != 0).to(torch.float64)
        count = survivors.flatten(1).sum(dim=1)
        rounded = self.roundings + (INTEGER_ROUNDINGS if contract.integers else 0)
        u_sum = u_operand = 0.0
        if not contract.exact:
            u_sum = model.sum_unit() if self.multiplies else 2.0 ** -SIGNIFICAND_BITS[contract.accumulate]
            u_operand = model.operand_unit() if self.multiplies else 0.0
        eta_sum = 0.0 if contract.exact else model.floor(contract.accumulate)
        # Operands lose something to underflow when they are converted, or when the hardware reads subnormal ones as zero.
        eta = 0.0 if contract.exact or (u_operand == 0 and contract.subnormals == "gradual") else model.floor(contract.operand)
        # γ covers every roundoff, and the smaller bound one to nearest (docs/numerics.md, section 8.2); averages have further roundings.
        grows = any_order if contract.rounds_partial_sums and self.multiplies else gamma
        growth = torch.tensor([grows(n + rounded, u_sum) for n in count.tolist()], dtype=torch.float64, device=weight.device)
        g, of_bias = growth.view(-1, *[1] * (weight.dim() - 1)), growth
        if contract.order == "sequential":
            g, of_bias = sequential_growth(survivors, u_sum)
        # Products of rounded or flushed operands: (|w|(1+u) + η)(m(1+u) + η) − |w|m, split into what m multiplies and what it does not.
        relative, absolute = 2 * u_operand + u_operand**2, eta * (1 + u_operand)
        of_weight = self.weight_unit(node, model)
        constant = ((weight * (1 + u_operand) + eta) * eta * survivors).flatten(1).sum(dim=1)
        up = 1 + 2.0**-40

        def make() -> tuple[Tensor, Tensor]:
            return self._kernels(node, model, g, relative, absolute)

        if contract.storage != contract.accumulate:  # a bias that is subnormal in the storage format may be read as zero
            constant = constant + torch.where(bias < model.storage_floor, bias, torch.zeros_like(bias))
        error_constant = ((1 + growth) * (constant + 2 * (count + rounded) * eta_sum) + of_bias * bias) * up
        longest = float(count.max()) if count.numel() else 0.0
        pad = gamma64(max(longest, float(self.fan_out(node, survivors))) + 16, model.device)
        if contract.exact:
            # A float64 execution must lie within the bounds too (`executions`); a device's E holds its rounding many times over.
            pad += gamma64(longest + 4, model.device)
        if not is_wide(node, contract, model.device, weight):
            both = make()
            return SumKernels(lambda: both, error_constant, bias * up, pad, count + rounded)
        factor = (((relative + of_weight) * (1 + growth) + growth) * up) * up
        wide = wide_sum(weight, factor, absolute * (1 + growth) * count * up * up, error_constant, bias * up, pad)
        return SumKernels(make, error_constant, bias * up, pad, count + rounded, wide)

    def _kernels(self, node: N, model: ErrorModel, growth: Tensor, relative: float, absolute: float) -> tuple[Tensor, Tensor]:
        """Returns what the magnitudes of the inputs are multiplied by for E and for Σ|w|m: [out, …] each."""
        weight = self.weight(node, model.params, torch.empty(0, dtype=torch.float64)).abs()
        survivors, up = (weight != 0).to(torch.float64), 1 + 2.0**-40
        slope = weight * relative + survivors * absolute
        of_weight = self.weight_unit(node, model)
        if of_weight:
            slope = slope + weight * of_weight
        error = ((slope * (1 + growth)) + weight * growth) * survivors * up
        # inf · 0 must not turn a pruned weight into NaN
        return torch.where(survivors.bool(), error, torch.zeros_like(error)), weight * up


def sum_rules(node: Node) -> SumOfProducts[Node]:
    """Returns the rules of a node that is a sum of products."""
    rules = rules_of(node)
    assert isinstance(rules, SumOfProducts), node
    return rules


def forward(node: Node, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns weight applied to x [batch, *input shape] as the node lays it out, plus bias [out]; x is zero in the padding."""
    return sum_rules(node).forward(node, weight, x, bias)


def per_output(node: Node, value: Tensor) -> Tensor:
    """Returns value [out] viewed so that it broadcasts against one sample's output."""
    return sum_rules(node).per_output(node, value)


def transposed(node: Node, weight: Tensor, a: Tensor, input_shape: tuple[int, ...]) -> Tensor:
    """Returns the transpose of `forward` applied to a [batch, *output shape]: [batch, *input_shape]."""
    return sum_rules(node).transposed(node, weight, a, input_shape)
