"""The error that a contract allows for one rounding, one sum and one constant: the parts of every operator's error term.

See docs/numerics.md, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import frexp, inf

import torch
from torch import Tensor

from vsparse.bounds.float64 import RANGE64
from vsparse.bounds.wide_sums import WideSum
from vsparse.contract import LARGEST, SIGNIFICAND_BITS, SMALLEST_NORMAL, SMALLEST_SUBNORMAL, Contract
from vsparse.graph.ir import Graph, Node
from vsparse.graph.quantised import quantised_scales

# Multiply-accumulate units (tensor cores and their like) align the terms of a block to the largest and truncate: each term, the
# running sum included, loses up to one unit in the last place of the largest, twice the unit roundoff, and a block of k terms
# has k + 1 of them. Four unit roundoffs for each term cover every k >= 1.
MATRIX_UNIT_SLACK = 4
# Hardware reads float32 operands as tf32 by dropping the low bits, unless the kernel rounds them first.
TF32_TRUNCATES = 2


@dataclass(frozen=True)
class OneSum:
    """The terms of a sum that may be computed at once: affine operators, activations and constants, added or subtracted."""

    affine: tuple[Node, ...]
    values: tuple[str, ...]
    constants: tuple[str, ...]

    @property
    def added(self) -> int:
        """How many terms are added beside the affine operators' own."""
        return len(self.values) + len(self.constants)


@dataclass(frozen=True)
class SumKernels:
    """The error of one sum of products, as kernels on m, the largest magnitude of each input.

    E before storage = `error`·m + `error_constant`; Σ|w|m + |b| <= `size`·m + `size_constant`; `pad` is γ64 of the longest
    sum through this operator in either direction; `terms` [out] counts the roundings γ was taken of. The kernels are made when they are
    first asked for: bounds of a large operator use `wide` in their place.
    """

    make: Callable[[], tuple[Tensor, Tensor]]
    error_constant: Tensor
    size_constant: Tensor
    pad: float
    terms: Tensor
    wide: WideSum | None = None

    @cached_property
    def both(self) -> tuple[Tensor, Tensor]:
        """The kernels of the error and of the size."""
        return self.make()

    @property
    def error(self) -> Tensor:
        """What m is multiplied by for the error."""
        return self.both[0]

    @property
    def size(self) -> Tensor:
        """What m is multiplied by for Σ|w|m."""
        return self.both[1]

    def to(self, device: torch.device) -> SumKernels:
        """Returns the kernels on a device; `terms` stay on the processor, where γ is taken of them."""
        if device.type == "cpu":
            return self
        error, size = (kernel.to(device) for kernel in self.both)
        constants = {name: getattr(self, name).to(device) for name in ("error_constant", "size_constant")}
        return replace(self, make=lambda: (error, size), **constants)


class ErrorModel:
    """The numbers that a contract grants to each operation of a graph; `params` are the deployed weights in float64.

    `sums` holds the kernels of every sum of products by node, `fused` the sums that a runtime may make of several operators. `device` is
    where bounds are computed, once `place` has been called.
    """

    sums: Mapping[str, SumKernels]
    fused: Mapping[str, OneSum]

    def __init__(self, graph: Graph, contract: Contract, device: torch.device | str = "cpu") -> None:
        self.graph, self.contract, self.device = graph, contract, torch.device(device)
        self.params = {name: torch.tensor(value, dtype=torch.float64) for name, value in graph.params.items()}
        # Activations that the file keeps in float32 and the contract's kernels do not round to its storage format.
        self.unrounded = graph.unrounded if contract.name == "fp16-tensorrt" else frozenset[str]()
        self.storage_unit = 0.0 if contract.exact else 2.0 ** -SIGNIFICAND_BITS[contract.storage]
        self.storage_floor = 0.0 if contract.exact else self.floor(contract.storage)
        self.largest = min([RANGE64, *(LARGEST[f] for f in (contract.storage, contract.operand, contract.accumulate) if f != "real")])
        self.scales = quantised_scales(graph) if contract.integers else {}
        self.sums, self.fused = {}, {}

    def place(self) -> None:
        """Moves parameters and kernels, which are computed on the processor, to the device that bounds are computed on."""
        self.params = {name: value.to(self.device) for name, value in self.params.items()}
        self.sums = {name: kernels.to(self.device) for name, kernels in self.sums.items()}

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

    def relative_to_result(self, result: Tensor, size: Tensor) -> Tensor:
        """Returns the error of storing a result, u/(1 − u) rounded up times its magnitude, whether that is taken before or after."""
        unit = self.storage_unit
        return torch.minimum(result, size) * (unit * (1 + 2 * unit))

    def sum_unit(self) -> float:
        """Returns the relative error of one step of an accumulation of products."""
        operand, accumulate = SIGNIFICAND_BITS[self.contract.operand], SIGNIFICAND_BITS[self.contract.accumulate]
        return 2.0**-accumulate * (MATRIX_UNIT_SLACK if operand < accumulate else 1)

    def operand_unit(self) -> float:
        """Returns the relative error of reading an operand of a product in the format of operands; 0 where that holds what is stored."""
        contract = self.contract
        if contract.exact or not SIGNIFICAND_BITS[contract.operand] < SIGNIFICAND_BITS[contract.storage]:
            return 0.0
        return 2.0 ** -SIGNIFICAND_BITS[contract.operand] * (TF32_TRUNCATES if contract.operand == "tf32" else 1)

    def floor(self, name: str) -> float:
        """Returns η: the most that underflow costs one operation in a format."""
        return SMALLEST_NORMAL[name] if self.contract.subnormals == "flush" else SMALLEST_SUBNORMAL[name]
