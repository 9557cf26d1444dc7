"""One case of a query under way: a box, and the rows that must be proved on it, or refuted."""

from __future__ import annotations

from math import inf
from time import monotonic

import torch
from torch import Tensor

from vsparse.answer import Answered
from vsparse.bounds import Box, Executions, crown, interval, last_layer_folding, refine
from vsparse.compute_device import reading_back
from vsparse.search.specification import Specification
from vsparse.stages.verify.query_attack import attack
from vsparse.stages.verify.query_context import QueryContext
from vsparse.stages.verify.query_engines import CaseProblem, InputSplitting, ReluSplitting, take_turns
from vsparse.vnnlib import Case

LONG_ROUNDS = 12
# Fraction of the remaining time: on large networks a round takes as long as a proof.
ATTACK_FRACTION = 0.2
# Where no proof is possible, and an attack is all that is left.
LAST_ROUNDS = 4
# A case that a few domains prove needs no long attack, which costs as much as many domains.
QUICK_DOMAINS = 256
# With at most so many inputs that are not fixed, bisection of the box is tried first; which engine continues depends on their progress.
FEW_INPUTS = 16
# So many points that look unsafe and are not are examined, later ones ever more rarely.
FIRST_SUSPECTS = 8


class Undecidable(Exception):
    """Raised out of a search at a point where the contract's rounding alone leaves the property open."""


class CaseSearch:
    """One case: a box, its bounds, and the groups of rows that are still to be proved."""

    def __init__(self, context: QueryContext, case: Case) -> None:
        self.context, self.case = context, case
        shape = (1, *context.graph.input_shape)
        ends = case.box.outward() if context.contract.exact else case.box.device()
        lower, upper = (torch.from_numpy(end).view(shape).to(context.device) for end in ends)
        self.box: Box = lower, upper
        low, high, self.rounded = case.box.executable()
        # Where an attack moves; what it finds is looked at on the processor.
        self.inner: Box = torch.from_numpy(low).view(shape), torch.from_numpy(high).view(shape)
        self.specification: Specification | None = None
        self.nearest = -inf
        self.hopeless = False
        self._boxes: dict[str, Box] | None = None
        self._best: list[tuple[float, Tensor]] = []
        self._suspects = 0

    @property
    def boxes(self) -> dict[str, Box]:
        """The tightest boxes found so far, of all activations."""
        if self._boxes is None:
            with torch.no_grad():
                self._boxes = interval(self.context.graph, self.context.rounding.params, self.box, self.context.rounding)
        return self._boxes

    def keep(self, boxes: dict[str, Box]) -> None:
        """Keeps boxes of all activations, so that they need not be computed again."""
        self._boxes = boxes

    def settle(self, bounds: Tensor) -> bool:
        """Takes lower bounds [R or more] of the rows; returns whether they prove the specification, and keeps the groups that are left."""
        if self.specification is None:
            return False
        best = self.specification.best(bounds[None, : len(self.specification.rows)] - self.specification.thresholds)[0]
        open_ = (~(best > 0)).nonzero().flatten()  # written so that NaN proves nothing
        if not len(open_):
            return True
        self.specification, self.nearest = self.specification.of(open_), float(best[open_].min())
        return False

    def accept(self, point: Tensor) -> bool:
        """Keeps a float32 point [*shape] near the box as a witness if it is one."""
        low, high = self.inner
        return self.context.accept(self.case, self.rounded, torch.minimum(torch.maximum(point, low[0]), high[0]))

    def _accept_or_stop(self, point: Tensor) -> bool:
        """As `accept`; raises Undecidable where a point that looked unsafe, and is not, shows that there is no proof."""
        if self.accept(point):
            return True
        self._suspects += 1
        if (self._suspects <= FIRST_SUSPECTS or self._suspects & (self._suspects - 1) == 0) and self.stuck(point[None]):
            raise Undecidable
        return False

    def attack(self, rounds: int) -> bool:
        """Searches for a witness by gradient descent, for at most so many rounds and a fraction of the remaining time."""
        low, high = self.inner
        if self.specification is None:
            return self.accept((low + (high - low) * 0.5).clamp(low, high)[0])
        one = self.context
        found = attack(
            one.graph,
            one.params32,
            (low.to(one.device), high.to(one.device)),
            self.boxes,
            self.specification.to(one.device),
            self.accept,
            rounds=rounds,
            seed=one.seed,
            deadline=monotonic() + ATTACK_FRACTION * (one.deadline - monotonic()),
            best=self._best,
        )
        self.executions().check(self.boxes, "boxes at points that an attack visited")
        return found is not None

    def executions(self) -> Executions:
        """Returns executions of the centre and of the attacks' nearest points, all of them members of the box."""
        device = self.context.device
        points = torch.cat([(self.box[0] + self.box[1]) * 0.5, *(point[None].double().to(device) for _, point in self._best)])
        executed = Executions.of(self.context.graph, self.context.rounding.params, points)
        return executed.placed(self.box)

    def only_attack(self) -> Answered:
        """Searches for a witness only."""
        if self.attack(LAST_ROUNDS):
            return "sat"
        return "timeout" if self.context.late else "unknown"

    def stuck(self, points: Tensor) -> bool:
        """Whether at one of some points [n, *shape] of the box no bound proves the specification, even over a box of that one point.

        What rounding alone leaves open there is open in every box that contains the point: E does not shrink with the box, and CROWN over
        refined boxes is the tightest bound that a search would use.
        """
        if self.specification is None:
            return True
        one, x = self.context, points.double().to(self.context.device)
        specification = self.specification.to(one.device)
        # A float32 number of a device's box lies in it; under `real` the points of the attack may lie beside it.
        x = torch.minimum(torch.maximum(x, self.box[0]), self.box[1])
        with torch.no_grad():
            boxes = interval(one.graph, one.rounding.params, (x, x), one.rounding)
            for last in (False, True):
                bounds = crown(
                    one.graph, one.rounding.params, (x, x), specification.rows, boxes, one.rounding, None, None, one.working_bytes
                )
                bounds = torch.fmax(bounds, last_layer_folding(one.graph, one.rounding.params, specification.rows, boxes, one.rounding))
                with reading_back("at which points the property is open"):
                    open_ = (~(specification.best(bounds - specification.thresholds) > 0)).any(1).nonzero().flatten()
                if not len(open_) or last:
                    return len(open_) > 0
                x, boxes = x[open_], {name: (box[0][open_], box[1][open_]) for name, box in boxes.items()}
                boxes = refine(one.graph, one.rounding.params, (x, x), boxes, one.rounding)
        return False

    def search(self) -> Answered:
        """Proves that no output of the case is unsafe, or finds a witness."""
        one = self.context
        if self.specification is None:
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
        free = sum(a < b for a, b in zip(self.case.box.lower, self.case.box.upper, strict=True))
        inner = self.inner[0].to(one.device), self.inner[1].to(one.device)
        problem = CaseProblem(one, self.box, inner, self.specification, self.boxes, self._accept_or_stop, self._stop, self.executions)
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
