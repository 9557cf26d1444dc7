"""Branch and bound on ReLUs for one row, in batches of domains: float32 finds a tree, float64 proves its leaves.

Leaves whose float64 bound (`vsparse.bounds.proof`) stays below the threshold are split further.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from math import inf
from threading import Lock
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.compute_device import reading_back, to_host
from vsparse.graph.execute import run
from vsparse.search.alpha import Effort, optimise, quantise, reach, restore
from vsparse.search.branching import best_split, children
from vsparse.search.relaxed import Choice, Evaluation
from vsparse.search.relaxed_region import ROOT_EFFORT, RelaxedRegion, float32_margins
from vsparse.search.result import SearchProgress, SearchResult
from vsparse.search.tree import Growing, Leaf

BATCH, DEVICE_BATCH = 128, 1024
# Fewer domains than these are not divided among threads.
WORTH_THREADS = 32
LOOK_AHEAD = 6
EFFORT = Effort(steps=12)
# Where every unit is split, only multipliers are optimised: those of an empty domain must grow large, others be exact.
LAST_EFFORTS = [Effort(steps=150, multiplier_rate=rate, decay=0.97) for rate in (0.5, 5.0, 0.05)]
LAST_STEPS = 300
ATTEMPTS = 3
ATTACKED, ATTACK_STEPS = 32, 20
VISITED = 16  # points of a search's own attack that are checked against what is proved


@dataclass(order=True)
class Domain:
    """One part of the region that is still unproved: its node in the tree, the columns split, and the parent's choice to start from."""

    bound: float
    node: int
    columns: NDArray[np.int32] = field(compare=False)
    signs: NDArray[np.int8] = field(compare=False)
    slopes: Tensor = field(compare=False)
    multipliers: NDArray[np.float32] = field(compare=False)


class ReluBranching:
    """Branch and bound for one row [outputs] float64 of a region, within `limit` domains; `tree` is what it has built so far."""

    def __init__(self, region: RelaxedRegion, row: Tensor, threshold: float, limit: int, progress: SearchProgress | None) -> None:
        self.region, self.net, self.row, self.threshold, self.limit, self.progress = region, region.net, row, threshold, limit, progress
        self.form = self.net.form(row.unsqueeze(0))
        self.margin = float(to_host(float32_margins(row.unsqueeze(0), threshold))[0])
        self.tree = Growing()
        self.queue: list[Domain] = []
        self.waiting: dict[int, Domain] = {}
        self.domains = self.batches = 0
        self.lock = Lock()
        self.counterexample: Tensor | None = None
        self.visited: list[Tensor] = []
        self.device = self.net.device
        at_once = region.limits.at_once or (BATCH if self.device.type == "cpu" else DEVICE_BATCH)
        self.batch = max(1, min(at_once, region.limits.memory_bytes // (4 * LOOK_AHEAD * self.net.row_bytes * max(1, region.limits.jobs))))

    @property
    def wanted(self) -> float:
        """The float32 bound at which a domain is done."""
        return self.threshold + self.margin

    def run(self) -> SearchResult:
        """Splits until every leaf is proved in float64, or there is a reason to stop."""
        root = self.net.choice(1)
        bound, best = optimise(self.net, self.form, root, self.wanted, ROOT_EFFORT)
        none = np.zeros(0, np.int32)
        start = Domain(float(to_host(bound)[0]), 0, none, none.astype(np.int8), to_host(quantise(best.slopes))[0], np.zeros(0, np.float32))
        heapq.heappush(self.queue, start)
        for _ in range(ATTEMPTS):
            stopped = self._empty_queue()
            if stopped is not None:
                return stopped
            self.region.visit([self.visited.pop() for _ in range(len(self.visited))])
            bounds = self.region.leaves(self.tree, self.row)
            if float(bounds.min()) > self.threshold:
                return SearchResult(True, float(bounds.min()), self.domains)
            # Float32 overestimated these bounds: the leaves are split further, with a larger margin.
            self.margin = 4 * self.margin + self.threshold - float(bounds.min())
            _, order = self.tree.preorder()
            for leaf in (bounds <= self.threshold).nonzero().flatten().tolist():
                heapq.heappush(self.queue, self.waiting[order[leaf]])
                del self.tree.leaves[order[leaf]]
        return SearchResult(False, float(bounds.min()), self.domains)

    def _empty_queue(self) -> SearchResult | None:
        """Splits domains until none is left (None), or there is a reason to stop."""
        while self.queue:
            lowest = self.queue[0].bound
            if self.progress is not None:
                self.progress(self.domains, lowest)
            if self.domains >= self.limit:
                return SearchResult(False, lowest, self.domains)
            if perf_counter() > self.region.deadline:
                return SearchResult(False, lowest, self.domains, timed_out=True)
            # An accelerator takes its work from one queue.
            jobs = self.region.limits.jobs if len(self.queue) >= WORTH_THREADS and self.device.type == "cpu" else 1
            parents = [heapq.heappop(self.queue) for _ in range(min(jobs * self.batch, len(self.queue)))]
            parts = [parents[i::jobs] for i in range(min(jobs, len(parents)))]
            if not all([self._branch(parents)] if jobs == 1 else list(self.region.pool.map(self._branch, parts))):
                return SearchResult(False, lowest, self.domains, counterexample=self.counterexample)
        return None

    def _branch(self, parents: list[Domain]) -> bool:
        """Splits a batch of domains; False where a counterexample is found, or a domain has nothing left to split."""
        choice = self._choice(parents)
        found = self.net.evaluate(self.form, choice, True)  # type: ignore[arg-type]  # the form is the net's own
        if self._attack(found):
            return False
        columns, multipliers = best_split(self.net, self.form, choice, found, LOOK_AHEAD, self.wanted)
        with reading_back("which domains have nothing left to split"):
            stuck = (columns < 0).nonzero().flatten()
        if len(stuck):
            best = choice[stuck]
            for effort in LAST_EFFORTS:
                _, best = optimise(self.net, self.form, best, self.wanted, effort)
            bounds, best = reach(self.net, self.form, best, self.wanted, LAST_STEPS)
            if bool(to_host(bounds <= self.wanted).any()):
                return False
            self._file([parents[i] for i in to_host(stuck).tolist()], bounds, best)
            with reading_back("which domains are split"):
                keep = (columns >= 0).nonzero().flatten()
            parents, choice, columns = [parents[i] for i in to_host(keep).tolist()], choice[keep], columns[keep]
            multipliers = multipliers.view(2, -1)[:, keep].flatten()
            if not parents:
                return True
        halves = children(choice, columns, multipliers)
        bounds, best = optimise(self.net, self.form, halves, self.wanted, EFFORT)
        created: list[Domain] = []
        split = to_host(columns).tolist()
        with self.lock:
            self.domains += len(halves)
            pairs = [self.tree.grow(parent.node, int(self.net.units[column])) for parent, column in zip(parents, split, strict=True)]
        for half in (0, 1):
            for parent, pair, column in zip(parents, pairs, split, strict=True):
                created.append(
                    Domain(
                        inf,
                        pair[half],
                        np.append(parent.columns, np.int32(column)),
                        np.append(parent.signs, np.int8(2 * half - 1)),
                        parent.slopes,
                        parent.multipliers,
                    )
                )
        self._file(created, bounds, best)
        return True

    def _file(self, domains: list[Domain], bounds: Tensor, best: Choice) -> None:
        """Makes leaves of the domains whose bound holds with slopes as a proof stores them, and queues the others."""
        stored = quantise(best.slopes)
        with reading_back("which domains are proved"):
            done = (bounds > self.wanted).nonzero().flatten()
        if len(done):
            rounded = Choice(restore(stored[done]), best.splits[done], best.multipliers[done])
            bounds = bounds.clone()
            bounds[done] = self.net.evaluate(self.form, rounded, False).bound  # type: ignore[arg-type]  # the form is the net's own
        stored, multipliers = to_host(stored), to_host(best.multipliers)
        with self.lock:
            for i, (domain, bound) in enumerate(zip(domains, to_host(bounds).tolist(), strict=True)):
                domain.bound, domain.slopes = bound, stored[i]
                domain.multipliers = multipliers[i, domain.columns].numpy()
                if bound > self.wanted:
                    self.tree.leaves[domain.node] = Leaf(stored[i].numpy(), domain.multipliers)
                    self.waiting[domain.node] = domain
                else:
                    heapq.heappush(self.queue, domain)

    def _choice(self, domains: list[Domain]) -> Choice:
        """Returns the stored choices of domains, one row each."""
        choice = Choice(
            restore(torch.stack([domain.slopes for domain in domains]).to(self.device)),
            *(torch.zeros(len(domains), len(self.net.units), device=self.device) for _ in range(2)),
        )
        rows = torch.from_numpy(np.repeat(np.arange(len(domains)), [len(domain.columns) for domain in domains]))
        columns = torch.from_numpy(np.concatenate([domain.columns for domain in domains]).astype(np.int64))
        signs = torch.from_numpy(np.concatenate([domain.signs for domain in domains]).astype(np.float32))
        rows, columns = rows.to(self.device), columns.to(self.device)
        choice.splits[rows, columns] = signs.to(self.device)
        choice.multipliers[rows, columns] = torch.from_numpy(np.concatenate([domain.multipliers for domain in domains])).to(self.device)
        return choice

    def _attack(self, found: Evaluation) -> bool:
        """Executes the network at the points that attain the worst bounds; True where the row fails at one of them.

        In batches whose number is a power of two, gradient descent goes on from there.
        """
        if found.point is None:
            return False
        self.batches += 1
        region, steps = self.region, ATTACK_STEPS if self.batches & (self.batches - 1) == 0 else 0
        half = (region.upper32 - region.lower32) / 2
        x = self.net.points(found.point[:ATTACKED]).float().view(-1, *region.graph.input_shape)
        for step in range(steps + 1):
            x = torch.minimum(torch.maximum(x, region.lower32), region.upper32).requires_grad_(step < steps)
            with torch.set_grad_enabled(step < steps):
                values = run(region.graph, region.params32, x).flatten(1) @ self.row.float()
            seen = to_host(values)
            worst = int(seen.argmin())
            if float(seen[worst]) <= self.threshold:
                self.counterexample = to_host(x[worst])
                return True
            if step == steps and len(self.visited) < VISITED:
                self.visited.append(x[worst].detach())
            if step < steps:
                (gradient,) = torch.autograd.grad(values.sum(), x)
                x = x.detach() - 0.5 * 0.04 ** (step / steps) * half * gradient.sign()
        return False
