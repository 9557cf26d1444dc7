"""Engines of bounds on any device, each with what it finds on a network of `engine_nets`, for comparison between devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic, perf_counter

import pytest
import torch
from torch import Tensor

from engine_nets import BUILDERS, Case
from vsparse.bounds import Box, Choices, Executions, Rounding, crown, interval, last_layer_folding, refine
from vsparse.bounds.crown import unit_costs
from vsparse.bounds.curves import has_two_slopes
from vsparse.bounds.windows import windows
from vsparse.bounds.zonotope import lower_bounds, zonotope
from vsparse.compute_device import to_host
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.graph import BatchNorm, FakeQuant, Node, Relu, to_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.search import relaxed_region, relu_branching, unit_split
from vsparse.search.alpha import Effort
from vsparse.search.branch_and_bound import Prover, prove
from vsparse.search.input_split import split_inputs
from vsparse.search.result import Limits
from vsparse.search.specification import Specification
from vsparse.search.unit_split import split_units
from vsparse.stages.verify import Certificate, certify

KINDS = sorted((kind for kind in BUILDERS if kind is not BatchNorm), key=lambda kind: kind.__name__)
# What both devices compute differs by the order of sums, and by what their rounding is charged.
CLOSE = 1e-9
SETTINGS = Verify(attack_steps=3, attack_restarts=3, branch_domains=4)
Found = list[Tensor | float | bool]


class Placed:
    """A network with its box, row and error terms on a device, and the boxes that searches start from."""

    def __init__(self, one: Case, device: str, contract: str = "") -> None:
        self.one, self.graph, self.device = one, one.graph, torch.device(device)
        quantised = any(isinstance(node, FakeQuant) for node in one.graph.nodes)
        self.rounding = Rounding(one.graph, CONTRACTS[contract or ("real" if quantised else "fp32")], self.device)
        self.params = self.rounding.params
        self.box: Box = one.box[0].to(self.device), one.box[1].to(self.device)
        self.row = one.row.to(self.device)
        self.boxes = interval(self.graph, self.params, self.box, self.rounding)

    def refined(self) -> dict[str, Box]:
        return refine(self.graph, self.params, self.box, self.boxes, self.rounding)

    def thresholds(self) -> tuple[float, float, float]:
        """What CROWN proves, what a search has to work for, and what is false."""
        gap = self.one.lowest - float(to_host(crown(self.graph, self.params, self.box, self.row[None], self.boxes, self.rounding)))
        return self.one.lowest - gap - 0.01, self.one.lowest - 0.8 * gap - 1e-3, self.one.lowest + 0.01


def by_interval(at: Placed) -> Found:
    executed = Executions.of(at.graph, at.params, (at.box[0] + at.box[1]) / 2)
    executed.check(at.boxes, "interval")
    return [end for box in at.boxes.values() for end in box]


def by_crown(at: Placed) -> Found:
    lower = crown(at.graph, at.params, at.box, at.row[None], at.boxes, at.rounding)
    Executions.of(at.graph, at.params, (at.box[0] + at.box[1]) / 2).check_rows(at.row[None], lower, "crown")
    return [lower, last_layer_folding(at.graph, at.params, at.row[None], at.boxes, at.rounding)]


def by_refined_boxes(at: Placed) -> Found:
    return [end for box in at.refined().values() for end in box]


def by_chosen_lines(at: Placed) -> Found:
    generator = torch.Generator().manual_seed(1)

    def draw(node: Node) -> Tensor:
        return torch.rand(1, 6, *node.shape, generator=generator, dtype=torch.float64).to(at.device)

    relus = [node for node in at.graph.nodes if isinstance(node, Relu)]
    curves = [node for node in at.graph.nodes if has_two_slopes(node)]
    choices = Choices(
        {node.name: draw(node) for node in relus},
        curves={node.name: (draw(node), draw(node)) for node in curves},
        duals={node.name: (draw(node) - 0.3, draw(node) - 0.3) for node in (*relus, *curves)},
    )
    return [crown(at.graph, at.params, at.box, at.row.expand(1, 6, -1), at.boxes, at.rounding, choices)]


def by_windows(at: Placed) -> Found:
    found: Found = []
    costs = unit_costs(list(at.graph.nodes), at.boxes, at.rounding)
    for node in at.graph.nodes:
        small = windows(at.graph, at.params, at.boxes, at.rounding, node.name, costs)
        if small is not None:
            units = torch.arange(node.size, device=at.device)
            found += small.bound(torch.zeros_like(units), units)
    return found


def by_zonotope(at: Placed) -> Found:
    state = zonotope(at.graph, at.box, at.rounding)
    return [lower_bounds(state.output, at.row.view(1, 1, -1)), *(end for box in state.boxes.values() for end in box)]


def by_cutting_inputs(at: Placed) -> Found:
    verdicts: Found = []
    inner = at.box[0].float(), at.box[1].float()
    for threshold, seconds in zip(at.thresholds(), (60, 0.02, 0.02), strict=True):
        asked = Specification(at.one.row[None], torch.tensor([threshold], dtype=torch.float64), torch.tensor([0]), 1)
        found = split_inputs(at.graph, at.rounding, at.box, asked, deadline=monotonic() + seconds, inner=inner, accept=lambda point: False)
        verdicts.append(found.proved)
    return [verdicts[0], verdicts[2]]


def by_slopes(at: Placed) -> Found:
    prover = Prover(at.graph, at.rounding, at.box, at.refined(), Limits(domains=0))
    bounds, _ = prover.slopes(at.row[None], at.one.lowest - 1e-3)
    assert float(bounds[0]) <= at.one.lowest + CLOSE
    return [prover.plain(at.row[None])]


def by_branch_and_bound(at: Placed) -> Found:
    boxes = at.refined()
    found = [prove(at.graph, at.rounding, at.box, boxes, at.row, threshold, Limits(domains=8)) for threshold in at.thresholds()]
    return [found[0].proved, found[2].proved]


def by_cutting_units(at: Placed) -> Found:
    boxes = at.refined()
    found = [
        split_units(at.graph, at.rounding, at.box, boxes, at.row, threshold, domains=6, deadline=perf_counter() + 60)
        for threshold in at.thresholds()
    ]
    return [found[0].proved, found[2].proved]


ENGINES: dict[str, Callable[[Placed], Found]] = {
    "interval": by_interval,
    "crown": by_crown,
    "refined boxes": by_refined_boxes,
    "chosen lines": by_chosen_lines,
    "windows": by_windows,
    "zonotope": by_zonotope,
    "input splitting": by_cutting_inputs,
    "optimised slopes": by_slopes,
    "branch and bound": by_branch_and_bound,
    "unit splitting": by_cutting_units,
}
CHEAP = {"interval", "crown", "refined boxes", "chosen lines", "windows", "zonotope"}


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets searches try less: each operation of the simulation costs a hundred times what it costs the processor."""
    monkeypatch.setattr(relu_branching, "LAST_EFFORTS", [Effort(steps=2)])
    monkeypatch.setattr(relu_branching, "LAST_STEPS", 2)
    monkeypatch.setattr(relu_branching, "ATTACK_STEPS", 2)
    monkeypatch.setattr(relu_branching, "EFFORT", Effort(steps=3))
    monkeypatch.setattr(relaxed_region, "ROOT_EFFORT", Effort(steps=3))
    monkeypatch.setattr(relu_branching, "ROOT_EFFORT", Effort(steps=3))
    monkeypatch.setattr(unit_split, "STEPS", 2)
    monkeypatch.setattr(unit_split, "LAST_STEPS", 2)


def file_of(one: Case, folder: Path) -> Path:
    model = folder / "model.onnx"
    model.write_bytes(to_onnx(one.graph).SerializeToString())
    return model


def samples_of(one: Case, count: int = 3) -> Dataset:
    """The points at which the prediction is clearest, and one with a wrong label."""
    logits = one.values[one.graph.output]
    best, second = logits.topk(2, dim=1).values.T
    chosen = (best - second).argsort(descending=True)[:count]
    labels = logits[chosen].argmax(1)
    labels[-1] = (labels[-1] + 1) % logits.shape[1]
    classes = tuple(map(str, range(logits.shape[1])))
    return Dataset(one.points[chosen].float().numpy(), 1.0, labels.numpy(), classes, None)


def contract_of(one: Case) -> str:
    return "real" if any(isinstance(node, FakeQuant) for node in one.graph.nodes) else "fp32"


def certified_on(device: str, one: Case, folder: Path, asked: PerturbationSet, contract: str | None = None) -> Certificate:
    settings = SETTINGS.model_copy(update={"device": device})
    return certify(file_of(one, folder), samples_of(one), asked, CONTRACTS[contract or contract_of(one)], settings)


def same_claims(here: Certificate, there: Certificate) -> None:
    """Asserts that two certificates say the same of each sample, up to the last digits of a margin."""
    for one, other in zip(here.claims, there.claims, strict=True):
        assert (one.verdict, one.method, one.predicted, one.proof) == (other.verdict, other.method, other.predicted, other.proof)
        if one.margin_lower is None or one.proof is not None:
            assert (one.margin_lower is None) == (other.margin_lower is None)
        else:
            assert other.margin_lower == pytest.approx(one.margin_lower, abs=1e-6)
