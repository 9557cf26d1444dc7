"""Searched bounds in the cascade: optimised slopes and branch and bound for the samples that cheaper methods leave open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vsparse.bounds import Box, Executions, Rounding, crown, interval, last_layer_folding, margin_rows, refine
from vsparse.bounds.proof import BoundProof
from vsparse.bounds.region import Region, placed, samples_of
from vsparse.compute_device import to_host
from vsparse.graph import Graph
from vsparse.search.branch_and_bound import Prover
from vsparse.search.result import Limits
from vsparse.search.tightened_bounds import empty_proof
from vsparse.stages.verify.allowance import USUAL, Allowance

# A searched margin must be this large, so that something remains when a claim states less (`certify.SLACK`).
LEAST_MARGIN = 5e-5
# Decides how many domains are bounded at once, so it is fixed: results must not depend on the machine.
MEMORY_BYTES = 2**30


@dataclass(frozen=True)
class Searched:
    """What a search found for one sample: a proof and the margin it proves together with plain CROWN, or a point to execute, or neither."""

    margin: float
    proof: BoundProof | None
    split: bool
    point: Tensor | None


@dataclass(frozen=True)
class OpenSample:
    """A sample that cheaper methods left open, with all that its search takes; its tensors are contiguous and on the processor.

    So that a search answers the same bits wherever it runs: `region` float64 with batch 1, `label`, `boxes` the refined enclosure of each
    activation [1, …], `rows` float64 [R, classes] and what plain CROWN proves of them, `plain` [R]; `points` float32 [m, *shape] are
    members of the region that are executed, the sample itself first.
    """

    region: Box | Region
    label: int
    boxes: dict[str, Box]
    rows: Tensor
    plain: Tensor
    points: Tensor


def open_samples(
    graph: Graph,
    rounding: Rounding,
    region: Box | Region,
    labels: Tensor,
    classes: int,
    points: Sequence[Tensor],
    allowance: Allowance = USUAL,
) -> Iterator[OpenSample]:
    """Yields for each sample of a batch what its search takes; `region` float64 [n, …], labels [n], `points` [m, *shape] for each."""
    parts = allowance.parts(graph, len(labels))
    if len(parts) > 1:
        for part in parts:
            yield from open_samples(graph, rounding, samples_of(region, part), labels[part], classes, points[part], allowance)
        return
    with torch.no_grad():
        enclosure = interval(graph, rounding.params, region, rounding)
        boxes = refine(graph, rounding.params, region, enclosure, rounding, **allowance.of_refinement())
        rows = margin_rows(labels, classes)
        plain = torch.fmax(
            last_layer_folding(graph, rounding.params, rows, boxes, rounding), crown(graph, rounding.params, region, rows, boxes, rounding)
        )
    for i, label in enumerate(labels.tolist()):
        one = slice(i, i + 1)
        mine = {name: (_own(box[0][one]), _own(box[1][one])) for name, box in boxes.items()}
        yield OpenSample(_own_region(samples_of(region, one)), label, mine, _own(rows[i]), _own(plain[i]), _own(points[i]))


def search(graph: Graph, rounding: Rounding, sample: OpenSample, domains: int, at_once: int = 0) -> Searched:
    """Returns what a search finds for one sample, on the device of `rounding`.

    `domains` limits branch and bound, 0 leaves it out; `at_once` as of `Limits`. Nothing depends on a clock. SoundnessError where an
    execution of one of the sample's points contradicts a bound.
    """
    device = rounding.device
    points, rows, plain = (part.to(device) for part in (sample.points, sample.rows, sample.plain))
    boxes = {name: (lower.to(device), upper.to(device)) for name, (lower, upper) in sample.boxes.items()}
    executions = Executions.of(graph, rounding.params, points, torch.zeros(len(points), dtype=torch.int64, device=device))
    executions.check(boxes, "crown")
    executions.check_rows(rows.unsqueeze(0), plain.unsqueeze(0), "crown")
    limits = Limits(domains, None, MEMORY_BYTES, at_once=at_once)
    return _search(graph, rounding, placed(sample.region, device), boxes, (rows, sample.plain), sample.label, limits, executions)


def _own(part: Tensor) -> Tensor:
    """Returns a copy: the last bits of a product of matrices may depend on where in memory they lie."""
    return to_host(part).clone(memory_format=torch.contiguous_format)


def _own_region(region: Box | Region) -> Box | Region:
    return region.to(torch.device("cpu")).copy() if isinstance(region, Region) else (_own(region[0]), _own(region[1]))


def _search(
    graph: Graph,
    rounding: Rounding,
    region: Box | Region,
    boxes: Mapping[str, Box],
    known: tuple[Tensor, Tensor],
    label: int,
    limits: Limits,
    executions: Executions,
) -> Searched:
    rows, plain = known  # on the device, and on the processor
    if not bool(torch.isfinite(plain).all()):
        return Searched(-torch.inf, None, False, None)
    # Rows are in the order of the classes, the label left out; a tree names its class.
    open_ = {row + (row >= label): rows[row] for row in (plain <= LEAST_MARGIN).nonzero().flatten().tolist()}
    least = float(plain[plain > LEAST_MARGIN].min()) if bool((plain > LEAST_MARGIN).any()) else torch.inf
    if not open_:
        return Searched(least, empty_proof(np.zeros(0, np.int32)), False, None)
    outcome, split = Prover(graph, rounding, region, boxes, limits, executions).settle(open_, LEAST_MARGIN, limits.domains > 0)
    if not outcome.proved:
        return Searched(-torch.inf, None, split, outcome.counterexample)
    return Searched(min(least, outcome.lower), outcome.proof, split, None)
