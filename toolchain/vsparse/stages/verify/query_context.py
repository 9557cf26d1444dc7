"""What all cases of a query share: the network, its runtime, limits, and the decision whether an input is a witness."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import inf, isfinite
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.answer import Witness
from vsparse.bounds import Box, Rounding, crown, interval, last_layer_folding, paths
from vsparse.compute_device import to_host
from vsparse.contract import Contract
from vsparse.graph import Graph
from vsparse.stages.verify.deployed import Runtime
from vsparse.stages.verify.query_specification import rounded_away, rows_of
from vsparse.vnnlib import Case, Conjunction, InputBox, Query, decimal, rounded_up, satisfied


class QueryContext:
    """State shared by all cases: the network, its runtime, limits, the device that bounds are computed on, and what was found."""

    def __init__(
        self,
        model: bytes,
        graph: Graph,
        query: Query,
        contract: Contract,
        deadline: float,
        memory_bytes: int,
        jobs: int,
        seed: int,
        progress: Callable[[int], None] | None,
        found: Callable[[Witness], None] | None,
        device: torch.device,
    ) -> None:
        self.graph, self.query, self.contract = graph, query, contract
        self.deadline, self.memory_bytes, self.jobs, self.seed = deadline, memory_bytes, jobs, seed
        self.device = device
        self.rounding = Rounding(graph, contract, device)
        self.params32 = graph.tensors(torch.float32, device)
        self.runtime = Runtime(model)
        self.progress, self.found = progress, found
        self.witness: Witness | None = None
        self.domains = 0
        self._too_shallow: dict[Conjunction, float] = {}

    @property
    def late(self) -> bool:
        """Whether time is up."""
        return monotonic() > self.deadline

    @property
    def working_bytes(self) -> int:
        """What one engine may take for its batches."""
        # On an accelerator it shrinks with the pieces of work, where these did not fit.
        most = 2**30 if self.device.type == "cpu" else 2 * paths.DEVICE_WORKING_SET
        return max(2**20, min(2**30, most, self.memory_bytes // 4))

    def count(self, domains: int) -> None:
        """Counts domains for the answer and the progress."""
        self.domains += domains
        if self.progress is not None:
            self.progress(self.domains)

    def accept(self, case: Case, rounded: NDArray[np.bool_], point: Tensor) -> bool:
        """Keeps a float32 input [*shape] as the witness if it is one; `rounded` [inputs] marks those that no float32 number meets.

        All on the processor: what is exact is decided there.
        """
        inputs = point.numpy().astype(np.float32)
        flat = inputs.ravel()
        exact = case.box.nearest(flat) if np.isfinite(flat).all() else ()
        # Every other input must be met exactly.
        if not exact or any(Fraction(float(x)) != e for x, e, r in zip(flat.tolist(), exact, rounded.tolist(), strict=True) if not r):
            return False
        outputs = self.runtime.logits(inputs[None])[0].ravel()
        count = int(rounded.sum())
        real = self.contract.exact and count > 0
        for conjunction in case.unsafe:
            if not satisfied(conjunction, outputs):
                continue
            # A violation no deeper than one that rounding may undo is not tried again.
            depth = min((rounded_up(one.bound) - one.value(outputs) for one in conjunction), default=inf)
            if depth <= self._too_shallow.get(conjunction, -inf):
                continue
            if not self._unsafe_under_contract(conjunction, inputs, exact if real else None):
                self._too_shallow[conjunction] = depth
            else:
                text = tuple(map(decimal, exact)) if real else None
                self.witness = Witness(flat, outputs, count, text)
                if self.found is not None:
                    self.found(self.witness)
                return True
        return False

    def _unsafe_under_contract(self, conjunction: Conjunction, inputs: NDArray[np.float32], exact: tuple[Fraction, ...] | None) -> bool:
        """Whether all executions within the contract are unsafe too, at `exact` where it is given; ONNX Runtime's is one of fp32."""
        if self.contract.name == "fp32" or not conjunction:
            return True
        shape = (1, *self.graph.input_shape)
        if exact is None:
            x = torch.from_numpy(inputs[None]).double()
            box = x, x
        else:
            box = _around(exact, shape)
        box = box[0].to(self.device), box[1].to(self.device)
        rows = rows_of(self.query, conjunction)[0].to(self.device)
        with torch.no_grad():
            boxes = interval(self.graph, self.rounding.params, box, self.rounding)
            highest = -last_layer_folding(self.graph, self.rounding.params, -rows, boxes, self.rounding)[0]
            highest = to_host(torch.fmin(highest, -crown(self.graph, self.rounding.params, box, -rows, boxes, self.rounding)[0]))
        size = to_host(torch.maximum(*(end.abs() for end in boxes[self.graph.output]))[0]).flatten().tolist()
        return all(map(isfinite, size)) and all(
            isfinite(high) and Fraction(high) + rounded_away(constraint, size) <= constraint.bound
            for high, constraint in zip(highest.tolist(), conjunction, strict=True)
        )


def _around(point: tuple[Fraction, ...], shape: tuple[int, ...]) -> Box:
    """Returns the smallest float64 box around an exact point."""
    lower, upper = InputBox(point, point).outward()
    return torch.from_numpy(lower).view(shape), torch.from_numpy(upper).view(shape)
