"""Branch and bound on ReLUs with split multipliers (β-CROWN: Wang et al., arXiv 2103.06624), in batches of domains.

Float32 finds a tree; its leaves are then bounded in float64 under the contract by `vsparse.bounds.proof`, and only that proves anything.
Leaves that fail there are taken up again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import inf
from threading import Lock
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.bounds.ball import Box, nearest_float32
from vsparse.bounds.crown import crown
from vsparse.bounds.executions import Executions
from vsparse.bounds.proof import BoundProof, leaf_bounds, slope_choices, tree_bounds
from vsparse.bounds.region import Region, box_of, centre_of
from vsparse.bounds.rounding import Rounding
from vsparse.graph.execute import run
from vsparse.graph.ir import Graph
from vsparse.search import unit_split
from vsparse.search.alpha import Effort, optimise, quantise, reach, relax, restore
from vsparse.search.branching import best_split, children
from vsparse.search.lemmas import no_proof, with_lemmas
from vsparse.search.relaxed import Choice, Evaluation
from vsparse.search.tree import Growing, Leaf, assemble

# Float32 bounds must exceed the threshold by this share of the size of the numbers involved before a leaf is believed.
MARGIN = 2e-6
BATCH = 128
# Fewer domains than these are not shared out.
WORTH_THREADS = 32
LOOK_AHEAD = 6
ROOT_EFFORT = Effort(steps=20)
EFFORT = Effort(steps=12)
# Where everything is split, multipliers are all that is left: those of a part without points must grow large, others be exact.
LAST_EFFORTS = [Effort(steps=150, multiplier_rate=rate, decay=0.97) for rate in (0.5, 5.0, 0.05)]
LAST_STEPS = 300
ATTEMPTS = 3
ATTACKED, ATTACK_STEPS = 32, 20
VISITED = 16  # points of a search's own attack that are held against what is proved

Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class Limits:
    """When to give up: domains bounded, wall-clock seconds (none: results depend on no clock), memory; `jobs` threads share the domains.

    With more than one job the last bits of a result may differ from run to run.
    """

    domains: int = 100_000
    seconds: float | None = None
    memory_bytes: int = 2**30
    jobs: int = 1


@dataclass
class Outcome:
    """What a search came to.

    `proved`: row · output > threshold holds on the whole region, decided in float64, and `lower` is the bound that was proved; otherwise
    `lower` is the last bound of the search, which proves nothing. `proof` holds lemmas and trees (none: `prove` has cut other curves than
    ReLU, which proofs do not have).
    `counterexample`: a float32 input [*shape] of the region at which float32 arithmetic finds row · output <= threshold.
    """

    proved: bool
    lower: float
    domains: int = 0
    proof: BoundProof | None = None
    counterexample: Tensor | None = None
    timed_out: bool = False


@dataclass(order=True)
class Domain:
    """One part of the region that is not proved yet: its node in the tree, the columns split, and the parent's choice to start from."""

    bound: float
    node: int
    columns: NDArray[np.int32] = field(compare=False)
    signs: NDArray[np.int8] = field(compare=False)
    slopes: Tensor = field(compare=False)
    multipliers: NDArray[np.float32] = field(compare=False)


class Prover:
    """Everything that is made once for a region and used for each of its rows: lemmas, relaxations, and what has been proved so far.

    `box` (a box or another region) and `boxes` (the refined CROWN enclosure) are float64 [1, …]. `executions` are of points of `box`
    (default: its centre); SoundnessError where one contradicts what is proved.
    """

    def __init__(
        self,
        graph: Graph,
        rounding: Rounding,
        box: Box | Region,
        boxes: Mapping[str, Box],
        limits: Limits,
        executions: Executions | None = None,
    ) -> None:
        self.graph, self.rounding, self.box, self.limits = graph, rounding, box, limits
        self.params32 = {name: value.to(torch.float32) for name, value in rounding.params.items()}
        self.root: dict[str, Box] = dict(boxes)
        self.boxes = self.root
        self.net = relax(graph, rounding, self.params32, box, boxes)
        self.base = no_proof(self.net.units)
        self.with_lemmas = False
        self.deadline = inf if limits.seconds is None else perf_counter() + limits.seconds
        self.lower32, self.upper32 = nearest_float32(box_of(box))
        self.pool = ThreadPoolExecutor(max(1, limits.jobs))  # its threads start when they are first needed
        self.given = self.executions = executions or Executions.of(graph, rounding.params, centre_of(box))
        self.executions.check(self.root, "boxes that a search starts from")

    def visit(self, points: list[Tensor]) -> None:
        """Executes points [*input_shape] that lie in the box, and holds them against what is proved; those of other regions may be none."""
        if isinstance(self.box, Region) or not points:
            return
        visited = Executions.of(self.graph, self.rounding.params, torch.stack(points)).placed(self.box)
        visited.check(self.boxes, "boxes of a search")
        self.executions = self.given + visited

    def add_lemmas(self) -> None:
        """Optimises the bounds of pre-activations, once."""
        if not self.with_lemmas:
            self.base, self.boxes, self.net = with_lemmas(
                self.graph,
                self.rounding,
                self.params32,
                self.box,
                self.root,
                self.net,
                ROOT_EFFORT,
                self.limits.memory_bytes,
                self.executions,
            )
            self.with_lemmas = True

    def plain(self, rows: Tensor) -> Tensor:
        """Returns the float64 bounds [R] of CROWN, without any search, for rows [R, outputs]."""
        bounds = crown(self.graph, self.rounding.params, self.box, rows, self.root, self.rounding, None, None, self.limits.memory_bytes)
        self.executions.check_rows(rows, bounds, "crown")
        return bounds[0]

    def slopes(self, rows: Tensor, threshold: float) -> tuple[Tensor, list[Growing]]:
        """Returns (float64 bounds [R], a tree of one leaf for each) of rows [R, outputs] with optimised slopes and no splits."""
        goal = threshold + _margins(rows, threshold)
        _, choice = optimise(self.net, self.net.form(rows), self.net.choice(len(rows)), goal, ROOT_EFFORT)
        stored = quantise(choice.slopes).numpy()
        chosen = slope_choices(self.graph, self.boxes, self.net.units, stored, np.arange(len(rows), dtype=np.int32))
        args = (self.boxes, self.rounding, chosen, None, self.limits.memory_bytes)
        bounds = crown(self.graph, self.rounding.params, self.box, rows, *args)
        self.executions.check_rows(rows, bounds, "optimised slopes")
        return bounds[0], [Growing(leaves={0: Leaf(one, np.zeros(0, np.float32))}) for one in stored]

    def branch(self, row: Tensor, threshold: float, domains: int, progress: Progress | None = None) -> tuple[Outcome, Growing]:
        """Returns what branch and bound finds about one row [outputs] float64, and its tree, which may be unfinished."""
        search = _Search(self, row, threshold, domains, progress)
        return search.run(), search.tree

    def leaves(self, tree: Growing, row: Tensor) -> Tensor:
        """Returns the float64 bounds of the leaves of a tree, in preorder."""
        proof = assemble(self.base, self.net.units, {0: tree})
        args = (self.boxes, proof, proof.trees[0], row, self.limits.memory_bytes, self.executions)
        return leaf_bounds(self.graph, self.rounding, self.box, *args)

    def settle(
        self, rows: Mapping[int, Tensor], threshold: float, branching: bool = True, progress: Progress | None = None
    ) -> tuple[Outcome, bool]:
        """Tries to prove every row · output > threshold, none of which plain CROWN proves: slopes, then lemmas, then branch and bound.

        Returns the outcome, whose proof has one tree for each row, and whether any tree has splits. `lower` is what that proof, evaluated
        whole, proves of the least row. The search ends at the first row that it cannot prove.
        """
        places, stacked = list(rows), torch.stack(list(rows.values()))
        bounds, trees = self.slopes(stacked, threshold)
        if float(bounds.min()) <= threshold:
            self.add_lemmas()
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
            return Outcome(False, float(bounds.min()), domains), False
        proof = assemble(self.base, self.net.units, dict(zip(places, trees, strict=True)))
        proved = tree_bounds(self.graph, self.rounding, self.box, self.root, proof, rows, self.limits.memory_bytes, self.executions)
        lower = min(proved.values())
        return Outcome(lower > threshold, lower, domains, proof), domains > 0


def prove(
    graph: Graph,
    rounding: Rounding,
    box: Box | Region,
    boxes: Mapping[str, Box],
    row: Tensor,
    threshold: float,
    limits: Limits,
    progress: Progress | None = None,
    prover: Prover | None = None,
) -> Outcome:
    """Tries to prove row · output > threshold for every input in `box`, by what is cheapest: CROWN, slopes, lemmas, branch and bound.

    `box` (a box or another region) and `boxes` (the refined CROWN enclosure) are float64 with batch 1, `row` float64 [outputs].
    `progress(domains, lower)` is called after each batch. Rows of one region share their lemmas, and the clock, when they are given one
    `Prover`.
    """
    prover = prover or Prover(graph, rounding, box, boxes, limits)
    threads = torch.get_num_threads()
    # Torch's own threads wait for each other after every operation, and these are short: whole batches are shared out instead.
    torch.set_num_threads(1)
    try:
        lower = float(prover.plain(row.unsqueeze(0))[0])
        if lower > threshold:
            return Outcome(True, lower, proof=no_proof(prover.base.units))
        if isinstance(box, Region) or not unit_split.applies(graph):
            return prover.settle({0: row}, threshold, progress=progress)[0]
        # Other curves are cut too, and what decides is float64 at once: such an outcome is proved, and has no proof to store.
        if len(prover.net.units):
            outcome = prover.settle({0: row}, threshold, branching=False, progress=progress)[0]
            if outcome.proved:
                return outcome
        found = unit_split.split_units(
            graph, rounding, box, prover.boxes, row, threshold, domains=limits.domains, deadline=prover.deadline, progress=progress
        )
        return Outcome(found.proved, found.lower, found.domains, None, found.point, found.timed_out)
    finally:
        torch.set_num_threads(threads)


class _Search:
    """One row's branch and bound under way."""

    def __init__(self, prover: Prover, row: Tensor, threshold: float, limit: int, progress: Progress | None) -> None:
        self.prover, self.net, self.row, self.threshold, self.limit, self.progress = prover, prover.net, row, threshold, limit, progress
        self.form = self.net.form(row.unsqueeze(0))
        self.margin = float(_margins(row.unsqueeze(0), threshold)[0])
        self.tree = Growing()
        self.queue: list[Domain] = []
        self.waiting: dict[int, Domain] = {}
        self.domains = self.batches = 0
        self.lock = Lock()
        self.counterexample: Tensor | None = None
        self.visited: list[Tensor] = []
        self.batch = max(1, min(BATCH, prover.limits.memory_bytes // (4 * LOOK_AHEAD * self.net.row_bytes * max(1, prover.limits.jobs))))

    @property
    def goal(self) -> float:
        return self.threshold + self.margin

    def run(self) -> Outcome:
        root = self.net.choice(1)
        bound, best = optimise(self.net, self.form, root, self.goal, ROOT_EFFORT)
        none = np.zeros(0, np.int32)
        start = Domain(float(bound[0]), 0, none, none.astype(np.int8), quantise(best.slopes)[0], np.zeros(0, np.float32))
        heapq.heappush(self.queue, start)
        for _ in range(ATTEMPTS):
            stopped = self._empty_queue()
            if stopped is not None:
                return stopped
            self.prover.visit([self.visited.pop() for _ in range(len(self.visited))])
            bounds = self.prover.leaves(self.tree, self.row)
            if float(bounds.min()) > self.threshold:
                return Outcome(True, float(bounds.min()), self.domains)
            # Float32 was too sure of these; they are split further, and more is asked of what comes of them.
            self.margin = 4 * self.margin + self.threshold - float(bounds.min())
            _, order = self.tree.preorder()
            for place in (bounds <= self.threshold).nonzero().flatten().tolist():
                heapq.heappush(self.queue, self.waiting[order[place]])
                del self.tree.leaves[order[place]]
        return Outcome(False, float(bounds.min()), self.domains)

    def _empty_queue(self) -> Outcome | None:
        """Splits domains until none is left (None), or there is a reason to stop."""
        while self.queue:
            lowest = self.queue[0].bound
            if self.progress is not None:
                self.progress(self.domains, lowest)
            if self.domains >= self.limit:
                return Outcome(False, lowest, self.domains)
            if perf_counter() > self.prover.deadline:
                return Outcome(False, lowest, self.domains, timed_out=True)
            jobs = self.prover.limits.jobs if len(self.queue) >= WORTH_THREADS else 1
            parents = [heapq.heappop(self.queue) for _ in range(min(jobs * self.batch, len(self.queue)))]
            parts = [parents[i::jobs] for i in range(min(jobs, len(parents)))]
            if not all([self._branch(parents)] if jobs == 1 else list(self.prover.pool.map(self._branch, parts))):
                return Outcome(False, lowest, self.domains, counterexample=self.counterexample)
        return None

    def _branch(self, parents: list[Domain]) -> bool:
        """Splits a batch of domains; False where a counterexample is found, or a domain has nothing left to split."""
        choice = self._choice(parents)
        found = self.net.evaluate(self.form, choice, True)  # type: ignore[arg-type]  # the form is the net's own
        if self._attack(found):
            return False
        columns, multipliers = best_split(self.net, self.form, choice, found, LOOK_AHEAD, self.goal)
        stuck = (columns < 0).nonzero().flatten()
        if len(stuck):
            best = choice[stuck]
            for effort in LAST_EFFORTS:
                _, best = optimise(self.net, self.form, best, self.goal, effort)
            bounds, best = reach(self.net, self.form, best, self.goal, LAST_STEPS)
            if bool((bounds <= self.goal).any()):
                return False
            self._settle([parents[i] for i in stuck.tolist()], bounds, best)
            keep = (columns >= 0).nonzero().flatten()
            parents, choice, columns = [parents[i] for i in keep.tolist()], choice[keep], columns[keep]
            multipliers = multipliers.view(2, -1)[:, keep].flatten()
            if not parents:
                return True
        halves = children(choice, columns, multipliers)
        bounds, best = optimise(self.net, self.form, halves, self.goal, EFFORT)
        born: list[Domain] = []
        with self.lock:
            self.domains += len(halves)
            pairs = [
                self.tree.grow(parent.node, int(self.net.units[column])) for parent, column in zip(parents, columns.tolist(), strict=True)
            ]
        for half in (0, 1):
            for parent, pair, column in zip(parents, pairs, columns.tolist(), strict=True):
                born.append(
                    Domain(
                        inf,
                        pair[half],
                        np.append(parent.columns, np.int32(column)),
                        np.append(parent.signs, np.int8(2 * half - 1)),
                        parent.slopes,
                        parent.multipliers,
                    )
                )
        self._settle(born, bounds, best)
        return True

    def _settle(self, domains: list[Domain], bounds: Tensor, best: Choice) -> None:
        """Makes leaves of the domains whose bound holds with slopes as a proof stores them, and queues the others."""
        stored = quantise(best.slopes)
        done = (bounds > self.goal).nonzero().flatten()
        if len(done):
            rounded = Choice(restore(stored[done]), best.splits[done], best.multipliers[done])
            bounds = bounds.clone()
            bounds[done] = self.net.evaluate(self.form, rounded, False).bound  # type: ignore[arg-type]  # the form is the net's own
        with self.lock:
            for i, (domain, bound) in enumerate(zip(domains, bounds.tolist(), strict=True)):
                domain.bound, domain.slopes = bound, stored[i]
                domain.multipliers = best.multipliers[i, domain.columns].numpy()
                if bound > self.goal:
                    self.tree.leaves[domain.node] = Leaf(stored[i].numpy(), domain.multipliers)
                    self.waiting[domain.node] = domain
                else:
                    heapq.heappush(self.queue, domain)

    def _choice(self, domains: list[Domain]) -> Choice:
        """Returns the stored choices of domains, one row each."""
        choice = Choice(
            restore(torch.stack([domain.slopes for domain in domains])),
            *(torch.zeros(len(domains), len(self.net.units)) for _ in range(2)),
        )
        rows = torch.from_numpy(np.repeat(np.arange(len(domains)), [len(domain.columns) for domain in domains]))
        columns = torch.from_numpy(np.concatenate([domain.columns for domain in domains]).astype(np.int64))
        choice.splits[rows, columns] = torch.from_numpy(np.concatenate([domain.signs for domain in domains]).astype(np.float32))
        choice.multipliers[rows, columns] = torch.from_numpy(np.concatenate([domain.multipliers for domain in domains]))
        return choice

    def _attack(self, found: Evaluation) -> bool:
        """Executes the network at the points that attain the worst bounds; True where the row fails at one of them.

        In batches whose number is a power of two, gradient descent goes on from there.
        """
        if found.point is None:
            return False
        self.batches += 1
        prover, steps = self.prover, ATTACK_STEPS if self.batches & (self.batches - 1) == 0 else 0
        half = (prover.upper32 - prover.lower32) / 2
        x = self.net.points(found.point[:ATTACKED]).float().view(-1, *prover.graph.input_shape)
        for step in range(steps + 1):
            x = torch.minimum(torch.maximum(x, prover.lower32), prover.upper32).requires_grad_(step < steps)
            with torch.set_grad_enabled(step < steps):
                values = run(prover.graph, prover.params32, x).flatten(1) @ self.row.float()
            worst = int(values.argmin())
            if float(values[worst].detach()) <= self.threshold:
                self.counterexample = x[worst].detach()
                return True
            if step == steps and len(self.visited) < VISITED:
                self.visited.append(x[worst].detach())
            if step < steps:
                (gradient,) = torch.autograd.grad(values.sum(), x)
                x = x.detach() - 0.5 * 0.04 ** (step / steps) * half * gradient.sign()
        return False


def _margins(rows: Tensor, threshold: float) -> Tensor:
    """Returns by how much a float32 bound of each row must exceed the threshold to be believed."""
    return (MARGIN * (10 * rows.abs().sum(dim=1) + abs(threshold))).float()
