"""One case of a query under way: a box, and the rows that must be proved on it, or refuted."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import inf, isfinite
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.answer import Answered, Witness
from vsparse.bounds import Box, Executions, Rounding, crown, interval, last_layer_folding, refine
from vsparse.contract import Contract
from vsparse.graph import Graph
from vsparse.search.goal import Goal
from vsparse.stages.verify.deployed import Runtime
from vsparse.stages.verify.query_attack import attack
from vsparse.stages.verify.query_engines import InputSplitting, Problem, ReluSplitting, take_turns
from vsparse.stages.verify.query_goal import rounded_away, rows_of
from vsparse.vnnlib import Case, Conjunction, Query, Region, decimal, rounded_up, satisfied

LONG_ROUNDS = 12
# Of the time that is left: on large networks a round takes as long as a proof.
ATTACK_SHARE = 0.2
# Where no proof is possible, and an attack is all that is left.
LAST_ROUNDS = 4
# What a few domains prove needs no long attack, which costs as much as many domains.
QUICK_DOMAINS = 256
# With so many inputs at most that are not fixed, cutting the box is tried first. Which engine goes on follows from what each attains.
FEW_INPUTS = 16
# Points that look unsafe and are not are examined the first time, and then ever more rarely.
FIRST_SUSPECTS = 8


class Undecidable(Exception):
    """Raised out of a search at a point where the contract's rounding alone leaves the property open."""


class Common:
    """What is the same for all cases: the network, its runtime, limits, and what was found."""

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
    ) -> None:
        self.graph, self.query, self.contract = graph, query, contract
        self.deadline, self.memory_bytes, self.jobs, self.seed = deadline, memory_bytes, jobs, seed
        self.rounding = Rounding(graph, contract)
        self.params32 = graph.tensors(torch.float32)
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
        return max(2**20, min(2**30, self.memory_bytes // 4))

    def count(self, domains: int) -> None:
        """Counts domains for the answer and the progress."""
        self.domains += domains
        if self.progress is not None:
            self.progress(self.domains)

    def accept(self, case: Case, rounded: NDArray[np.bool_], point: Tensor) -> bool:
        """Keeps a float32 input [*shape] as the witness if it is one; `rounded` [inputs] tells those that no float32 number meets."""
        inputs = point.numpy().astype(np.float32)
        flat = inputs.ravel()
        exact = case.region.nearest(flat) if np.isfinite(flat).all() else ()
        # Inputs that a float32 number can meet must be met exactly.
        if not exact or any(Fraction(float(x)) != e for x, e, r in zip(flat.tolist(), exact, rounded.tolist(), strict=True) if not r):
            return False
        outputs = self.runtime.logits(inputs[None])[0].ravel()
        count = int(rounded.sum())
        real = self.contract.exact and count > 0
        for conjunction in case.unsafe:
            if not satisfied(conjunction, outputs):
                continue
            # A violation that is no deeper than one that did not stand up to rounding will not either, or hardly ever.
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
        rows, _ = rows_of(self.query, conjunction)
        with torch.no_grad():
            boxes = interval(self.graph, self.rounding.params, box, self.rounding)
            highest = -last_layer_folding(self.graph, self.rounding.params, -rows, boxes, self.rounding)[0]
            highest = torch.fmin(highest, -crown(self.graph, self.rounding.params, box, -rows, boxes, self.rounding)[0])
        size = torch.maximum(*(end.abs() for end in boxes[self.graph.output]))[0].flatten().tolist()
        return all(map(isfinite, size)) and all(
            isfinite(high) and Fraction(high) + rounded_away(constraint, size) <= constraint.bound
            for high, constraint in zip(highest.tolist(), conjunction, strict=True)
        )


class CaseSearch:
    """One case: a box, its bounds, and the groups of rows that are still to be proved."""

    def __init__(self, common: Common, case: Case) -> None:
        self.common, self.case = common, case
        shape = (1, *common.graph.input_shape)
        ends = case.region.outward() if common.contract.exact else case.region.device()
        lower, upper = (torch.from_numpy(end).view(shape) for end in ends)
        self.box: Box = lower, upper
        low, high, self.rounded = case.region.executable()
        self.inner: Box = torch.from_numpy(low).view(shape), torch.from_numpy(high).view(shape)
        self.goal: Goal | None = None
        self.nearest = -inf
        self.hopeless = False
        self._boxes: dict[str, Box] | None = None
        self._best: list[tuple[float, Tensor]] = []
        self._suspects = 0

    @property
    def boxes(self) -> dict[str, Box]:
        """The best boxes so far of all activations."""
        if self._boxes is None:
            with torch.no_grad():
                self._boxes = interval(self.common.graph, self.common.rounding.params, self.box, self.common.rounding)
        return self._boxes

    def keep(self, boxes: dict[str, Box]) -> None:
        """Keeps boxes of all activations, so that they need not be computed again."""
        self._boxes = boxes

    def settle(self, bounds: Tensor) -> bool:
        """Takes lower bounds [R or more] of the goal's rows; returns whether they prove all of it, and keeps the groups that are left."""
        if self.goal is None:
            return False
        best = self.goal.best(bounds[None, : len(self.goal.rows)] - self.goal.thresholds)[0]
        open_ = (~(best > 0)).nonzero().flatten()  # so written that what is no number proves nothing
        if not len(open_):
            return True
        self.goal, self.nearest = self.goal.of(open_), float(best[open_].min())
        return False

    def accept(self, point: Tensor) -> bool:
        """Keeps a float32 point [*shape] near the box as a witness if it is one."""
        low, high = self.inner
        return self.common.accept(self.case, self.rounded, torch.minimum(torch.maximum(point, low[0]), high[0]))

    def _accept_or_stop(self, point: Tensor) -> bool:
        """As `accept`; raises Undecidable where a point that looked unsafe, and is not, shows that there is no proof."""
        if self.accept(point):
            return True
        self._suspects += 1
        # The first ones are examined, then ever fewer.
        if (self._suspects <= FIRST_SUSPECTS or self._suspects & (self._suspects - 1) == 0) and self.stuck(point[None]):
            raise Undecidable
        return False

    def attack(self, rounds: int) -> bool:
        """Seeks a witness by gradient descent, for so many rounds at most, and for a share of the time that is left."""
        low, high = self.inner
        if self.goal is None:
            return self.accept((low + (high - low) * 0.5).clamp(low, high)[0])
        one = self.common
        found = attack(
            one.graph,
            one.params32,
            self.inner,
            self.boxes,
            self.goal,
            self.accept,
            rounds=rounds,
            seed=one.seed,
            deadline=monotonic() + ATTACK_SHARE * (one.deadline - monotonic()),
            best=self._best,
        )
        self.executions().check(self.boxes, "boxes at points that an attack visited")
        return found is not None

    def executions(self) -> Executions:
        """Returns executions of the centre and of the points that attacks came nearest with, all of them members of the box."""
        points = torch.cat([(self.box[0] + self.box[1]) * 0.5, *(point[None].double() for _, point in self._best)])
        executed = Executions.of(self.common.graph, self.common.rounding.params, points)
        return executed.placed(self.box)

    def only_attack(self) -> Answered:
        """Seeks a witness, and nothing else."""
        if self.attack(LAST_ROUNDS):
            return "sat"
        return "timeout" if self.common.late else "unknown"

    def stuck(self, points: Tensor) -> bool:
        """Whether no bound proves the goal at one of some points [n, *shape] of the box, even in a box of that one point.

        What rounding alone leaves open there is open in every box that holds the point: E does not fall as a box shrinks, and CROWN over
        refined boxes is the best bound that a search would have.
        """
        if self.goal is None:
            return True
        one, x = self.common, points.double()
        # A float32 number of a device's box lies in it; under `real` the points of the attack may lie beside it.
        x = torch.minimum(torch.maximum(x, self.box[0]), self.box[1])
        with torch.no_grad():
            boxes = interval(one.graph, one.rounding.params, (x, x), one.rounding)
            for last in (False, True):
                bounds = crown(one.graph, one.rounding.params, (x, x), self.goal.rows, boxes, one.rounding, None, None, one.working_bytes)
                bounds = torch.fmax(bounds, last_layer_folding(one.graph, one.rounding.params, self.goal.rows, boxes, one.rounding))
                open_ = (~(self.goal.best(bounds - self.goal.thresholds) > 0)).any(1)
                if not bool(open_.any()) or last:
                    return bool(open_.any())
                x, boxes = x[open_], {name: (box[0][open_], box[1][open_]) for name, box in boxes.items()}
                boxes = refine(one.graph, one.rounding.params, (x, x), boxes, one.rounding)
        return False

    def search(self) -> Answered:
        """Proves that no output of the case is unsafe, or finds a witness after all."""
        one = self.common
        if self.goal is None:
            self.hopeless = False
            return self.only_attack()
        if one.late:
            return "timeout"
        low, high = self.inner
        centre = low + (high - low) * 0.5
        self._best.sort(key=lambda pair: pair[0])
        candidates = torch.cat([centre, *(point[None] for _, point in self._best[:FIRST_SUSPECTS])])
        if self.stuck(candidates):
            self.hopeless = True
            return self.only_attack()
        free = sum(a < b for a, b in zip(self.case.region.lower, self.case.region.upper, strict=True))
        problem = Problem(
            one.graph,
            one.rounding,
            self.box,
            self.inner,
            self.goal,
            self.boxes,
            self._accept_or_stop,
            self._stop,
            self.executions,
            one.count,
            one.jobs,
            one.working_bytes,
            one.deadline,
        )
        inputs, relus = InputSplitting(problem, free), ReluSplitting(problem)
        few = free <= FEW_INPUTS and inputs.possible
        try:
            if not few:
                verdict = relus.run(inf, QUICK_DOMAINS)
                if verdict in ("unsat", "sat", "timeout"):
                    return verdict
                if self.attack(LONG_ROUNDS):
                    return "sat"
            return take_turns(inputs, relus, few=few, deadline=one.deadline)
        except Undecidable:
            self.hopeless = True
            return self.only_attack()

    def _stop(self, points: Tensor) -> bool:
        if self.stuck(points):
            raise Undecidable
        return False


def _around(point: tuple[Fraction, ...], shape: tuple[int, ...]) -> Box:
    """Returns the smallest float64 box around an exact point."""
    lower, upper = Region(point, point).outward()
    return torch.from_numpy(lower).view(shape), torch.from_numpy(upper).view(shape)
