"""Proofs of linear rows over a region: optimised slopes, tightened intermediate bounds, and branch and bound with split multipliers.

β-CROWN (Wang et al., arXiv 2103.06624). Float32 searches; what it finds is bounded in float64 under the contract by
`vsparse.bounds.proof`, and only that proves anything.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.proof import tree_bounds
from vsparse.bounds.region import Region
from vsparse.bounds.rounding import Rounding
from vsparse.compute_device import to_host
from vsparse.graph.ir import Graph
from vsparse.search import unit_split
from vsparse.search.relaxed_region import RelaxedRegion
from vsparse.search.relu_branching import ReluBranching
from vsparse.search.result import Limits, SearchProgress, SearchResult
from vsparse.search.tightened_bounds import empty_proof
from vsparse.search.tree import Growing, assemble


class Prover(RelaxedRegion):
    """Proves rows of one region one after the other."""

    def branch(self, row: Tensor, threshold: float, domains: int, progress: SearchProgress | None = None) -> tuple[SearchResult, Growing]:
        """Returns what branch and bound finds about one row [outputs] float64, and its tree, which may be unfinished."""
        search = ReluBranching(self, row, threshold, domains, progress)
        return search.run(), search.tree

    def settle(
        self, rows: Mapping[int, Tensor], threshold: float, branching: bool = True, progress: SearchProgress | None = None
    ) -> tuple[SearchResult, bool]:
        """Tries to prove every row · output > threshold that plain CROWN does not prove: slopes, tightened bounds, branch and bound.

        Returns the result, whose proof has one tree for each row, and whether any tree has splits. `lower` is what that proof, evaluated
        whole, proves of the least row. The search ends at the first row that it cannot prove.
        """
        names, stacked = list(rows), torch.stack(list(rows.values()))
        bounds, trees = self.slopes(stacked, threshold)
        if float(bounds.min()) <= threshold:
            self.tighten()
            bounds, trees = self.slopes(stacked, threshold)
        domains = 0
        # The row that looks hardest first: where it cannot be proved, the others need not be tried.
        for i in bounds.argsort().tolist() if branching else ():
            if float(bounds[i]) <= threshold:
                outcome, trees[i] = self.branch(stacked[i], threshold, self.limits.domains - domains, progress)
                domains += outcome.domains
                bounds[i] = outcome.lower
                if not outcome.proved:
                    outcome.domains = domains
                    return outcome, True
        if float(bounds.min()) <= threshold:
            return SearchResult(False, float(bounds.min()), domains), False
        proof = assemble(self.base, self.net.units, dict(zip(names, trees, strict=True)))
        proved = tree_bounds(self.graph, self.rounding, self.box, self.root, proof, rows, self.limits.memory_bytes, self.executions)
        lower = min(proved.values())
        return SearchResult(lower > threshold, lower, domains, proof), domains > 0


def prove(
    graph: Graph,
    rounding: Rounding,
    box: Box | Region,
    boxes: Mapping[str, Box],
    row: Tensor,
    threshold: float,
    limits: Limits,
    progress: SearchProgress | None = None,
    prover: Prover | None = None,
) -> SearchResult:
    """Tries to prove row · output > threshold for every input in `box`, the cheapest means first: CROWN, slopes, tightened bounds, branch
    and bound.

    `box` (a box or another region) and `boxes` (the refined CROWN enclosure) are float64 with batch 1, `row` float64 [outputs].
    `progress(domains, lower)` is called after each batch. Rows of one region share their tightened bounds, and the clock, when they are
    given one `Prover`.
    """
    prover = prover or Prover(graph, rounding, box, boxes, limits)
    threads = torch.get_num_threads()
    # Torch's own threads synchronise after every operation, and these are short: whole batches are divided among threads instead.
    torch.set_num_threads(1)
    try:
        lower = float(to_host(prover.plain(row.unsqueeze(0)))[0])
        if lower > threshold:
            return SearchResult(True, lower, proof=empty_proof(prover.base.units))
        if isinstance(box, Region) or not unit_split.applies(graph):
            return prover.settle({0: row}, threshold, progress=progress)[0]
        # Other curves are split too, with float64 bounds throughout: such a result is proved, and has no proof to store.
        if len(prover.net.units):
            outcome = prover.settle({0: row}, threshold, branching=False, progress=progress)[0]
            if outcome.proved:
                return outcome
        found = unit_split.split_units(
            graph, rounding, box, prover.boxes, row, threshold, domains=limits.domains, deadline=prover.deadline, progress=progress
        )
        return SearchResult(found.proved, found.lower, found.domains, None, found.point, found.timed_out)
    finally:
        torch.set_num_threads(threads)
