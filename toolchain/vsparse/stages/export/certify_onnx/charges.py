"""What an execution of the network may err by, operator by operator, as the bounds of the toolchain charge it (`vsparse.bounds`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from vsparse.bounds import Rounding
from vsparse.bounds.error_model import OneSum
from vsparse.bounds.float64 import gamma
from vsparse.bounds.linear import INTEGER_ROUNDINGS, forward
from vsparse.contract import contract
from vsparse.errors import InputError
from vsparse.graph.core import Graph
from vsparse.graph.operators.affine import Affine, Conv
from vsparse.graph.rules import onnx_form
from vsparse.graph.shapes import show
from vsparse.stages.export.certify_onnx.affine import ChargedSum, require_finite
from vsparse.stages.export.certify_onnx.rounded import SLOPE_FLOOR, UNIT, UP, Numbers
from vsparse.stages.export.certify_onnx.stored_sums import StorageRounding
from vsparse.stages.export.certify_onnx.writer import TwinWriter

# What errors may be of the terms of a sum, so that a reach bounds what the certifying file computes too (docs/numerics.md, section 15.2).
MOST_CHARGED = 2.0**-4


class Charges:
    """The errors of a network under its contract: in any order of summation, with the additions that a runtime may fuse.

    `storage` is what it costs to store a value in float16; None elsewhere, where rules charge that with what the file rounds itself.
    `integers` is what kernels on integers may lose beside that of each term of an operator on elements; 0 without such kernels. Errors of
    sums are multiplied by `slack`.
    """

    def __init__(self, graph: Graph, contract_name: str = "fp32", slack: float = 1.0) -> None:
        self.graph, self.slack = graph, slack
        rules = contract(contract_name)
        self.rounding = Rounding(graph, rules)
        # Bounds may charge storing relative to what is stored already, and so do these (docs/numerics.md, section 15.8).
        unit, floor = self.rounding.storage_unit, self.rounding.storage_floor
        self.integers = (INTEGER_ROUNDINGS + 1) * UNIT if rules.integers else 0.0
        self.storage = None if rules.storage == rules.accumulate else StorageRounding(unit * (1 + 4 * unit), floor * (1 + 4 * unit))

    def storage_of(self, name: str) -> StorageRounding | None:
        """Returns what it costs to store an activation; None where that is not rounded to another format than it is computed in."""
        return None if name in self.rounding.unrounded else self.storage

    def sum_of(self, node: Affine) -> ChargedSum:
        """Returns an affine node with its errors, those of longer sums that it may be a part of included.

        A runtime that adds N terms in one sum errs by at most γ_N/γ_n times what the node of n terms errs by, and by γ_N of what is added
        (docs/numerics.md, section 3.3); the first is charged here, the second at the addition.
        """
        graph, kernels = self.graph, self.rounding.sums[node.name]
        weight = graph.params[node.weight].astype(np.float64)
        bias = np.zeros(len(weight)) if node.bias is None else graph.params[node.bias].astype(np.float64)
        slope, constant = kernels.error.numpy() * UP, kernels.error_constant.numpy() * UP
        more, whole = np.zeros(len(weight)), 0.0
        for terms in self.rounding.fused.values():
            if any(part.name == node.name for part in terms.affine):
                more = more + self._gammas(self._terms_with(terms)) / self._gammas(kernels.terms.numpy()) * UP
                whole += 0.0 if self.storage is None else 2 * self.storage.unit
        more = 1 + more
        if self.storage is not None:  # what is stored holds the error of the sum
            more = more * (1 + 4 * self.storage.unit)
        slope, constant = slope * more.reshape(-1, *[1] * (weight.ndim - 1)), constant * more
        if self.storage is not None:  # and one sum is rounded relative to all of its terms
            slope, constant = slope + whole * np.abs(weight) * UP, constant + whole * np.abs(bias) * UP
        elif (slope > MOST_CHARGED * np.abs(weight) + SLOPE_FLOOR).any():
            raise InputError(f'node "{show(node.name)}" is a part of sums of too many terms for bounds in float32; leave deploy.live out')
        return ChargedSum(
            name=node.name,
            kind="Conv" if isinstance(node, Conv) else "Gemm",
            weight=weight,
            bias=bias,
            slope=slope * self.slack,
            constant=constant * self.slack,
            shape=node.shape,
            over=lambda rate, m: forward(node, torch.from_numpy(rate), torch.from_numpy(m)[None])[0].numpy(),
            groups=node.groups if isinstance(node, Conv) else 1,
            attributes=_attributes(node, graph),
        )

    def growth_of(self, terms: OneSum) -> float:
        """Returns γ of an addition and all terms that it may be one sum with."""
        return float(self._gammas(self._terms_with(terms)).max())

    def _terms_with(self, terms: OneSum) -> Numbers:
        """Returns how many roundings that γ is taken of, [out] or one number."""
        return np.asarray(sum(self.rounding.sums[part.name].terms.numpy() for part in terms.affine) + float(terms.added + 1), np.float64)

    def _gammas(self, terms: Numbers) -> Numbers:
        return np.array([gamma(float(n), self.rounding.sum_unit()) for n in np.atleast_1d(terms)], np.float64)


def in_float32(graph: Graph) -> Graph:
    """Returns the network as one of float32 numbers, for the rules that write its operators: bounds are computed in float32."""
    return replace(graph, storage="fp32", wide_sums=False, unrounded=frozenset())


def with_weight(one: ChargedSum, **changes: object) -> ChargedSum:
    """Returns the sum with other rows, once they are known to be finite."""
    changed: ChargedSum = replace(one, **changes)  # type: ignore[arg-type]
    require_finite(changed)
    return changed


class _Names(TwinWriter):
    """Stands in for the writer where only the attributes of an operator are asked for."""

    def param(self, name: str, transposed: bool = False) -> str:
        return name


def _attributes(node: Affine, graph: Graph) -> Mapping[str, object]:
    return onnx_form(node, _Names(in_float32(graph), 17)).attributes
