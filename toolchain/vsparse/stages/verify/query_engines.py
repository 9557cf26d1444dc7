"""The two searches for a case, bisection of the box and branching on ReLUs, in time slices; their progress decides which continues.

Bisection resumes where it stopped. Branch and bound restarts with time slices that double, and keeps what it has proved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, prod
from time import monotonic, perf_counter

import torch
from torch import Tensor

from vsparse.answer import Answered
from vsparse.bounds import Box, Executions, crown, refine, unstable_count
from vsparse.compute_device import to_host
from vsparse.search.branch_and_bound import Prover, prove
from vsparse.search.input_split import OpenDomains, split_inputs
from vsparse.search.result import Limits
from vsparse.search.specification import Specification
from vsparse.stages.verify.query_context import QueryContext

MAX_DOMAINS = 10_000_000
FIRST_SLICE = 1.0
# The engine with the smaller estimate gets so many times the other's slice.
FAVOUR = 8
# Searches with at most about so many seconds left are not interrupted.
SHORT_SEARCH = 30.0
TRIED_ROWS = 16
# Bisection is not tried with more inputs than this, nor where the symbols of one box need more memory than a batch may take: each step
# halves one side only, and a box of 100 sides has 2^100 parts before all sides are halved.
MOST_INPUTS = 256


@dataclass(frozen=True)
class CaseProblem:
    """What an engine works on: a box, the specification to prove on it, and enclosures of all activations.

    Boxes are on the context's device, the specification is on the processor. `accept` takes float32 points [*shape] (as
    `CaseSearch.accept`), `stuck` float64 points [n, *shape]; `executions` are of points of the box.
    """

    context: QueryContext
    box: Box
    inner: Box
    specification: Specification
    boxes: dict[str, Box]
    accept: Callable[[Tensor], bool]
    stuck: Callable[[Tensor], bool]
    executions: Callable[[], Executions]


class InputSplitting:
    """Bisects the box; `estimate` extrapolates the seconds left, infinite while nothing is settled."""

    def __init__(self, problem: CaseProblem, free: int) -> None:
        self.problem = problem
        widest = max([prod(problem.context.graph.input_shape), *(node.size for node in problem.context.graph.nodes)])
        inputs = prod(problem.context.graph.input_shape)
        self.possible = free <= MOST_INPUTS and inputs * widest * 32 <= problem.context.working_bytes
        self.open: OpenDomains | None = None
        self.spent = 0.0
        self.domains = 0

    @property
    def estimate(self) -> float:
        settled = 0.0 if self.open is None else self.open.settled
        return self.spent * (1 - settled) / settled if settled > 0 else inf

    def run(self, seconds: float) -> Answered | None:
        """Continues for about so many seconds; None where the time slice is over."""
        one, started = self.problem, monotonic()
        before = 0

        def progress(fraction: float, domains: int) -> None:
            nonlocal before
            one.context.count(domains - before)
            before = domains

        found = split_inputs(
            one.context.graph,
            one.context.rounding,
            one.box,
            one.specification,
            deadline=min(one.context.deadline, started + seconds),
            inner=one.inner,
            accept=one.accept,
            jobs=one.context.jobs,
            progress=progress,
            start=self.open,
            stuck=one.stuck,
            memory_bytes=one.context.working_bytes,
        )
        self.spent += monotonic() - started
        self.open = found.left
        self.domains += found.domains
        if found.proved:
            return "unsat"
        if found.point is not None:
            return "sat"
        if found.timed_out and self.domains < MAX_DOMAINS:
            return "timeout" if monotonic() > one.context.deadline else None
        return "unknown"


class ReluSplitting:
    """Branches on ReLUs, row by row; `estimate` as of the other engine, from how far the lowest bound rose."""

    def __init__(self, problem: CaseProblem) -> None:
        self.problem = problem
        self.specification: Specification | None = problem.specification
        self.boxes = problem.boxes
        self.prover: Prover | None = None
        self.estimate = inf

    def run(self, seconds: float, domains: int = MAX_DOMAINS) -> Answered | None:
        """Restarts, with at most so many seconds, and domains for each row; None where a limit is reached."""
        one = self.problem
        if self.prover is None:
            needed = self._seconds_to_refine()
            if seconds < inf and needed > FAVOUR * seconds:
                return None  # a later slice is long enough
            with torch.no_grad():
                if needed < (one.context.deadline - monotonic()) / 2:
                    self.boxes = refine(
                        one.context.graph,
                        one.context.rounding.params,
                        one.box,
                        self.boxes,
                        one.context.rounding,
                        memory_limit_bytes=one.context.working_bytes,
                    )
                    one.executions().check(self.boxes, "refined boxes")
                if not self._narrow():
                    return "unsat"
        assert self.specification is not None
        started = monotonic()
        left_seconds = max(0.0, min(one.context.deadline - started, seconds))
        limits = Limits(domains=domains, seconds=left_seconds, memory_bytes=one.context.working_bytes, jobs=one.context.jobs)
        if self.prover is None:
            self.prover = Prover(one.context.graph, one.context.rounding, one.box, self.boxes, limits, one.executions())
        self.prover.limits = limits
        self.prover.deadline = perf_counter() + left_seconds
        specification, settled = self.specification, set[int]()
        with torch.no_grad():
            margins = self._crown(specification)
        verdict: Answered | None = "unsat"
        for group in specification.best(margins)[0].argsort(descending=True).tolist():
            verdict, gained = self._group(self.prover, specification, group, margins[0])
            if verdict != "unsat":
                fraction = (len(settled) + gained) / specification.groups
                self.estimate = (monotonic() - started) * (1 - fraction) / fraction if fraction > 0 else inf
                break
            settled.add(group)
        if verdict == "unsat":
            return verdict
        left = torch.tensor([group for group in range(specification.groups) if group not in settled])
        self.specification = specification.of(left)
        if verdict is None and monotonic() > one.context.deadline:
            return "timeout"
        return verdict

    def _seconds_to_refine(self) -> float:
        """Returns about how long CROWN takes for the inputs of all unstable ReLUs, from how long a few rows of the output take.

        Rows that start in the middle take half as long, and those with small receptive fields still less.
        """
        one, started = self.problem, monotonic()
        assert self.specification is not None
        with torch.no_grad():
            rows = self.specification.rows[:1].expand(TRIED_ROWS, -1).to(one.context.device)
            crown(
                one.context.graph,
                one.context.rounding.params,
                one.box,
                rows,
                self.boxes,
                one.context.rounding,
                None,
                None,
                one.context.working_bytes,
            )
        unstable = int(to_host(unstable_count(one.context.graph, self.boxes).sum()))
        return (monotonic() - started) * unstable / (4 * TRIED_ROWS)

    def _group(self, prover: Prover, specification: Specification, group: int, margins: Tensor) -> tuple[Answered | None, float]:
        """Tries to prove one row of a group, the nearest to it first; returns also which fraction of the way its bound rose."""
        one = self.problem
        rows = (specification.group == group).nonzero().flatten()
        gained, limited = 0.0, False
        for i in rows[margins[rows].argsort(descending=True)].tolist():
            threshold, first, last, before = float(specification.thresholds[i]), None, -inf, 0

            def progress(domains: int, lower: float) -> None:
                nonlocal first, last, before
                one.context.count(domains - before)
                first, last, before = lower if first is None else first, lower, domains

            outcome = prove(
                one.context.graph,
                one.context.rounding,
                one.box,
                self.boxes,
                specification.rows[i].to(one.context.device),
                threshold,
                prover.limits,
                progress=progress,
                prover=prover,
            )
            if outcome.proved:
                return "unsat", 1.0
            if outcome.counterexample is not None:
                # Where float32 finds a violation that replay does not confirm, this row has no proof; the other rows remain.
                if one.accept(outcome.counterexample):
                    return "sat", 1.0
                continue
            if first is not None and first < threshold and last > first:
                gained = max(gained, (last - first) / (threshold - first))
            if outcome.timed_out:
                return None, gained
            limited = limited or outcome.domains >= prover.limits.domains
        return (None if limited and prover.limits.domains < MAX_DOMAINS else "unknown"), gained

    def _crown(self, specification: Specification) -> Tensor:
        """Returns the margins [1, R] of CROWN over the present boxes, on the processor."""
        one = self.problem
        args = (self.boxes, one.context.rounding, None, None, one.context.working_bytes)
        rows = specification.rows.to(one.context.device)
        bounds = crown(one.context.graph, one.context.rounding.params, one.box, rows, *args)
        one.executions().check_rows(rows, bounds, "crown on refined boxes")
        return to_host(bounds) - specification.thresholds

    def _narrow(self) -> bool:
        """Leaves out the groups that CROWN proves; returns whether any is left."""
        assert self.specification is not None
        open_ = (~(self.specification.best(self._crown(self.specification))[0] > 0)).nonzero().flatten()
        self.specification = self.specification.of(open_) if len(open_) else None
        return self.specification is not None


def take_turns(inputs: InputSplitting, relus: ReluSplitting, few: bool, deadline: float) -> Answered:
    """Runs both engines in turns until one has an answer, the one that looks faster for longer; `few`: bisection comes first."""
    slice_ = FIRST_SLICE
    ended: dict[str, Answered] = {}
    while True:
        if monotonic() > deadline:
            return "timeout"
        if not inputs.possible or "inputs" in ended:
            return _last(relus.run(inf) if "relus" not in ended else ended["relus"])
        if "relus" in ended:
            return _last(inputs.run(inf))
        faster = "inputs" if inputs.estimate < relus.estimate or (inputs.estimate == relus.estimate and few) else "relus"
        for name in (faster, "relus" if faster == "inputs" else "inputs"):
            known = min(inputs.estimate, relus.estimate) < inf
            seconds = slice_ * (FAVOUR if name == faster and known else 1)
            verdict = inputs.run(seconds) if name == "inputs" else relus.run(seconds)
            if name == "inputs" and verdict is None and inputs.estimate < min(SHORT_SEARCH, relus.estimate):
                verdict = inputs.run(2 * inputs.estimate)
            if verdict in ("unsat", "sat", "timeout"):
                return verdict
            if verdict == "unknown":
                ended[name] = verdict
                break
        slice_ *= 2


def _last(verdict: Answered | None) -> Answered:
    """Returns the answer of an engine that was given all the time there is."""
    return "unknown" if verdict is None else verdict
