"""Branch and bound on the inputs of curves of every kind: ReLU, LeakyRelu, Clip, Sigmoid, Tanh, quantisation.

Shi et al., "Neural Network Verification with Branch-and-Bound for General Nonlinearities", arXiv 2405.21063 (GenBaB): a domain is a box of
pre-activations, split at a point of one of them; each half has a linear relaxation of its own there, and slopes and multipliers of the
splits are optimised. Bounds are float64 with the contract's rounding throughout, and nothing is stored: for queries, not for claims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from vsparse.bounds.backward import CrownPass
from vsparse.bounds.ball import Box
from vsparse.bounds.crown import ancestors, crown
from vsparse.bounds.curves import curve_rules, has_two_slopes, is_curve
from vsparse.bounds.executions import Executions
from vsparse.bounds.interval import deployed
from vsparse.bounds.refine import refine
from vsparse.bounds.rounding import Rounding
from vsparse.bounds.rules import require, rules_of
from vsparse.compute_device import reading_back, to_host
from vsparse.graph.execute import run
from vsparse.graph.ir import Graph
from vsparse.search.unit_domains import Domains

# Steps of Adam for each domain, the first one's size (of slopes, and of multipliers relative to coefficients), and its decay.
STEPS, RATE, DECAY = 8, 0.3, 0.85
# Where nothing is left to split, only multipliers are optimised.
LAST_STEPS, LAST_DECAY = 200, 0.98
PIECE, LEAST_PIECE = 64, 2
# Bytes of all boxes of one piece of domains.
BOX_BYTES = 2**27
# With so many units at most, boxes of what curves read are refined in every domain.
REFINED_UNITS = 256
# A unit whose box is narrower than this, relative to its magnitude, is not cut.
NARROW = 2.0**-40
# Points that are executed, and checked against every domain that contains them.
EXECUTED = 32


@dataclass(frozen=True)
class Found:
    """The result: `proved`, or a `point` (float32 [*shape]) at which float32 arithmetic finds row · output <= threshold, or neither.

    `lower` is the least bound that was proved of a domain, or the last one that was not.
    """

    proved: bool
    lower: float
    domains: int
    point: Tensor | None = None
    timed_out: bool = False


def applies(graph: Graph) -> bool:
    """Returns whether a graph has curves other than ReLU, which splitting ReLUs alone leaves as they are."""
    return any(has_two_slopes(node) for node in graph.nodes)


def split_units(
    graph: Graph,
    rounding: Rounding,
    box: Box,
    boxes: Mapping[str, Box],
    row: Tensor,
    threshold: float,
    *,
    domains: int,
    deadline: float,
    progress: Callable[[int, float], None] | None = None,
) -> Found:
    """Tries to prove row · output > threshold for every input in `box`, float64 [1, …], by splitting the boxes of the curves' inputs.

    `boxes` enclose the activations for these inputs (the refined enclosure), `row` is float64 [outputs]. It ends after so many domains,
    or at `deadline` (of `time.perf_counter`). `progress(domains, lower)` is called after each piece.
    SoundnessError where an executed point contradicts a bound.
    """
    search = _Search(graph, rounding, box, boxes, row, threshold)
    search.check_root()
    open_ = search.root()
    least, count = float("inf"), 0
    while len(open_):
        if perf_counter() > deadline:
            return Found(False, -torch.inf, count, timed_out=True)
        if count >= domains:
            return Found(False, -torch.inf, count)
        # The last ones first: depth-first search keeps the list of open domains short.
        keep = max(0, len(open_) - search.piece)
        part, open_ = open_.pick(slice(keep, None)), open_.pick(slice(0, keep))
        found, part, scores, point = search.bound(part)
        bounds = to_host(found)
        count += len(part)
        if point is not None:
            return Found(False, float(bounds.min()), count, point)
        proved = bounds > threshold
        least = min([least, *bounds[proved].tolist()])
        if progress is not None:
            progress(count, float(bounds.min()))
        stuck = (~proved & (to_host(scores).amax(1) <= 0)).nonzero().flatten()
        if len(stuck):
            more = search.bound(part.pick(stuck.to(search.device)), LAST_STEPS, LAST_DECAY)[0]
            bounds[stuck] = torch.fmax(bounds[stuck], to_host(more))
            if not bool((bounds[stuck] > threshold).all()):
                return Found(False, float(bounds.min()), count)
            least = min([least, *bounds[stuck].tolist()])
        left = (~(bounds > threshold)).nonzero().flatten().to(search.device)
        if len(left):
            open_ = open_.join(search.cut(part.pick(left), scores[left]))
    return Found(True, least, count)


class _Search:
    """What all domains share."""

    def __init__(self, graph: Graph, rounding: Rounding, box: Box, boxes: Mapping[str, Box], row: Tensor, threshold: float) -> None:
        self.graph, self.rounding, self.box, self.row, self.threshold = graph, rounding, box, row, threshold
        self.boxes, self.device = dict(boxes), rounding.device
        self.walk = ancestors(graph, graph.output)
        require(self.walk, "backward")
        needed = {node.name for node in self.walk}
        self.curves = [node for node in graph.nodes if is_curve(node) and node.name in needed]
        self.read = {node.inputs[0] for node in self.curves}
        self.order = [node for node in graph.nodes if node.name in needed]
        size = sum(node.size for node in self.order) + box[0].numel()
        # An evaluation with gradients keeps about so many arrays of the size of all activations.
        self.piece = max(LEAST_PIECE, min(PIECE, BOX_BYTES // (8 * 8 * size)))
        self.refined = sum(node.size for node in self.curves) <= REFINED_UNITS
        self.params32 = {name: value.to(self.device) for name, value in graph.tensors(torch.float32).items()}
        self.rows = row.view(1, 1, -1)
        inner = box[0].float(), box[1].float()
        ends = inner[0].new_full((), torch.inf), inner[1].new_full((), -torch.inf)
        lower = torch.where(inner[0].double() < box[0], torch.nextafter(inner[0], ends[0]), inner[0])
        upper = torch.where(inner[1].double() > box[1], torch.nextafter(inner[1], ends[1]), inner[1])
        self.inner = lower, upper
        fraction = torch.rand(EXECUTED, *box[0].shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        fraction[: EXECUTED // 2] = fraction[: EXECUTED // 2].round()
        self.executions = Executions.of(graph, rounding.params, torch.lerp(box[0], box[1], fraction.to(self.device)).clamp(*box))

    def check_root(self) -> None:
        """Raises SoundnessError where an executed point lies outside of the boxes that the search starts from."""
        self.executions.check(self.boxes, "boxes of the region")

    def _held(self, part: Domains) -> Tensor:
        """Returns which executed points lie in which domains, [n, executed]."""
        held = torch.ones(len(part), EXECUTED, dtype=torch.bool, device=self.device)
        for name, (lower, upper) in part.ends.items():
            value = self.executions.values[name].flatten(1)
            held &= ((value >= lower.unsqueeze(1)) & (value <= upper.unsqueeze(1))).all(2)
        return held

    def _check(self, held: Tensor, boxes: Mapping[str, Box], bounds: Tensor) -> None:
        """Raises SoundnessError where an executed point of a domain lies outside of its boxes or below its bound."""
        with reading_back("which points lie in which domain"):
            domain, point = held.nonzero(as_tuple=True)
        executed = replace(self.executions[point], samples=domain)
        # An empty box belongs to a domain without points; that it is empty proves the domain.
        executed.check({name: boxes[name] for name in self.read}, "boxes of a part of the region", empty_may_be=True)
        executed.check_rows(self.rows[0], bounds.unsqueeze(1), "a part of the region")

    def root(self) -> Domains:
        """Returns the one domain that is everything."""
        ends = {name: (self.boxes[name][0].flatten(1), self.boxes[name][1].flatten(1)) for name in self.read}
        slopes = {node.name: curve_rules(node).usual_slopes(node, *ends[node.inputs[0]]) for node in self.curves}
        none = {node.name: torch.zeros_like(ends[node.inputs[0]][0]) for node in self.curves}
        return Domains(ends, slopes, {name: (zero, zero) for name, zero in none.items()})

    def bound(self, part: Domains, steps: int = STEPS, decay: float = DECAY) -> tuple[Tensor, Domains, Tensor, Tensor | None]:
        """Returns bounds [n] in float64 with rounding (+inf where a domain has no points), the domains with what was found for them,
        what cutting each unit promises [n, units], and a point where one violates the row."""
        held = self._held(part)
        boxes, empty = self._boxes(part)
        part.ends = {name: (boxes[name][0].flatten(1), boxes[name][1].flatten(1)) for name in part.ends}
        n = len(part)
        box = self._box(n)
        cut = {
            node.name: tuple(
                (own > root.flatten(1)) if side == 0 else (own < root.flatten(1))
                for side, (own, root) in enumerate(zip(part.ends[node.inputs[0]], self.boxes[node.inputs[0]], strict=True))
            )
            for node in self.curves
        }
        best, highest = part, torch.full((n,), -torch.inf, dtype=torch.float64, device=self.device)
        free = part.free(self.curves)
        moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in free]
        caps = self._caps()
        scores, coefficients = torch.zeros(n, sum(node.size for node in self.curves), dtype=torch.float64, device=self.device), None
        reach: list[Tensor] = []
        for step in range(steps + 1):
            last = step == steps
            with torch.set_grad_enabled(not last):
                free = [value.detach().requires_grad_(not last) for value in free]
                now = part.named(self.curves, free)
                found, at, coefficients = self._evaluate(boxes, box, now)
            better = torch.nan_to_num(found.detach(), nan=-torch.inf) > highest
            highest = torch.where(better, found.detach(), highest)
            best = best.mixed(better, now)
            if step == 0:
                scores, reach = self._scores(boxes, part, at), [coefficients.detach()]
            if last or bool(to_host((highest > self.threshold + 1e-6 * (1 + abs(self.threshold))).all())):
                break
            wanted = torch.where(torch.isfinite(found) & (highest <= self.threshold), found, 0.0).sum()
            if not wanted.requires_grad:
                break
            gradients = torch.autograd.grad(wanted, free, allow_unused=True)
            with torch.no_grad():
                free = self._stepped(free, gradients, moments, caps, cut, at, step, decay)
        best = Domains(part.ends, best.slopes, best.duals)
        choices = best.choices(self.curves)
        with torch.no_grad():
            bounds = crown(self.graph, self.rounding.params, box, self.rows.expand(n, 1, -1), boxes, self.rounding, choices)[:, 0]
            if coefficients is not None:
                reach.append(coefficients.detach())
            bounds = torch.where(empty, torch.inf, bounds)
            self._check(held, boxes, bounds)
            with reading_back("which domains are open"):
                open_ = (bounds <= self.threshold).nonzero().flatten()
            point = self._attack(torch.cat([one[open_] for one in reach]))
        return bounds, best, scores, point

    def _boxes(self, part: Domains) -> tuple[dict[str, Box], Tensor]:
        """Returns boxes of all activations with cut ones propagated on, in small networks refined, and which domains have no points."""
        n = len(part)
        boxes: dict[str, Box] = {}
        empty = torch.zeros(n, dtype=torch.bool, device=self.device)

        def meet(one: Box, two: Box) -> Box:
            low, high = torch.maximum(one[0], two[0]), torch.minimum(one[1], two[1])
            crossed = low > high
            empty.logical_or_(crossed.flatten(1).any(1))
            # An empty box has no relaxation; the domain is proved already.
            return torch.where(crossed, two[0], low), torch.where(crossed, two[1], high)

        with torch.no_grad():
            for name in [self.graph.input, *(node.name for node in self.order)]:
                low, high = self.boxes[name]
                one = low.expand(n, *low.shape[1:]), high.expand(n, *high.shape[1:])
                if name != self.graph.input:
                    one = meet(deployed(self.graph.node(name), self.rounding.params, boxes, self.rounding), one)
                if name in part.ends:
                    low, high = (end.view_as(one[0]) for end in part.ends[name])
                    one = meet((low, high), one)
                boxes[name] = one
            if self.refined:
                boxes |= self._others(n)
                found = refine(self.graph, self.rounding.params, self._box(n), boxes, self.rounding)
                boxes = {name: meet(found[name], boxes[name]) for name in boxes}
        return boxes, empty

    def _others(self, n: int) -> dict[str, Box]:
        """Returns the boxes of activations that the output does not depend on."""
        known = {self.graph.input, *(node.name for node in self.order)}
        return {
            name: (low.expand(n, *low.shape[1:]), high.expand(n, *high.shape[1:]))
            for name, (low, high) in self.boxes.items()
            if name not in known
        }

    def _box(self, n: int) -> Box:
        return self.box[0].expand(n, *self.box[0].shape[1:]), self.box[1].expand(n, *self.box[1].shape[1:])

    def _caps(self) -> list[float]:
        return [curve_rules(node).steepest for node in self.curves]

    def _evaluate(self, boxes: Mapping[str, Box], box: Box, part: Domains) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Returns bounds [n] in plain arithmetic, the coefficients of each curve's output [n, size], and those of the input [n, inputs]."""
        rows = self.rows.expand(len(part), 1, -1)
        state = CrownPass(self.graph, self.rounding.params, boxes, part.choices(self.curves), rows, self.graph.output, outward=False)
        at: dict[str, Tensor] = {}
        for node in self.walk:
            a = state.coefficients.pop(node.name)
            if node.name in part.duals:
                at[node.name] = a[:, 0].detach()
            rules_of(node).backward(node, a, state)
        a = state.coefficients[self.graph.input][:, 0]
        lower, upper = (end.flatten(1) for end in box)
        centre, radius = (lower + upper) * 0.5, (upper - lower) * 0.5
        return state.constant[:, 0] + (a * centre - a.abs() * radius).sum(1), at, a

    def _stepped(
        self,
        free: list[Tensor],
        gradients: tuple[Tensor | None, ...],
        moments: list[tuple[Tensor, Tensor]],
        caps: list[float],
        cut: Mapping[str, tuple[Tensor, ...]],
        at: dict[str, Tensor],
        step: int,
        decay: float,
    ) -> list[Tensor]:
        """Returns slopes and multipliers after a step of Adam (Kingma and Ba, ICLR 2015) upwards."""
        moved = []
        for i, (value, gradient, (mean, square)) in enumerate(zip(free, gradients, moments, strict=True)):
            if gradient is None:
                moved.append(value.detach())
                continue
            node = self.curves[i // 4]
            gradient = torch.nan_to_num(gradient)
            mean.mul_(0.9).add_(gradient, alpha=0.1)
            square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
            direction = (mean / (1 - 0.9 ** (step + 1))) / ((square / (1 - 0.99 ** (step + 1))).sqrt() + 1e-12)
            rate = RATE * decay**step
            if i % 4 < 2:
                moved.append((value.detach() + rate * caps[i // 4] * direction).clamp(0, caps[i // 4]))
            else:
                # Multipliers are of the size of the coefficients; those of ends that were not cut stay zero.
                size = at[node.name].abs().amax(1, keepdim=True) * caps[i // 4]
                moved.append(torch.where(cut[node.name][i % 2], (value.detach() + rate * size * direction).clamp(min=0), 0.0))
        return moved

    def _scores(self, boxes: Mapping[str, Box], part: Domains, at: dict[str, Tensor]) -> Tensor:
        """Returns for each unit how much its relaxation may cost: |coefficient| times the gap between its two bounds at the middle."""
        found = []
        for node in self.curves:
            lower, upper = (end.flatten(1) for end in boxes[node.inputs[0]])
            rules = curve_rules(node)
            below, under, above, over = rules.relaxation(node, lower, upper, False)
            middle = (lower + upper) * 0.5
            gap = (above - below) * middle + over - under
            wide = (upper - lower) > NARROW * (1 + torch.maximum(lower.abs(), upper.abs()))
            cut = rules.cut_points(node, lower, upper)
            usable = wide & (cut > lower) & (cut < upper) & torch.isfinite(cut)
            score = torch.nan_to_num(gap * at[node.name].abs(), posinf=1e30).clamp(min=0)
            found.append(torch.where(usable, score, -1.0))
        return torch.cat(found, 1)

    def cut(self, part: Domains, scores: Tensor) -> Domains:
        """Returns both halves of each domain, cut at the unit that promises most."""
        unit = scores.argmax(1)
        low_half, high_half = part.pick(slice(None)), part.pick(slice(None))
        for half in (low_half, high_half):
            half.ends = {name: (low.clone(), high.clone()) for name, (low, high) in half.ends.items()}
            half.slopes = {name: (below.clone(), above.clone()) for name, (below, above) in half.slopes.items()}
        start = 0
        for node in self.curves:
            with reading_back("which domains are cut at a unit of this node"):
                mine = ((unit >= start) & (unit < start + node.size)).nonzero().flatten()
            column, name = unit[mine] - start, node.inputs[0]
            start += node.size
            if not len(mine):
                continue
            lower, upper = (end[mine, column] for end in part.ends[name])
            point = curve_rules(node).cut_points(node, lower, upper)
            low_half.ends[name][1][mine, column] = point
            high_half.ends[name][0][mine, column] = point
            for half, ends in ((low_half, (lower, point)), (high_half, (point, upper))):
                for kept, new in zip(half.slopes[node.name], curve_rules(node).usual_slopes(node, *ends), strict=True):
                    kept[mine, column] = new
        return low_half.join(high_half)

    def _attack(self, reach: Tensor) -> Tensor | None:
        """Executes the network at the corners that attain the bounds; returns a point where the row fails, if there is one."""
        if not len(reach):
            return None
        corner = torch.where(reach > 0, self.box[0].flatten(1), self.box[1].flatten(1)).float().view(-1, *self.graph.input_shape)
        x = torch.minimum(torch.maximum(corner, self.inner[0]), self.inner[1])
        values = to_host(run(self.graph, self.params32, x).flatten(1) @ self.row.float())
        worst = int(values.argmin())
        return to_host(x[worst]) if float(values[worst]) <= self.threshold else None
