"""The cross-check: our CROWN bounds beside auto_LiRPA's, with the same relaxations; tighter than theirs means unsound somewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsparse import second_opinion
from vsparse.bounds import Rounding, ball, crown, interval, margin_rows, refine
from vsparse.contract import Contract
from vsparse.data import Dataset
from vsparse.errors import GateError, UnavailableError
from vsparse.graph import to_torch
from vsparse.stages.verify.certify import Property, ball_of, take_samples
from vsparse.stages.verify.deployed import Deployed, read_model

TOLERANCE = 1e-4
METHOD = "CROWN"
NOT_A_BOX = "the cross-check with auto_LiRPA covers plain l∞ balls alone, and the property is none; there is no second opinion on it"


@dataclass(frozen=True)
class CrossCheck:
    """Differences of lower bounds of all margins, over all samples.

    `excess` is the largest of ours - theirs in plain float64 arithmetic, `shortfall` the largest of theirs - ours, `excess_deployed` the
    largest of ours - theirs with the contract's rounding terms on, as a certificate uses them: it should be negative.
    """

    samples: int
    rows: int
    excess: float
    shortfall: float
    excess_deployed: float
    tolerance: float
    version: str
    radius: str

    @property
    def passed(self) -> bool:
        """Whether no bound of ours exceeds theirs by more than the tolerance (a NaN exceeds)."""
        return self.rows > 0 and self.excess <= self.tolerance and self.excess_deployed <= self.tolerance

    @property
    def reason(self) -> str:
        """Why it did not pass, in a few words; empty where it did."""
        if self.passed:
            return ""
        worst = max(self.excess, self.excess_deployed)
        return f"a lower bound exceeds auto_LiRPA's by {worst:.3g}, more than {self.tolerance:g}" if self.rows else "nothing was compared"

    def require_passed(self) -> None:
        """Raises GateError where the cross-check did not pass."""
        if not self.passed:
            raise GateError(f"the cross-check failed: {self.reason}; do not rely on the certificate")

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return {
            "schema_version": 1,
            "passed": self.passed,
            "reason": self.reason,
            "second_verifier": f"auto_LiRPA {self.version}",
            "method": METHOD,
            "epsilon": self.radius,
            "samples": self.samples,
            "bounds_compared": self.rows,
            "largest_excess": _number(self.excess),
            "largest_shortfall": _number(self.shortfall),
            "largest_excess_with_rounding": _number(self.excess_deployed),
            "tolerance": self.tolerance,
        }


def cross_check(
    onnx_path: Path,
    dataset: Dataset,
    property: Property,
    contract: Contract,
    samples: int,
    *,
    clip: tuple[float, float] = (0.0, 1.0),
    batch_size: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> CrossCheck:
    """Compares lower bounds of all margins of the first samples with auto_LiRPA's CROWN, in float64.

    Both refine every pre-activation by a backward pass, take no intersection with interval bounds, and use the adaptive lower slope.
    Raises UnavailableError where auto_LiRPA is absent or the region is no plain l∞ ball, InputError where it cannot bound the network.
    """
    model = read_model(onnx_path)
    ball_ = ball_of(property, clip)
    if not ball_.allowed.is_box:
        raise UnavailableError(NOT_A_BOX)
    inputs, labels = take_samples(dataset, model, samples)
    rounding = Rounding(model.graph, contract)
    excess, shortfall, deployed, rows = -torch.inf, -torch.inf, -torch.inf, 0
    for start in range(0, len(labels), batch_size):
        piece = slice(start, start + batch_size)
        x, y = torch.from_numpy(inputs[piece]), torch.from_numpy(labels[piece])
        ours, padded, theirs = compare(model, rounding, x, y, ball_.radius, clip)
        excess = _larger(excess, ours - theirs)
        shortfall = _larger(shortfall, theirs - ours)
        deployed = _larger(deployed, padded - theirs)
        rows += theirs.numel()
        if progress is not None:
            progress(min(start + batch_size, len(labels)), len(labels))
    return CrossCheck(len(labels), rows, excess, shortfall, deployed, TOLERANCE, second_opinion.version(), ball_.epsilon)


def compare(
    model: Deployed, rounding: Rounding, x: Tensor, labels: Tensor, radius: Fraction, clip: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns lower bounds of the margins [n, classes - 1]: ours in plain float64, ours under the contract, and auto_LiRPA's."""
    graph, params = model.graph, rounding.params
    box, rows = ball(x, radius, clip), margin_rows(labels, model.classes)
    with torch.no_grad():
        plain = refine(graph, params, box, interval(graph, params, box), None, intersect=False, only_unstable=False)
        ours = crown(graph, params, box, rows, plain, None)
        widened = refine(graph, params, box, interval(graph, params, box, rounding), rounding, intersect=False, only_unstable=False)
        padded = crown(graph, params, box, rows, widened, rounding)
    theirs = second_opinion.crown_lower(to_torch(graph), box[0], box[1], rows, METHOD)
    return ours, padded, theirs


def _larger(so_far: float, difference: Tensor) -> float:
    """Returns the largest value so far; NaN, once there, stays."""
    value = float(difference.max())
    return value if value != value or so_far != so_far or value > so_far else so_far


def _number(value: float) -> float | None:
    return value if abs(value) < torch.inf else None
