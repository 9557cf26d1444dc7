"""Regression: by how much one real answer may change, |f(x') - f(x)| <= delta, for every execution of x' and of the sample x itself.

docs/numerics.md, section 4.5. With lower <= f(x) <= upper for all executions of the sample, the rows -f(x') and f(x') are bounded as
rows of margins are, and delta + lower + bound(-f(x')) and delta - upper + bound(f(x')) are lower bounds of delta - (f(x') - f(x)) and of
delta + (f(x') - f(x)): the lesser of the two is the margin of a claim. Searched bounds (slopes, branch and bound) are not tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.artifact.certificate import Certificate, Claim
from vsparse.bounds import interval, member
from vsparse.bounds.float64 import TINY, UNIT64
from vsparse.compute_device import to_host
from vsparse.errors import InputError
from vsparse.graph import Graph, run
from vsparse.perturbation import PerturbationSet
from vsparse.stages.verify.answers import falsify, open_positions
from vsparse.stages.verify.attack import CLEAR
from vsparse.stages.verify.cascade import VISITED, Cascade, SampleBatch
from vsparse.stages.verify.deployed import Deployed
from vsparse.stages.verify.device_memory import Positions
from vsparse.stages.verify.spaces import Space, space

# What a counterexample "predicts": an answer beyond delta. Samples have the label 0, within.
BEYOND = 1
NOTE = "delta + lower(f(x)) + lower(-f(x')) and delta - upper(f(x)) + lower(f(x')), the lesser; f(x) enclosed by intervals at the sample"


class RegressionCascade(Cascade):
    """The cascade of a property with delta, for a network with one output.

    The methods bound the two rows as they bound margins. What they leave open stays unknown, unless an attack finds an input whose answer
    is further than delta from the sample's in every execution.
    """

    @property
    def searches(self) -> bool:
        """No searched bound proves anything of a change."""
        return False

    def _rows(self, labels: NDArray[np.int64]) -> Tensor:
        return torch.tensor([[-1.0], [1.0]], dtype=torch.float64).expand(len(labels), 2, 1)

    def _margins(self, lower: Tensor, inputs: NDArray[np.float32]) -> Tensor:
        return change_margins(lower, self.enclosed(inputs), self.question.perturbation.delta)

    def enclosed(self, points: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Returns lower and upper bounds [n] of the answers to points [n, *shape], over all executions within the contract."""
        x = torch.from_numpy(points).double().to(self.device)
        with torch.no_grad():
            ends = interval(self.model.graph, self.params64, (x, x), self.rounding)[self.model.graph.output]
        lower, upper = (to_host(end).flatten() for end in ends)
        return lower, upper

    def replay(self, x: NDArray[np.float32], point: NDArray[np.float32], label: int, pair: tuple[float, float] | None = None) -> int | None:
        """Returns BEYOND for a counterexample, or None where it is none.

        The point must lie in the region around x by exact arithmetic, and its answer be further than delta from that to x: as ONNX Runtime
        computes both, and in every execution within the contract.
        """
        if not member(torch.from_numpy(point), torch.from_numpy(x), self.question.perturbation, pair):
            return None
        delta, both = self.question.perturbation.delta, np.stack([x, point])
        values = self.runtime.logits(both).ravel()
        if not np.isfinite(values).all() or abs(Fraction(float(values[1])) - Fraction(float(values[0]))) <= delta:
            return None
        lower, upper = self.enclosed(both)
        if not bool(torch.isfinite(lower).all() and torch.isfinite(upper).all()):
            return None
        at, there = ((Fraction(float(lower[i])), Fraction(float(upper[i]))) for i in (0, 1))
        return BEYOND if there[0] - at[1] > delta or at[0] - there[1] > delta else None

    def _clean(self, batch: SampleBatch, pending: Positions) -> Positions:
        finite = np.isfinite(self.runtime.logits(batch.inputs[pending])).all(axis=1)
        batch.answer.predicted[pending] = np.where(finite, 0, -1)
        left: Positions = pending[finite]
        return left

    def _attack(self, batch: SampleBatch, pending: Positions, steps: int, restarts: int) -> Positions:
        x = batch.inputs[pending]
        seeds = [(self.question.seed, batch.ids[i]) for i in pending]
        there = space(x, self.question.perturbation)
        delta = float(self.question.perturbation.delta)
        found = furthest(self.model.graph, self.params32, x, there, seeds, delta, steps=steps, restarts=restarts)
        perturbation = self.question.perturbation
        for k, i in enumerate(pending.tolist()):
            point, pair = found[0][k], (float(found[2][k, 0]), float(found[2][k, 1]))
            kept = batch.visited.setdefault(i, [])
            if len(kept) < VISITED and (perturbation.is_box or member(point, torch.from_numpy(batch.inputs[i]), perturbation, pair)):
                kept.append(point)
            if float(found[1][k]) >= delta and (beyond := self.replay(x[k], point.numpy(), 0, pair)) is not None:
                falsify(batch.answer, i, "attack", point.numpy(), beyond)
        return open_positions(batch.answer, pending)

    def _pieces(self, batch: SampleBatch, pending: Positions) -> Positions:
        return pending


def change_margins(lower: Tensor, at: tuple[Tensor, Tensor], delta: Fraction) -> Tensor:
    """Returns lower bounds [n, 2] of delta -/+ (f(x') - f(x)), from those of -f(x') and f(x') [n, 2] and the ends of f(x), each [n].

    float64 sums of three terms, each of which errs by at most 3 units of the sum of their magnitudes; 8 are subtracted.
    """
    least = float(np.nextafter(float(delta), -np.inf))
    ends = torch.stack([at[0], -at[1]], dim=1)
    size = lower.abs() + ends.abs() + least
    return least + ends + lower - size * (8 * UNIT64) - TINY


def furthest(
    graph: Graph,
    params: dict[str, Tensor],
    x: NDArray[np.float32],
    region: Space,
    seeds: Sequence[Sequence[int]],
    delta: float,
    *,
    steps: int,
    restarts: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the points [n, *shape] of the regions around x whose answers projected gradient descent moves furthest, how far, and b and c.

    Madry et al., ICLR 2018, up and down in turn, from the sample and from random points; samples that are clearly beyond delta are done.
    """
    device = next((value.device for value in params.values()), torch.device("cpu"))
    everywhere = region.to(device)
    samples = torch.from_numpy(x).to(device)
    with torch.no_grad():
        own = run(graph, params, samples).flatten()
    best, most = samples.clone(), torch.zeros_like(own)
    pairs = torch.zeros(len(best), 2, dtype=torch.float64, device=device)
    for restart in range(2 * restarts):
        open_ = torch.from_numpy(np.flatnonzero(to_host(most <= delta * (1 + CLEAR)).numpy())).to(device)
        if not len(open_):
            break
        there, sign = everywhere.pick(open_), 1.0 if restart % 2 else -1.0
        mine = [seeds[i] for i in to_host(open_).tolist()]
        state = there.at(samples[open_]) if restart < 2 else there.random(mine, restart)
        for step in range(steps + 1):
            for value in state:
                value.requires_grad_(step < steps)
            with torch.set_grad_enabled(step < steps):
                point = there.point(state)
                change = sign * (run(graph, params, point).flatten() - own[open_])
            better = torch.nan_to_num(change.detach(), nan=-torch.inf, posinf=-torch.inf) > most[open_]
            chosen = open_[better]
            best[chosen], most[chosen] = point.detach()[better], change.detach()[better]
            pairs[chosen] = there.pairs(state).detach()[better].to(pairs)
            if step == steps:
                break
            gradients = torch.autograd.grad(-torch.where(torch.isfinite(change), change, 0.0).sum(), state)
            with torch.no_grad():
                state = there.step(state, gradients, 0.5 * (0.04 ** (step / max(steps - 1, 1))))
    return to_host(best), to_host(most), to_host(pairs)


def require_regression(model: Deployed, perturbation: PerturbationSet, targets: NDArray[np.float64] | None) -> None:
    """Raises InputError where the property, the network's outputs and the samples are not all about a class, or all about a number."""
    if perturbation.regression and targets is None:
        raise InputError(
            "property.delta is about regression, and these samples have classes; leave delta out, or give samples with targets"
        )
    if targets is not None and not perturbation.regression:
        raise InputError("these samples have a number to predict and no class; say with property.delta by how much it may change")
    if perturbation.regression and model.classes != 1:
        raise InputError(f"model {model.file} has {model.classes} outputs, and property.delta is about networks with one; leave delta out")


def with_values(certificate: Certificate, values: NDArray[np.float32]) -> Certificate:
    """Returns a certificate of regression whose claims say these answers [n] of a file to each sample."""

    def told(claim: Claim) -> Claim:
        value = finite(values[claim.id])
        return claim.model_copy(update={"value": value, "predicted": -1 if value is None else 0})

    return certificate.model_copy(update={"claims": tuple(told(claim) for claim in certificate.claims)})


def finite(value: np.float32) -> float | None:
    """Returns an answer as a claim states it: None where it is not finite."""
    return float(value) if np.isfinite(value) else None
