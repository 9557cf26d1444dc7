"""The cross-check: our CROWN bounds beside auto_LiRPA's, with the same relaxations; a bound tighter than theirs points to unsoundness.

It is an advisory second opinion: where the two relax an operator differently, or auto_LiRPA cannot read the network, there is none; that
is reported and fails no gate. Where auto_LiRPA is not installed, or does not work here, the cross-check is not run, and its gate is open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vsparse import second_opinion
from vsparse.artifact.checks import NOT_RUN, CrossCheckRecord
from vsparse.bounds import Rounding, ball, crown, interval, margin_rows, refine
from vsparse.contract import Contract
from vsparse.data import Dataset
from vsparse.errors import UnavailableError
from vsparse.graph import Clip, FakeQuant, Graph, LeakyRelu, MaxPool, Node, Sigmoid, Tanh, from_torch, to_torch
from vsparse.perturbation import PerturbationSet
from vsparse.stages.verify.certify import take_samples
from vsparse.stages.verify.deployed import Deployed, read_model

TOLERANCE = 1e-4
METHOD = "CROWN"
# Of the trial that decides whether there can be a second opinion.
TRIAL_RADIUS = 1 / 128
RELAXED_OTHERWISE = (LeakyRelu, Clip, Sigmoid, Tanh, FakeQuant)
NOT_A_BOX = "the cross-check with auto_LiRPA covers plain l∞ balls alone, and the property is none; there is no second opinion on it"


@dataclass(frozen=True)
class CrossCheck:
    """Differences of lower bounds of all margins, over all samples.

    `excess` is the largest of ours - theirs in plain float64 arithmetic, `shortfall` the largest of theirs - ours, `excess_deployed` the
    largest of ours - theirs with the contract's rounding terms on, as a certificate uses them: it should be negative. `unanswered` says why
    there is no second opinion; then nothing was compared.
    """

    samples: int
    rows: int
    excess: float
    shortfall: float
    excess_deployed: float
    tolerance: float
    version: str
    radius: str
    unanswered: str = ""

    @property
    def passed(self) -> bool:
        """Whether no bound of ours exceeds theirs by more than the tolerance (a NaN exceeds)."""
        return self.rows > 0 and self.excess <= self.tolerance and self.excess_deployed <= self.tolerance

    @property
    def reason(self) -> str:
        """Why it did not pass, or why there is no second opinion, in a few words; empty where it passed."""
        if self.unanswered or self.passed:
            return self.unanswered
        worst = max(self.excess, self.excess_deployed)
        return f"a lower bound exceeds auto_LiRPA's by {worst:.3g}, more than {self.tolerance:g}" if self.rows else "nothing was compared"

    def record(self) -> CrossCheckRecord:
        """Returns the result as cross_check.json holds it."""
        return CrossCheckRecord(
            passed=None if self.unanswered else self.passed,
            reason=self.reason,
            second_verifier=f"auto_LiRPA {self.version}".strip(),
            method=METHOD,
            epsilon=self.radius,
            samples=self.samples,
            bounds_compared=self.rows,
            largest_excess=_number(self.excess),
            largest_shortfall=_number(self.shortfall),
            largest_excess_with_rounding=_number(self.excess_deployed),
            tolerance=self.tolerance,
        )


def cross_check(
    onnx_path: Path,
    dataset: Dataset,
    perturbation: PerturbationSet,
    contract: Contract,
    samples: int,
    *,
    batch_size: int = 4,
    progress: Callable[[int, int], None] | None = None,
    absence: str = "",
) -> CrossCheck:
    """Compares lower bounds of all margins of the first samples with auto_LiRPA's CROWN, in float64.

    Both refine every pre-activation by a backward pass, take no intersection with interval bounds, and use the adaptive lower slope.
    Where there can be no such comparison (`no_comparison`, which `absence` is for), or auto_LiRPA's bounds are no numbers, the result is
    `unanswered`.
    Raises UnavailableError where the region is no plain l∞ ball.
    """
    model = read_model(onnx_path)
    if not perturbation.is_box:
        raise UnavailableError(NOT_A_BOX)
    inputs, labels = take_samples(dataset, model, samples)
    reason = no_comparison(model.graph, absence)
    if reason:
        return unanswered(reason, perturbation)
    rounding = Rounding(model.graph, contract)
    excess, shortfall, deployed, rows = -torch.inf, -torch.inf, -torch.inf, 0
    for start in range(0, len(labels), batch_size):
        piece = slice(start, start + batch_size)
        x, y = torch.from_numpy(inputs[piece]), torch.from_numpy(labels[piece])
        try:
            ours, padded, theirs = compare(model, rounding, x, y, perturbation)
        except (second_opinion.NoOpinionError, UnavailableError) as error:
            return unanswered(_unanswered_by(error), perturbation)
        if not bool(torch.isfinite(theirs).all()):
            return unanswered("auto_LiRPA's bounds are not finite", perturbation)
        excess = _larger(excess, ours - theirs)
        shortfall = _larger(shortfall, theirs - ours)
        deployed = _larger(deployed, padded - theirs)
        rows += theirs.numel()
        if progress is not None:
            progress(min(start + batch_size, len(labels)), len(labels))
    return CrossCheck(len(labels), rows, excess, shortfall, deployed, TOLERANCE, second_opinion.version(), str(perturbation.epsilon))


def unanswered(reason: str, perturbation: PerturbationSet) -> CrossCheck:
    """Returns the result where there is no second opinion."""
    try:
        version = second_opinion.version()
    except UnavailableError:
        version = ""
    return CrossCheck(0, 0, -torch.inf, -torch.inf, -torch.inf, TOLERANCE, version, str(perturbation.epsilon), reason)


def no_comparison(graph: Graph, absence: str = "") -> str:
    """Returns why auto_LiRPA has no bounds of a network that ours could be compared with, or an empty string; batch norm must be folded.

    Where it is auto_LiRPA itself that is missing, by `absence` (which was found out before anything was trained) or by what is found now,
    the reason begins with NOT_RUN.

    First the operators are looked at: those that the two relax differently are never compared. Then auto_LiRPA bounds the network on a
    box around one half, from intervals, by one backward pass: every operator takes part, at the cost of a few executions. At last its
    bound at a single point must be the output there.
    """
    differing = sorted({type(node).__name__ for node in graph.nodes if isinstance(node, RELAXED_OTHERWISE) or _overlaps(node)})
    if differing:
        return f"auto_LiRPA relaxes {', '.join(differing)} by other lines, so that its bounds and ours may differ either way"
    if absence:
        return f"{NOT_RUN}{absence}"
    middle = torch.full((1, *graph.input_shape), 0.5, dtype=torch.float64)
    rows = torch.zeros(1, 1, graph.shape_of(graph.output)[0], dtype=torch.float64)
    rows[..., 0] = 1.0
    try:
        network = to_torch(graph)
        bound = second_opinion.crown_lower(network, middle - TRIAL_RADIUS, middle + TRIAL_RADIUS, rows, second_opinion.TRIAL)
        if bool(torch.isfinite(bound).all()):
            second_opinion.require_same_network(network, tuple(graph.input_shape))
    except (second_opinion.NoOpinionError, UnavailableError) as error:
        return _unanswered_by(error)
    return "" if bool(torch.isfinite(bound).all()) else "auto_LiRPA's bounds are not finite"


def _unanswered_by(error: Exception) -> str:
    return f"{NOT_RUN}{error}" if isinstance(error, UnavailableError) else str(error)


def operators_without() -> list[str]:
    """Returns the operators, of those that are compared at all, of which auto_LiRPA has no bounds here: tried on small networks."""
    conv, relu, flat = nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten()
    tried: dict[str, list[nn.Module]] = {
        "convolutions": [],
        "grouped convolutions": [nn.Conv2d(2, 4, 3, groups=2), relu],
        "max pools": [nn.MaxPool2d(2)],
        "average pools": [nn.AvgPool2d(2)],
        "global average pools": [nn.AdaptiveAvgPool2d(1)],
        "residual additions": [_Residual()],
    }
    shape, refused = (2, 6, 6), []
    for name, layers in tried.items():
        body = nn.Sequential(conv, relu, *layers, flat)
        width = int(body(torch.zeros(1, *shape)).shape[1])
        if no_comparison(from_torch(nn.Sequential(body, nn.Linear(width, 2)), shape)):
            refused.append(name)
    return refused


class _Residual(nn.Module):
    """x + relu(conv(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum."""
        return x + torch.relu(self.conv(x))


def _overlaps(node: Node) -> bool:
    """Whether a max pool has windows that overlap or are padded, which auto_LiRPA 0.3 refuses and newer ones relax in their own way."""
    return isinstance(node, MaxPool) and (node.kernel != node.stride or any(node.pads))


def compare(model: Deployed, rounding: Rounding, x: Tensor, labels: Tensor, perturbation: PerturbationSet) -> tuple[Tensor, Tensor, Tensor]:
    """Returns lower bounds of the margins [n, classes - 1]: ours in plain float64, ours under the contract, and auto_LiRPA's."""
    graph, params = model.graph, rounding.params
    box, rows = ball(x, perturbation.epsilon, perturbation.clip, perturbation.radii()), margin_rows(labels, model.classes)
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
