"""The error terms E of one network under one contract (docs/numerics.md, section 3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse_check.arithmetic import ContractArithmetic
from vsparse_check.arrays import FloatArray, Interval, largest
from vsparse_check.chain import chain_error, chain_work, in_chain
from vsparse_check.contracts import FORMATS
from vsparse_check.fusion import FusedSum, fusable_terms, fused_bound, fused_sum
from vsparse_check.model import Model
from vsparse_check.op import Op
from vsparse_check.operators import RULES
from vsparse_check.refusal import known, need
from vsparse_check.rules import ErrorContext
from vsparse_check.sums import SumError, roundings, sum_error

SUMS = ("affine", "average")  # kinds that add up products


class ErrorTerms:
    """E of every operator; Refuted where parameters are not of the contract's storage format."""

    def __init__(self, model: Model, contract: Mapping[str, str]) -> None:
        """Prepares what E needs: the errors of all sums of products, and the sums that may fuse."""
        self.model, self.budget = model, model.budget
        _check_quantisation(model, contract)
        for name in sorted(model.used - {""}):
            _check_format(name, model.parameters[name], contract["storage"])
        need(
            not model.half or contract["storage"] == "fp16",
            f"the model converts to float16, and the contract stores {contract['storage']}",
        )
        need(
            model.wide_sums or contract["name"] != "fp16-tensorrt",
            "the model leaves its sums to kernels, and the contract fp16-tensorrt is about others",
        )
        need(
            not model.wide_sums or contract["order"] != "chain",
            "the model types its sums as float32, and the contract's sums are in float16",
        )
        self.budget.spend(4 * model.work(1))
        self.arithmetic = ContractArithmetic(contract, bool(model.grids), terms_bound(model))
        self.sums = {op.output: self._sum_error(op) for op in model.ops if op.kind in SUMS}
        self.fused = self._fused_sums()
        # What is in float32 in the file stays so where kernels obey its types.
        typed = contract["name"] == "fp16-tensorrt"
        self.unrounded = model.unrounded if typed else frozenset[str]()

    @property
    def g(self) -> float:
        """Returns γ_K of float64, which covers every sum formed here."""
        return self.arithmetic.g

    def _sum_error(self, op: Op) -> SumError:
        """Returns the error of one sum of products by itself (docs/numerics.md, section 3.1)."""
        return sum_error(op, roundings(op, self.arithmetic), self.arithmetic)

    def _fused_sums(self) -> dict[str, FusedSum]:
        """Returns the sums that a runtime may fuse, by the addition that they end in.

        None in real arithmetic, and none in our own C, which stores each operator's result.
        """
        if not self.arithmetic.u or self.arithmetic.sequential:
            return {}
        made = {op.output: op for op in self.model.ops}
        reads = Counter([self.model.output, *(name for op in self.model.ops for name in op.inputs)])
        found = {}
        for op in self.model.ops:
            terms = fusable_terms(op, made, reads)
            if terms.products:
                found[op.output] = fused_sum(op, terms, self.arithmetic, self.budget)
        return found

    def _chain(self, op: Op, boxes: Mapping[str, Interval]) -> FloatArray | None:
        """Returns the error of one sum in its kernel's own order, where the contract states it."""
        if not in_chain(op, self.arithmetic):
            return None
        box = boxes[op.inputs[0]]
        self.budget.spend(chain_work(op, len(box.lower)))
        return chain_error(op, box, self.arithmetic)

    def of_input(self, box: Interval) -> FloatArray:
        """Returns E of the input [n, size]: u·m + η where it is stored below float32, η else.

        docs/numerics.md, section 3.1, last row of the table.
        """
        arithmetic, m = self.arithmetic, largest(box)
        u = 0.0 if arithmetic.storage == "fp32" else arithmetic.u
        eta = arithmetic.eta
        if self.model.input in self.unrounded:
            u, eta = 0.0, FORMATS["fp32"].eta
        return arithmetic.finite((u * m + eta) * (1 + 1e-9), m)

    def of(self, op: Op, boxes: Mapping[str, Interval], out: Interval) -> FloatArray:
        """Returns E [n, size] of an operator: |executed − exact operator on executed inputs| <= E.

        The float64 rounding of bounds through the operator is in it. `out` is the box of the
        result, exact or executed. Where a sum may reach the largest number of a format E is
        infinite, and proves nothing.
        """
        fused = self.fused.get(op.output)
        context = ErrorContext(
            arithmetic=self.arithmetic,
            inputs=[boxes[name] for name in op.inputs],
            out=out,
            sum_error=self.sums.get(op.output),
            fused=fused and fused_bound(fused, boxes, self.arithmetic),
            input_scales=self.model.tensors.quantised.scales(op.inputs),
            is_output=op.output == self.model.output,
            unrounded=op.output in self.unrounded,
            chain=self._chain(op, boxes),
        )
        return RULES[op.kind].error(op, context)


def terms_bound(model: Model) -> float:
    """Returns K: above the number of all terms that any bound of the network adds up.

    docs/checker.md, section 5, counts them.
    """
    longest = max((op.fan_in for op in model.ops), default=0)
    return 8.0 * (model.size_of_execution + longest) + 1000


def _check_quantisation(model: Model, contract: Mapping[str, str]) -> None:
    """Refuses a contract on integers for a network without, and the other way round."""
    fits = contract["operand"] == "real" or bool(model.grids) == (contract["operand"] == "int8")
    kind = "" if model.grids else "un"
    known(fits, f"the contract {contract['name']} is not about {kind}quantised models")
    why = model.tensors.quantised.unfit.get(contract["name"], "")
    need(not why, f"the model {why}, which the contract {contract['name']} is not about")


def _check_format(name: str, value: NDArray[Any], storage: str) -> None:
    """Refuses a parameter that the storage format does not hold: nothing is rounded silently."""
    if storage == "fp16":
        holds = bool((value.astype(np.float16) == value).all())
    else:
        low_bits = value.astype(np.float32).view(np.uint32) & (0xFFFF if storage == "bf16" else 0)
        holds = value.dtype == np.float32 and not low_bits.any()
    need(
        holds,
        f'parameter "{name:.60}" is no number of the format {storage} that the contract stores',
    )
