"""Branch and bound on the input box, for networks of few inputs: a domain that cannot be proved is bisected.

Wang et al., "Formal Security Analysis of Neural Networks using Symbolic Intervals", USENIX Security 2018 (bisection by smear); bounds are
those of `bounds.zonotope`, and one backward pass (CROWN) over its boxes. All of it is float64 with the contract's rounding, so that a
domain is settled by what would decide it anyway, and nothing has to be computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from time import monotonic

import torch
from torch import Tensor

from vsparse.bounds import Box, Choices, Executions, Rounding, crown
from vsparse.bounds.affine_forms import AffineForm
from vsparse.bounds.curves import curve_rules, has_two_slopes, is_curve
from vsparse.bounds.zonotope import lower_bounds, zonotope
from vsparse.compute_device import reading_back, to_host
from vsparse.graph.execute import run
from vsparse.graph.ir import Graph, Relu
from vsparse.search.specification import Specification

# Domains bounded at once: few enough for the caches, enough to make up for the cost of each operator.
PIECE = 128
# The same on an accelerator, where a round is one piece.
DEVICE_PIECE = 1024
# Domains of one round, whatever the number of threads, so that the result does not depend on it.
ROUND = 8 * PIECE
MAX_DOMAINS = 10_000_000
MOST_SYMBOLS = 4096
MIXING_STEPS = 12
SLOPE_STEPS, SLOPE_RATE = 4, 0.3


@dataclass(frozen=True)
class OpenDomains:
    """Where a search stopped: the domains that are open, float64 [n, inputs] each, the fraction of the volume that each takes [n], the
    fraction that is settled, and the least margin that was proved."""

    lower: Tensor
    upper: Tensor
    fraction: Tensor
    settled: float
    least: float


@dataclass(frozen=True)
class InputSplitResult:
    """The result: `proved` for the whole box, or a `point` that was accepted as a counterexample, or neither.

    `lower` is the least margin that was proved (−inf where not everything was), `domains` how many were bounded. `left` is where to
    resume after a timeout; without it and without a point there is no proof by bisection.
    """

    proved: bool
    lower: float
    domains: int
    point: Tensor | None = None
    timed_out: bool = False
    left: OpenDomains | None = None


@dataclass(frozen=True)
class _Bounded:
    """A piece of domains after bounding: margins [n] of the worst group, the input each is to be cut at [n], points that look unsafe."""

    margin: Tensor
    widths: Tensor
    points: Tensor


def split_inputs(
    graph: Graph,
    rounding: Rounding,
    box: Box,
    specification: Specification,
    *,
    deadline: float,
    inner: Box | None = None,
    accept: Callable[[Tensor], bool] | None = None,
    jobs: int = 1,
    progress: Callable[[float, int], None] | None = None,
    start: OpenDomains | None = None,
    stuck: Callable[[Tensor], bool] | None = None,
    memory_bytes: int = 2**30,
) -> InputSplitResult:
    """Proves `specification` on a float64 box [1, *input_shape] under the contract, or finds a point that violates it.

    Points are sought in `inner`, a float32 box [1, *input_shape], and count where `accept(point)` says so. `deadline` is in the time of
    `time.monotonic`. `progress(fraction, domains)` gets the fraction of the volume that is settled. `jobs` threads bound domains at once.
    `start` is the `left` of an earlier call. `stuck(points)` is asked about the centre [1, *input_shape] of the worst domain of each round:
    where it says so, no cut can help, and the search ends. `box`, `inner` and `start` are on the device of `rounding`. A batch of domains
    takes about an eighth of `memory_bytes`.
    """
    most_symbols, piece = _sizes(graph, memory_bytes // 8, rounding.device)
    specification = specification.to(rounding.device)
    search = _Search(graph, rounding, specification, inner, box, most_symbols)
    lower, upper = (end.flatten(1) for end in box) if start is None else (start.lower, start.upper)
    fraction = torch.ones(1, dtype=torch.float64, device=rounding.device) if start is None else start.fraction
    least, domains, settled = (float("inf"), 0, 0.0) if start is None else (start.least, 0, start.settled)
    with ThreadPoolExecutor(jobs) as pool:
        while len(lower):
            if monotonic() > deadline or domains > MAX_DOMAINS:
                return InputSplitResult(
                    False, -torch.inf, domains, timed_out=True, left=OpenDomains(lower, upper, fraction, settled, least)
                )
            # The last ones first: depth-first search keeps the list of open domains short.
            keep = max(0, len(lower) - max(piece, ROUND * piece // PIECE if rounding.device.type == "cpu" else 0))
            low, high, part = lower[keep:], upper[keep:], fraction[keep:]
            each = pool.map if rounding.device.type == "cpu" else map  # an accelerator takes its work from one queue
            found = list(each(search.bound, torch.split(low, piece), torch.split(high, piece)))
            domains += len(low)
            for point in to_host(torch.cat([piece.points for piece in found])):
                if accept is not None and accept(point):
                    return InputSplitResult(False, -torch.inf, domains, point)
            margins, widths = torch.cat([piece.margin for piece in found]), torch.cat([piece.widths for piece in found])
            margin = to_host(margins)
            proved = margin > 0
            if stuck is not None and not bool(proved.all()):
                worst = int(margin.argmin())
                if stuck((low[worst] + (high[worst] - low[worst]) * 0.5).view(1, *graph.input_shape)):
                    return InputSplitResult(False, -torch.inf, domains)
            least = min([least, *margin[proved].tolist()])
            settled += float(to_host(part)[proved].sum())
            left = (~proved).nonzero().flatten().to(lower.device)
            if progress is not None:
                progress(settled, domains)
            children = _children(low[left], high[left], part[left], widths[left], times=_times(len(lower)))
            if children is None:
                return InputSplitResult(False, -torch.inf, domains)
            lower, upper, fraction = (torch.cat([old[:keep], new]) for old, new in zip((lower, upper, fraction), children, strict=True))
    return InputSplitResult(True, least, domains)


def _times(open_: int) -> int:
    """Returns how often domains are bisected before they are bounded again: more than once while a round has room for it."""
    return max(1, (PIECE // 2 // max(open_, 1)).bit_length())


def _sizes(graph: Graph, memory_bytes: int, device: torch.device) -> tuple[int, int]:
    """Returns how many symbols a zonotope may have, and how many domains are bounded at once, so that a batch takes so much memory.

    Four arrays of symbols are in memory at once: an operator's input, its output and two intermediate ones.
    """
    inputs = prod(graph.input_shape)
    widest = max([inputs, *(node.size for node in graph.nodes)])
    needed = inputs + sum(node.size for node in graph.nodes if is_curve(node))
    most = max(inputs, min(MOST_SYMBOLS, needed, memory_bytes // (32 * widest)))
    return most, max(1, min(PIECE if device.type == "cpu" else DEVICE_PIECE, memory_bytes // (32 * widest * most)))


def _children(lower: Tensor, upper: Tensor, fraction: Tensor, widths: Tensor, times: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Cuts each domain in two `times` times, at the input whose weight in `widths` is largest; None where one cannot be cut.

    The halves share their border, so that together they cover the domain.
    """
    for _ in range(times):
        if not len(lower):
            break
        middle = lower + (upper - lower) * 0.5
        possible = (middle > lower) & (middle < upper)
        if not bool(to_host(possible.any(1).all())):
            return None
        at = widths.masked_fill(~possible, -1.0).argmax(1, keepdim=True)
        cut = middle.gather(1, at)
        below, above = upper.scatter(1, at, cut), lower.scatter(1, at, cut)
        widths = widths.scatter(1, at, widths.gather(1, at) * 0.5)
        lower, upper = torch.stack([lower, above], 1).flatten(0, 1), torch.stack([below, upper], 1).flatten(0, 1)
        fraction, widths = (fraction * 0.5).repeat_interleave(2), widths.repeat_interleave(2, 0)
    return lower, upper, fraction


@dataclass(frozen=True)
class _Part:
    """Some of the domains of a piece: their box, and a box for every activation."""

    box: Box
    boxes: dict[str, Box]


class _Search:
    """What all domains share."""

    def __init__(
        self, graph: Graph, rounding: Rounding, specification: Specification, inner: Box | None, box: Box, most_symbols: int
    ) -> None:
        self.most_symbols = most_symbols
        self.graph, self.rounding, self.specification = graph, rounding, specification
        self.params32 = {name: value.to(rounding.device) for name, value in graph.tensors(torch.float32).items()}
        self.shape = graph.input_shape
        self.inner = None if inner is None else tuple(end.flatten(1) for end in inner)
        self.width = (box[1] - box[0]).flatten(1).clamp(min=torch.finfo(torch.float64).tiny)
        self.curves = [node for node in graph.nodes if has_two_slopes(node)]

    def bound(self, lower: Tensor, upper: Tensor) -> _Bounded:
        """Bounds domains [n, inputs] and attacks those that are not proved."""
        with torch.no_grad():
            box = lower.view(-1, *self.shape), upper.view(-1, *self.shape)
            state = zonotope(self.graph, box, self.rounding, self.most_symbols)
            form = state.output
            weights = self._weights(form)
            rows, thresholds = self.specification.mixed(weights, state.boxes[self.graph.output])
            proved = lower_bounds(form, rows)
            executed = Executions.of(self.graph, self.rounding.params, torch.lerp(box[0], box[1], 0.5).clamp(*box))
            executed.check(state.boxes, "boxes of a part of the inputs")
            for bounds in (self._plain, self._with_slopes):
                with reading_back("which domains are open"):
                    open_ = ((proved - thresholds).amin(1) <= 0).nonzero().flatten()
                if len(open_):
                    part = _Part(
                        (box[0][open_], box[1][open_]), {name: (one[0][open_], one[1][open_]) for name, one in state.boxes.items()}
                    )
                    proved[open_] = torch.fmax(proved[open_], bounds(part, rows[open_], thresholds[open_]))
            executed.check_rows(rows, proved, "a part of the inputs")
            margin, worst = (proved - thresholds).min(1)
            aim = rows.gather(1, worst.view(-1, 1, 1).expand(-1, 1, rows.shape[2]))
            moved = (form.symbols @ aim.transpose(1, 2)).squeeze(2)
            # What a cut of an input may gain: its own part of the bound's width, and what it adds to the relaxations' part.
            gain = lower.new_zeros(lower.shape)
            gain[:, state.moving] = (moved.abs().unsqueeze(1) @ state.fractions[:, : moved.shape[1]]).squeeze(1)
            # Where the symbols say nothing, the widest input.
            gain = torch.nan_to_num(gain) + torch.finfo(torch.float64).tiny * (upper - lower) / self.width
            own = lower.new_zeros(lower.shape)
            count = min(moved.shape[1], len(state.moving))
            own[:, state.moving[:count]] = moved[:, :count]
            return _Bounded(margin, gain, self._attack(lower, upper, own, margin))

    def _plain(self, part: _Part, rows: Tensor, thresholds: Tensor) -> Tensor:
        """Returns CROWN's bounds [n, groups] with the usual slopes."""
        return crown(self.graph, self.rounding.params, part.box, rows, part.boxes, self.rounding)

    def _with_slopes(self, part: _Part, rows: Tensor, thresholds: Tensor) -> Tensor:
        """Returns CROWN's bounds [n, groups] with slopes optimised by a few steps of Adam on the worst of them.

        Xu et al., "Fast and Complete", ICLR 2021 (α-CROWN); the slopes start as the zonotope's, and one set serves all rows of a domain.
        """
        relus = [node for node in self.graph.nodes if isinstance(node, Relu)]
        if not relus and not self.curves:
            return rows.new_full(rows.shape[:2], -torch.inf)
        slopes = []
        for node in relus:
            lower, upper = part.boxes[node.inputs[0]]
            slopes.append(torch.nan_to_num(upper / (upper - lower)).clamp(0, 1).unsqueeze(1))
        for curve in self.curves:
            slopes += [slope.unsqueeze(1) for slope in curve_rules(curve).usual_slopes(curve, *part.boxes[curve.inputs[0]])]
        caps = [1.0] * len(relus) + [curve_rules(node).steepest for node in self.curves for _ in range(2)]
        first, second = ([torch.zeros_like(value) for value in slopes] for _ in range(2))

        def choices() -> Choices:
            after = slopes[len(relus) :]
            curves = {node.name: (after[2 * i], after[2 * i + 1]) for i, node in enumerate(self.curves)}
            return Choices({node.name: value for node, value in zip(relus, slopes[: len(relus)], strict=True)}, curves=curves)

        for step in range(1, SLOPE_STEPS + 1):
            with torch.enable_grad():
                slopes = [value.detach().requires_grad_(True) for value in slopes]
                margins = crown(self.graph, self.rounding.params, part.box, rows, part.boxes, None, choices()) - thresholds
                # Rows that are proved, or that cannot be bounded at all, have no gradient.
                loss = torch.where(torch.isfinite(margins), margins, 0.0).clamp(max=0).sum()
                if not loss.requires_grad:
                    break
                gradients = torch.autograd.grad(loss, slopes, allow_unused=True)
            for i, gradient in enumerate(gradients):
                if gradient is None:
                    continue
                first[i] = first[i] * 0.9 + gradient * 0.1
                second[i] = second[i] * 0.99 + gradient * gradient * 0.01
                direction = (first[i] / (1 - 0.9**step)) / ((second[i] / (1 - 0.99**step)).sqrt() + 1e-12)
                moved = slopes[i].detach() + caps[i] * SLOPE_RATE * 0.9 ** (step - 1) * direction
                slopes[i] = torch.nan_to_num(moved).clamp(0, caps[i])
        slopes = [value.detach() for value in slopes]
        return crown(self.graph, self.rounding.params, part.box, rows, part.boxes, self.rounding, choices())

    def _weights(self, form: AffineForm) -> Tensor:
        """Returns weights [n, groups, R] >= 0 with sum 1 in each group, such that the weighted row has a high lower bound.

        That bound is concave in the weights, Σ weight · centre − Σ |Σ weight · symbol|; Frank and Wolfe's steps go towards the row along
        which it rises most, from the best single row, and the best weights on the way are kept.
        """
        specification = self.specification
        centre, symbols = form.centre @ specification.rows.T - specification.thresholds, form.symbols @ specification.rows.T
        outside = specification.group != torch.arange(specification.groups, device=centre.device).unsqueeze(1)
        start = (centre - symbols.abs().sum(1)).unsqueeze(1).masked_fill(outside, -torch.inf).argmax(2)
        weights = best = _one_hot(start, len(specification.rows), centre.dtype)
        if len(specification.rows) == specification.groups:
            return best
        highest = torch.full(start.shape, -torch.inf, dtype=centre.dtype, device=centre.device)
        for step in range(MIXING_STEPS + 1):
            combined = weights @ symbols.transpose(1, 2)
            value = (weights @ centre.unsqueeze(2)).squeeze(2) - combined.abs().sum(2)
            higher = value > highest
            highest, best = torch.where(higher, value, highest), torch.where(higher.unsqueeze(2), weights, best)
            slope = (centre.unsqueeze(1) - combined.sign() @ symbols).masked_fill(outside, -torch.inf)
            towards = _one_hot(slope.argmax(2), len(specification.rows), centre.dtype)
            weights = weights + (towards - weights) * (1 / (step + 2))
        return best

    def _attack(self, lower: Tensor, upper: Tensor, moved: Tensor, margin: Tensor) -> Tensor:
        """Returns the float32 points that look unsafe, of the centre and the corner against the row of each domain that is not proved."""
        with reading_back("which domains are open"):
            open_ = (margin <= 0).nonzero().flatten()
        if self.inner is None or not len(open_):
            return lower.new_zeros(0, *self.shape, dtype=torch.float32)
        corner = torch.where(moved > 0, lower, upper)[open_]
        points = torch.cat([(lower + (upper - lower) * 0.5)[open_], corner]).to(torch.float32)
        points = torch.minimum(torch.maximum(points, self.inner[0]), self.inner[1]).view(-1, *self.shape)
        unsafe = self.specification.best(self.specification.margins(run(self.graph, self.params32, points))).amin(1) <= 0
        with reading_back("which points look unsafe"):
            return points[unsafe]


def _one_hot(index: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    return (index.unsqueeze(-1) == torch.arange(count, device=index.device)).to(dtype)
