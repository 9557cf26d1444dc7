"""Searched bounds in the cascade: optimised slopes and branch and bound for the samples that cheaper methods leave open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vsparse.bounds import Box, Executions, Rounding, crown, interval, last_layer_folding, margin_rows, refine
from vsparse.bounds.proof import BoundProof
from vsparse.bounds.region import Region, samples_of
from vsparse.graph import Graph
from vsparse.search.branch_and_bound import Prover
from vsparse.search.result import Limits
from vsparse.search.tightened_bounds import empty_proof

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


def search(
    graph: Graph, rounding: Rounding, region: Box | Region, labels: Tensor, classes: int, domains: int, points: Sequence[Tensor]
) -> Iterator[Searched]:
    """Yields for each sample of a batch what a search finds; `region` float64 [n, …], labels [n].

    `domains` limits branch and bound for each sample, 0 leaves it out. Nothing depends on a clock. `points` [m, *shape] for each sample
    are members of its region; SoundnessError where an execution there contradicts a bound.
    """
    with torch.no_grad():
        boxes = refine(graph, rounding.params, region, interval(graph, rounding.params, region, rounding), rounding)
        rows = margin_rows(labels, classes)
        plain = torch.fmax(
            last_layer_folding(graph, rounding.params, rows, boxes, rounding), crown(graph, rounding.params, region, rows, boxes, rounding)
        )
    for i, label in enumerate(labels.tolist()):
        one = slice(i, i + 1)
        mine = {name: (box[0][one], box[1][one]) for name, box in boxes.items()}
        limits = Limits(domains, None, MEMORY_BYTES)
        executions = Executions.of(graph, rounding.params, points[i], torch.zeros(len(points[i]), dtype=torch.int64))
        executions.check(mine, "crown")
        executions.check_rows(rows[one], plain[one], "crown")
        yield _search(graph, rounding, samples_of(region, one), mine, (rows[i], plain[i]), label, limits, executions)


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
    rows, plain = known
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
