"""Affine forms: what a zonotope knows of an activation, and what the rules of operators make forms with.

Singh et al., "Fast and Effective Robustness Certification", NeurIPS 2018 (DeepZ): every neuron is a linear form in a few symbols, one for
each input, and one for each unstable unit of a curve so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.float64 import TINY, UNIT64
from vsparse.compute_device import to_host
from vsparse.graph.ir import Graph

# Outward rounding of sums of fewer than 2^20 non-negative terms.
UP = 1 + 2.0**-30


@dataclass(frozen=True)
class AffineForm:
    """Values centre + Σ symbols · ε + δ with ε in [−1, 1] and |δ| <= rest, for what a device computes.

    `centre` and `rest` are [batch, *shape], `symbols` [batch, count, *shape]; float64. `spread` [batch, *shape] is Σ |symbols|, rounded
    up. A symbol's index is the same in all forms of one network, and a form without the last ones has zeros there.
    """

    centre: Tensor
    symbols: Tensor
    rest: Tensor
    spread: Tensor

    @property
    def reach(self) -> Tensor:
        """The largest |centre + Σ symbols · ε| of each element, rounded up."""
        return (self.centre.abs() + self.spread) * UP

    def box(self) -> Box:
        """Returns the box around the form, rounded outward; an end that is not a number is left so."""
        radius = self.spread + self.rest
        radius = radius + (self.centre.abs() + radius) * (8 * UNIT64) + TINY
        return self.centre - radius, self.centre + radius


@dataclass
class ZonotopePass:
    """A forward pass: boxes (the better of form and interval), the form of the output, and what the symbols stem from.

    `fractions` [batch, count, moving] is non-negative: how much of each symbol stems from the width of each input that moves, of which
    `moving` holds the indices. The first symbols are these inputs; that of a curve stems from the symbols of what it reads. It guides
    where to cut a domain, and nothing is proved with it.
    """

    graph: Graph
    params: Mapping[str, Tensor]
    boxes: dict[str, Box]
    output: AffineForm
    fractions: Tensor
    moving: Tensor
    most: int


def box_form(box: Box) -> AffineForm:
    """Returns the form without symbols of a box."""
    centre = (box[0] + box[1]) * 0.5
    rest = torch.maximum(box[1] - centre, centre - box[0]) * (1 + 4 * UNIT64) + TINY
    return AffineForm(centre, centre.new_zeros(len(centre), 0, *centre.shape[1:]), rest, torch.zeros_like(centre))


def band(form: AffineForm, slope: Tensor, under: Tensor, over: Tensor, state: ZonotopePass) -> AffineForm:
    """Returns the form of f(z) where slope · z + under <= f(z) <= slope · z + over: a new symbol of half the band for each open unit."""
    half = (over - under) * 0.5
    middle = under + half
    half = torch.maximum(over - middle, middle - under).clamp(min=0) * (1 + 4 * UNIT64)
    rest = form.rest * slope * UP + (form.reach * slope + middle.abs() + half) * (8 * UNIT64) + TINY
    # Bands that rounding alone makes need no symbol.
    flat = half.masked_fill(half <= (form.reach * slope + middle.abs()) * 2.0**-40, 0.0).flatten(1)
    known, count = form.symbols.shape[1], state.fractions.shape[1]
    new = min(int(to_host((flat > 0).sum(1).max())) if len(flat) else 0, max(0, state.most - count))
    sizes, index = flat.topk(new, dim=1)
    symbols = form.symbols.new_zeros(len(flat), count + new, flat.shape[1])
    symbols[:, :known] = (form.symbols * slope.unsqueeze(1)).flatten(2)
    symbols[:, count:].scatter_(2, index.unsqueeze(2), sizes.unsqueeze(2))
    read = form.symbols.flatten(2).gather(2, index.unsqueeze(1).expand(-1, known, -1)).abs()
    owed = read.transpose(1, 2) @ state.fractions[:, :known]
    state.fractions = torch.cat([state.fractions, owed / (owed.sum(2, keepdim=True) + TINY)], dim=1)
    taken = torch.zeros_like(flat).scatter(1, index, sizes).view_as(rest)
    spread = (form.spread * slope + taken) * UP
    rest = (rest + half.masked_fill(taken > 0, 0.0)) * UP
    return AffineForm(form.centre * slope + middle, symbols.view(*symbols.shape[:2], *form.centre.shape[1:]), rest, spread)


def aligned(parts: list[Tensor]) -> list[Tensor]:
    """Returns symbols [batch, count, …] with zeros behind those that have fewer."""
    most = max(part.shape[1] for part in parts)
    return [torch.cat([part, part.new_zeros(len(part), most - part.shape[1], *part.shape[2:])], 1) for part in parts]


def spread_of(symbols: Tensor) -> Tensor:
    """Returns Σ |symbols| of each element, rounded up."""
    return symbols.abs().sum(1) * UP
