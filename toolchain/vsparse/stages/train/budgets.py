"""Budgets: how many items each layer keeps, so that the whole network stays within what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import floor, prod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.compute_device import to_host
from vsparse.errors import InputError
from vsparse.recipe import Train
from vsparse.stages.train.measures import Measure, Weight

# A budget is a product of floats: this much of the total is forgiven, so that 10 % of 1000 is 100.
SLACK = 1e-12
# The cost of every weight, by name, when layers keep so many items; no cost falls when a count grows.
Costs = Callable[[Mapping[str, int]], Mapping[str, float]]


@dataclass(frozen=True)
class PrunableLayer:
    """A layer as the allocation sees it: how many items it has, its density before scaling, and the factor of its sparsity (conv_share)."""

    name: str
    label: str
    items: int
    density: float
    sparsity_factor: float

    def keep(self, scale: float) -> float:
        """Returns how many items stay at a scale: items · (1 − sparsity_factor · (1 − min(1, scale · density)))."""
        return self.items * max(0.0, 1 - self.sparsity_factor * (1 - min(1.0, scale * self.density)))

    def whole(self, scale: float) -> int:
        """Returns the same, rounded, at least 1."""
        return min(self.items, max(1, floor(self.keep(scale) + 0.5)))


def kernel_density(shape: tuple[int, ...]) -> float:
    """Returns the Erdős–Rényi-kernel density of a weight before scaling: sum of its dimensions over their product.

    Evci et al., Rigging the Lottery (ICML 2020), section 3: (n_in + n_out + kh + kw) / (n_in · n_out · kh · kw).
    """
    return sum(shape) / prod(shape)


@dataclass(frozen=True)
class SparsityBudget:
    """What may stay of a network: the measure, the cost of the whole, and the fraction of it that the recipe keeps in the end."""

    spec: Train
    weights: Mapping[str, Weight]
    measure: Measure
    total: float
    final: float

    @staticmethod
    def of(spec: Train, weights: Mapping[str, Weight]) -> SparsityBudget:
        """Returns the budget of a recipe on these weights; raises InputError for a parameter budget above what there is."""
        measure = Measure.of(spec)
        total = sum(measure.packed(weight, weight.size) for weight in weights.values())
        if spec.parameter_budget > total:
            raise InputError(
                f"train.parameter_budget is {spec.parameter_budget} and the network has {total:.0f} weights; "
                "lower it, or set train.sparsity = 0"
            )
        return SparsityBudget(spec, weights, measure, total, spec.parameter_budget / total if spec.parameter_budget else 1 - spec.sparsity)

    def limit(self, density: float | None = None) -> float:
        """Returns the greatest cost allowed when `density` of the measure is kept: rounded down to whole units, but for latency."""
        fraction = self.final if density is None else density
        if not 0 < fraction <= 1:
            raise ValueError(f"a density must be above 0 and at most 1, not {fraction}")
        exact = fraction * self.total * (1 + SLACK)
        return exact if self.measure.name == "latency" else floor(exact + 1e-9)

    @property
    def way_out(self) -> str:
        """What to change when a budget is too small."""
        return "raise train.parameter_budget" if self.spec.parameter_budget else "lower train.sparsity"


def spread(layers: list[PrunableLayer], costs: Costs, budget: SparsityBudget, density: float | None = None) -> dict[str, int]:
    """Returns the items that each layer keeps when the densities of all are scaled by one factor, the largest within the budget.

    What rounding leaves over is given away in single items until none fits. Raises InputError that names the layer which
    takes the whole budget, or the one of which the allocation would leave less than half an item.
    """
    limit = budget.limit(density)

    def fits(counts: Mapping[str, int]) -> bool:
        return sum(costs(counts).values()) <= limit

    def counts(scale: float) -> dict[str, int]:
        return {layer.name: layer.whole(scale) for layer in layers}

    low, high = 0.0, 1 / min((layer.density for layer in layers), default=1.0)
    if not fits(counts(low)):
        raise InputError(_too_heavy(costs(counts(low)), budget, limit, any(layer.sparsity_factor < 1 for layer in layers)))
    if fits(counts(high)):
        return counts(high)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(counts(middle)) else (low, middle)
    others = " or ".join(f'"{name}"' for name in ("erdos-renyi-kernel", "lamp") if name != budget.spec.sparse.allocation)
    for layer in layers:
        if layer.keep(low) < 0.5:
            raise InputError(
                f'layer "{layer.label}" has {layer.items} items, of which this budget leaves {layer.keep(low):.2g}, less than one; '
                f"{budget.way_out}, widen the layer, or set train.sparse.allocation to {others}"
            )
    return _fill(counts(low), layers, low, fits)


def _fill(kept: dict[str, int], layers: list[PrunableLayer], scale: float, fits: Callable[[Mapping[str, int]], bool]) -> dict[str, int]:
    """Gives single items to the layers that rounding left shortest, then as many as fit to each in turn, the least sparse last."""
    for layer in sorted(layers, key=lambda layer: kept[layer.name] - layer.keep(scale)):
        if kept[layer.name] < layer.items and fits({**kept, layer.name: kept[layer.name] + 1}):
            kept[layer.name] += 1
    for layer in sorted(layers, key=lambda layer: kept[layer.name] / layer.items):
        kept[layer.name] = _most(kept, layer.name, layer.items, fits)
    return kept


def best_of_all(
    layers: list[PrunableLayer], scores: Mapping[str, Tensor], costs: Costs, budget: SparsityBudget, density: float | None = None
) -> dict[str, int]:
    """Returns the items that each layer keeps when those with the highest scores of the whole network stay, at least one a layer.

    Items are taken in the order of their scores (ties by layer, then position; NaN last); one that no longer fits into the
    budget closes its layer. Raises InputError that names a layer when one item of each is too much already.
    """
    limit = budget.limit(density)
    one_each(layers, costs, budget, density)

    def fits(counts: Mapping[str, int]) -> bool:
        return sum(costs(counts).values()) <= limit

    rising = {layer.name: np.sort(_ranked(scores[layer.name])) for layer in layers}
    closed: dict[str, int] = {}

    def counts(key: int, side: Literal["left", "right"]) -> dict[str, int]:
        """The items of each layer that score above (right) or at least (left) the threshold."""
        value = _float(key)
        return {name: closed.get(name, max(1, len(part) - int(part.searchsorted(value, side)))) for name, part in rising.items()}

    while not fits(counts(LOWEST, "left")):
        low, high = LOWEST - 1, HIGHEST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(counts(middle, "right")) else (middle, high)
        # Of what scores the threshold exactly, some layer has more than there is room for.
        kept = counts(high, "right")
        for name, wanted in counts(high, "left").items():
            kept[name] = _most(kept, name, wanted, fits)
            if kept[name] < wanted:
                closed[name] = kept[name]
    return counts(LOWEST, "left")


def _ranked(scores: Tensor) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = to_host(scores).to(torch.float32).numpy().ravel()
    return np.where(np.isnan(flat), np.float32(-np.inf), flat)


# float32 numbers in their order, as integers.
LOWEST, HIGHEST = 0x007FFFFF, 0xFF800000


def _float(key: int) -> np.float32:
    """Returns the float32 number of an index in the order: −inf at LOWEST, inf at HIGHEST."""
    return np.uint32(key - 0x80000000 if key >= 0x80000000 else 0xFFFFFFFF - key).view(np.float32)


def _most(kept: Mapping[str, int], name: str, most: int, fits: Callable[[Mapping[str, int]], bool]) -> int:
    """Returns the greatest count of one layer, from what it keeps (which fits) to `most`, that fits beside the other layers."""
    low, high = kept[name], most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits({**kept, name: middle}) else (low, middle)
    return low


def one_each(layers: list[PrunableLayer], costs: Costs, budget: SparsityBudget, density: float | None = None) -> None:
    """Raises InputError that names the heaviest layer when one item of each layer is more than the budget."""
    least, limit = costs({layer.name: 1 for layer in layers}), budget.limit(density)
    if sum(least.values()) > limit:
        raise InputError(_too_heavy(least, budget, limit, False))


def _too_heavy(least: Mapping[str, float], budget: SparsityBudget, limit: float, shared: bool) -> str:
    """Says which layer costs most when every layer keeps its least; `shared`: whether conv_share had a part in that least."""
    heaviest = max(least, key=lambda name: least[name])
    sparse = budget.spec.sparse
    out = f"raise train.sparse.conv_share (now {sparse.conv_share:g}) or {budget.way_out}" if shared else budget.way_out
    if budget.measure.name in ("bytes", "latency") and sparse.granularity == "element":
        out += ', or set train.sparse.granularity to "block" or "channel", which need less than a bit an entry to say what is kept'
    return (
        f'layer "{budget.weights[heaviest].node}" alone keeps at least {least[heaviest]:.0f} {budget.measure.unit} and all layers together '
        f"{sum(least.values()):.0f}, so a budget of {limit:.0f} cannot be met; {out}"
    )
