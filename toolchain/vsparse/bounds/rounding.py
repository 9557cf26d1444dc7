"""The rounding of a device, and of the verifier itself, as one error term E per activation (docs/numerics.md, sections 3.1 and 5.1).

For each node E bounds |deployed value − exact operator on the deployed inputs| plus everything that float64 may lose while it
computes with that node. It is evaluated from an enclosure of the node's inputs, in float64, and rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import numpy as np
import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.error_model import ErrorModel
from vsparse.bounds.float64 import UNIT64, magnitude
from vsparse.bounds.formats import check_format
from vsparse.bounds.fusion import one_sums
from vsparse.bounds.rules import require, rules_of
from vsparse.contract import LARGEST, SMALLEST_NORMAL, Contract
from vsparse.errors import InputError
from vsparse.graph.ir import BatchNorm, Graph, Node


class Rounding(ErrorModel):
    """Error terms of a graph under a contract.

    `graph.params` are the deployed weights; bounds are computed with `rounding.params`, the same in float64. InputError when a
    weight is not finite, or cannot be stored in the contract's storage format, when batch normalisation is not folded, or for a node
    whose error is not known, by its name. Without `any_kernel` operators are executed one by one in floating point, and a quantised graph
    need not fit integer kernels.
    """

    def __init__(self, graph: Graph, contract: Contract, device: torch.device | str = "cpu", any_kernel: bool = True) -> None:
        if any_kernel:
            check_format(graph, contract)
        for node in graph.nodes:
            if isinstance(node, BatchNorm):
                raise InputError(
                    f'node "{node.name}" is a batch normalisation, which runtimes fold as they please; '
                    "`vsparse export MODEL` writes the network with it folded"
                )
        require(graph.nodes, "error")
        for name, value in graph.params.items():
            _check_storable(name, value, contract)
        super().__init__(graph, contract, device)
        # How many coefficients may be added up on their way through each activation.
        self._added = {name: float(len(readers)) for name, readers in graph.consumers().items()}
        sums = {}
        for node in graph.nodes:
            rules = rules_of(node)
            rules.check(node, self)
            self._added[node.name] += rules.overlap(node, [graph.shape_of(name) for name in node.inputs])
            kernels = rules.kernels(node, self)
            if kernels is not None:
                sums[node.name] = kernels
        self.sums = sums
        self.place()
        # Our own C stores each operator's result before the next one reads it.
        self.fused = one_sums(graph) if contract.order != "sequential" and any_kernel and not contract.exact else {}

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
        if self.graph.input in self.unrounded:
            error = torch.full_like(m, SMALLEST_NORMAL["fp32"])
        elif self.contract.storage not in ("real", "fp32"):
            error = (self.storage_unit * m + self.storage_floor) * (1 + 2.0**-48)
        elif self.contract.subnormals == "flush":
            error = torch.full_like(m, self.storage_floor)
        return self._checked(error, m + error)

    def error(self, node: Node, boxes: Mapping[str, Box], box: Box) -> Tensor:
        """Returns E [batch, *node.shape], float64, for activations within `boxes`; inf where the device may overflow.

        `boxes` holds the node's inputs, and those of the operators it may be fused with. `box` encloses the exact operator's
        value on these inputs, up to float64's rounding, or the deployed value itself.
        """
        return self._checked(*rules_of(node).error(node, self, boxes, box))

    def coefficient_error(self, name: str, boxes: Mapping[str, Box]) -> Tensor:
        """Returns what float64 may lose, for each unit of |coefficient|, while a row of coefficients passes through `name`.

        A dozen roundings at most (slopes of a relaxation, constants), and the sum of the coefficients of several readers or
        of overlapping windows; each is relative to the coefficient times the node's output or input. Sums through affine
        operators are in `error` already.
        """
        out = size = magnitude(boxes[name])
        if name != self.graph.input:
            for one in self.graph.node(name).inputs:
                size = size + magnitude(boxes[one]).flatten(1).amax(dim=1).view(-1, *[1] * (out.dim() - 1))
        return size * ((16.0 + self._added[name]) * UNIT64)

    def read_error(self, name: str, value: Tensor) -> Tensor:
        """Returns how far what is seen of an activation may be from the value that another kernel reads.

        Quantised: fl(s·k) from s·k, since kernels on integers read k itself. A float16 file: once more rounded, as a runtime may keep
        values in float32 between operators (docs/numerics.md, section 8).
        """
        if self.scales.get(name):
            return value.abs() * (2 * self.storage_unit)
        if self.graph.storage == "fp16" and not self.contract.exact:
            return value.abs() * (2 * self.storage_unit) + self.storage_floor
        return torch.zeros_like(value)

    def reads(self, node: Node) -> set[str]:
        """Returns the activations whose boxes `error` looks at: the node's inputs, and those of operators it may be fused with."""
        terms = self.fused.get(node.name)
        further = [name for one in terms.affine for name in one.inputs] + list(terms.values) if terms else []
        return {*node.inputs, *further}

    def _checked(self, error: Tensor, size: Tensor) -> Tensor:
        """Returns E, and inf where the magnitude `size` may reach the largest finite number of a format on the way, or is NaN."""
        # The margin of a factor covers the rounding of this sum and of operands on their way to another format.
        return torch.where((size * 1.02 < self.largest) & ~torch.isnan(error), error, inf)


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
