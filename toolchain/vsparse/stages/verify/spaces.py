"""Where an attack moves: a box of float32 inputs, or the disturbances b, c and δ of a region (docs/properties.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.bounds import inner_ball_float32
from vsparse.perturbation import PerturbationSet

# Of an l1 ball's coordinates, the fraction that one step moves (Tramèr and Boneh, NeurIPS 2019, section 4: steepest descent is too sparse).
L1_FRACTION = 0.02
AttackState = list[Tensor]
BLOCK = 128


class Space(Protocol):
    """Samples' regions, and how to move in them; a state is a list of tensors whose first dimension is the samples'."""

    def to(self, device: torch.device) -> Space:
        """Returns the space on a device."""

    def pick(self, index: Tensor) -> Space:
        """Returns the space of some of the samples."""

    def at(self, x: Tensor) -> AttackState:
        """Returns the state that a descent starts from by default: the inputs x, where they are the samples themselves."""

    def random(self, seeds: Sequence[Sequence[int]], restart: int) -> AttackState:
        """Returns a random state, from numbers that depend on each sample's seed and the restart alone."""

    def point(self, state: AttackState) -> Tensor:
        """Returns the float32 inputs of a state, differentiable."""

    def step(self, state: AttackState, gradients: Sequence[Tensor], fraction: float) -> AttackState:
        """Returns the state after a step against the gradients, of this fraction of the region's half width."""

    def pairs(self, state: AttackState) -> Tensor:
        """Returns (b, c) of each sample, float64 [n, 2]."""


def space(x: NDArray[np.float32], perturbation: PerturbationSet) -> Space:
    """Returns the space of the regions around x [n, *shape]."""
    samples = torch.from_numpy(x)
    if perturbation.is_box:
        return BoxSpace(*inner_ball_float32(samples, perturbation.epsilon, perturbation.clip, perturbation.radii()))
    return Disturbances(samples.double(), perturbation)


@dataclass(frozen=True)
class BoxSpace:
    """A box of float32 numbers [n, *shape]: every iterate is a member."""

    lower: Tensor
    upper: Tensor

    def to(self, device: torch.device) -> BoxSpace:
        """Returns the space on a device."""
        return BoxSpace(self.lower.to(device), self.upper.to(device))

    def pick(self, index: Tensor) -> BoxSpace:
        """Returns the space of some of the samples."""
        return BoxSpace(self.lower[index], self.upper[index])

    def at(self, x: Tensor) -> AttackState:
        """Returns the state of the inputs x."""
        return [x.clone()]

    def random(self, seeds: Sequence[Sequence[int]], restart: int) -> AttackState:
        """Returns a uniform point of each box."""
        shape = tuple(self.lower.shape[1:])
        fractions = np.stack([np.random.default_rng([*seed, restart]).random(shape, dtype=np.float32) for seed in seeds])
        low, high = self.lower, self.upper
        return [torch.minimum(torch.maximum(low + torch.from_numpy(fractions).to(low.device) * (high - low), low), high)]

    def point(self, state: AttackState) -> Tensor:
        """Returns the state, which is the input."""
        return state[0]

    def step(self, state: AttackState, gradients: Sequence[Tensor], fraction: float) -> AttackState:
        """Returns the state after a signed step."""
        half = (self.upper - self.lower) / 2
        moved = state[0] - fraction * half * torch.nan_to_num(gradients[0]).sign()
        return [torch.minimum(torch.maximum(moved, self.lower), self.upper)]

    def pairs(self, state: AttackState) -> Tensor:
        """Returns zeros: there is no b and c."""
        return self.lower.new_zeros(len(self.lower), 2, dtype=torch.float64)


@dataclass(frozen=True)
class Disturbances:
    """b, c [n, 1, …] and δ [n, *shape] in float64 around x0; nearly every point is a member, which `member` decides exactly."""

    x0: Tensor
    perturbation: PerturbationSet

    @property
    def reach(self) -> float:
        """The radius for δ: a little less than ε, so that an input rounded to float32 stays inside a ball."""
        size = self.x0[0].numel() if len(self.x0) else 0
        spread = {"l2": sqrt(size), "l1": float(size)}.get(self.perturbation.norm, 1.0)
        slack = 0.0 if self.perturbation.photometric else 2.0**-25 * max(map(abs, self.perturbation.clip)) * spread
        return max(0.0, float(self.perturbation.epsilon) * (1 - 2.0**-20) - slack)

    def to(self, device: torch.device) -> Disturbances:
        """Returns the space on a device."""
        return Disturbances(self.x0.to(device), self.perturbation)

    def pick(self, index: Tensor) -> Disturbances:
        """Returns the space of some of the samples."""
        return Disturbances(self.x0[index], self.perturbation)

    def at(self, x: Tensor) -> AttackState:
        """Returns the zero disturbance, whatever x is."""
        one = self.x0.new_zeros(len(self.x0), *[1] * (self.x0.dim() - 1))
        return [one, one.clone(), torch.zeros_like(self.x0)]

    def random(self, seeds: Sequence[Sequence[int]], restart: int) -> AttackState:
        """Returns a random pair (b, c), every second time a corner, and a random δ of a random length."""
        pairs, deltas, lengths = [], [], []
        for seed in seeds:
            rng = np.random.default_rng([*seed, restart])
            pair = rng.uniform(-1, 1, 2)
            pairs.append(np.sign(pair) if restart % 2 else pair)
            deltas.append(rng.normal(size=tuple(self.x0.shape[1:])))
            lengths.append(rng.random())
        device = self.x0.device
        signs = torch.from_numpy(np.stack(pairs)).to(device).view(-1, 2, *[1] * (self.x0.dim() - 1))
        delta = torch.from_numpy(np.stack(deltas)).to(device) * 1e6 * self.reach
        length = torch.from_numpy(np.array(lengths)).to(device).view(-1, *[1] * (self.x0.dim() - 1))
        b, c = signs[:, 0] * float(self.perturbation.brightness), signs[:, 1] * float(self.perturbation.contrast)
        return [b, c, self._within(b, c, self._project(delta) * length)]

    def point(self, state: AttackState) -> Tensor:
        """Returns clip(x0 + b + c(x0 − 1/2) + δ) rounded to float32."""
        b, c, delta = state
        return (self._shifted(b, c) + delta).clamp(*self.perturbation.clip).to(torch.float32)

    def step(self, state: AttackState, gradients: Sequence[Tensor], fraction: float) -> AttackState:
        """Returns the state after signed steps of b and c, and the steepest step of δ in its norm, projected back."""
        b, c, delta = state
        most = float(self.perturbation.brightness), float(self.perturbation.contrast)
        b, c = (
            (value - fraction * limit * torch.nan_to_num(gradient).sign()).clamp(-limit, limit)
            for value, gradient, limit in zip((b, c), gradients, most, strict=False)
        )
        moved = delta - fraction * self.reach * self._steepest(torch.nan_to_num(gradients[2]))
        return [b, c, self._project(self._within(b, c, moved))]

    def pairs(self, state: AttackState) -> Tensor:
        """Returns (b, c) of each sample."""
        return torch.stack([state[0].flatten(), state[1].flatten()], dim=1)

    def _shifted(self, b: Tensor, c: Tensor) -> Tensor:
        return self.x0 + b + c * (self.x0 - 0.5)

    def _within(self, b: Tensor, c: Tensor, delta: Tensor) -> Tensor:
        """Returns δ without the part that clipping would undo; its norm does not grow."""
        lo, hi = self.perturbation.clip
        w = self._shifted(b, c)
        return torch.minimum(torch.maximum(delta, (lo - w).clamp(max=0)), (hi - w).clamp(min=0))

    def _steepest(self, gradient: Tensor) -> Tensor:
        """Returns a direction of length one in the norm; for l1 it is spread over the coordinates with the largest derivatives."""
        if self.perturbation.norm == "linf":
            return gradient.sign()
        flat = gradient.flatten(1)
        if self.perturbation.norm == "l2":
            return (flat / _lengths(flat)).view_as(gradient)
        count = max(1, int(L1_FRACTION * flat.shape[1]))
        index = flat.abs().topk(count, dim=1).indices
        chosen = torch.zeros_like(flat).scatter(1, index, flat.gather(1, index).sign() / count)
        return chosen.view_as(gradient)

    def _project(self, delta: Tensor) -> Tensor:
        """Returns the nearest δ in the ball; for l1 by a threshold (Duchi et al., ICML 2008, figure 1)."""
        if self.perturbation.norm == "linf":
            return delta.clamp(-self.reach, self.reach)
        flat = delta.flatten(1)
        if self.perturbation.norm == "l2":
            return (flat * (self.reach / _lengths(flat)).clamp(max=1)).view_as(delta)
        size = flat.abs()
        ordered = size.sort(dim=1, descending=True).values
        excess = _running_sums(ordered) - self.reach
        rank = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype, device=flat.device)
        last = ((ordered - excess / rank > 0).sum(dim=1, keepdim=True) - 1).clamp(min=0)
        threshold = (excess.gather(1, last) / (last + 1)).clamp(min=0)
        kept = flat.sign() * (size - threshold).clamp(min=0)
        return torch.where(size.sum(dim=1, keepdim=True) > self.reach, kept, flat).view_as(delta)


def _running_sums(x: Tensor) -> Tensor:
    """Returns the sums of the first elements of each row [n, size]; on an accelerator, whose own are not repeatable, block by block."""
    if x.device.type == "cpu":
        return x.cumsum(dim=1)
    n, size = x.shape
    blocks = torch.nn.functional.pad(x, (0, -size % BLOCK)).view(n, -1, BLOCK)
    inside = blocks @ torch.ones(BLOCK, BLOCK, dtype=x.dtype, device=x.device).triu()
    if blocks.shape[1] > 1:
        before = torch.nn.functional.pad(_running_sums(inside[:, :-1, -1]), (1, 0))
        inside = inside + before.unsqueeze(2)
    return inside.flatten(1)[:, :size]


def _lengths(flat: Tensor) -> Tensor:
    """Returns the Euclidean length of each row, [n, 1], never zero."""
    length: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=1e-300)
    return length
