"""What every granularity offers to the sparsifiers: items, how many of them stay, which ones, and the masks that follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from vsparse.stages.train.dead_units import DeadUnits, without_dead_units
from vsparse.stages.train.masks import Masks, enforce
from vsparse.stages.train.units import UnitGroup


class Pattern(ABC):
    """One granularity of one network under one budget.

    An item is what is removed as one: an entry (element, 2:4), a block of entries, or a channel with all that is coupled to
    it. A layer is what items are counted in: a weight, by its parameter name (element, block, 2:4), or a group of coupled
    channels, by its name (channel). `scores` and `active` are tensors by layer with one entry an item: shaped like the weight
    (element, 2:4), [⌈out/rows⌉, ⌈in/columns⌉, …] (block) or [count] (channel). An implementation refuses what can never be
    met when it is made, with an InputError that names the layer.
    """

    structured: bool
    """Whether what is removed can be dropped physically (channel)."""
    weights: list[str]
    """Names of the Conv and Gemm weights of the graph, each once, in order of execution."""
    groups: Sequence[UnitGroup]
    """Groups of hidden units of the graph."""
    final_density: float
    """Share of the budget's measure that the recipe keeps in the end."""

    @abstractmethod
    def items(self, saliency: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the score of every item from nonnegative saliencies of the weights' entries (|w|, |gradient|, …), shaped like them.

        A block's score is the l2 norm of its entries'. A channel's is the product of the l2 norms of the weights that make it and
        of those that read it, times the saliency of its batch norm's scale γ where `saliency` has one.
        """

    @abstractmethod
    def counts(self, density: float | None = None, scores: Mapping[str, Tensor] | None = None) -> dict[str, int]:
        """Returns how many items of each layer stay when `density` of the budget's measure does; None: the final budget.

        Allocation "global" needs `scores`. Raises InputError that names the layer for which the budget cannot be met.
        """

    @abstractmethod
    def masks(self, active: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> Masks:
        """Returns the masks of all parameters that active items leave alive, on the parameters' device."""

    @abstractmethod
    def active(self, masks: Masks) -> dict[str, Tensor]:
        """Returns the active items that these masks were made from."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each layer's scores."""

    def top(self, scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Returns the active items: in each layer the `counts` best, ties to the first, NaN least."""
        return {name: largest(scores[name], counts[name]) for name in self.shapes()}

    def random(self, counts: Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Returns `counts` active items of each layer, drawn uniformly (on the CPU)."""
        return self.top({name: torch.rand(shape, generator=generator) for name, shape in self.shapes().items()}, counts)

    def deactivate(self, params: Mapping[str, Tensor], masks: Masks) -> None:
        """Zeroes what the masks leave out, in place, in a way that lets it grow back through the gradient."""
        enforce(params, masks)

    def choose(self, params: Mapping[str, Tensor], density: float | None = None, dead: DeadUnits = MappingProxyType({})) -> Masks:
        """Returns the masks of the items that are largest in magnitude, what makes or reads a dead unit last (dead_units.py)."""
        saliency = without_dead_units({name: value.detach().abs() for name, value in params.items()}, self.groups, dead)
        scores = self.items(saliency)
        return self.masks(self.top(scores, self.counts(density, scores)), params)


def largest(scores: Tensor, count: int) -> Tensor:
    """Returns bool, shaped like `scores`, of its `count` largest entries: ties go to the first, NaN counts as least."""
    flat = ranked(scores).flatten()
    if count <= 0 or count >= flat.numel():
        return torch.full(scores.shape, count > 0, dtype=torch.bool, device=scores.device)
    if flat.device.type != "cpu":
        return ranked_first(torch.sort(flat, descending=True, stable=True).indices, count).view(scores.shape)
    threshold = flat.kthvalue(flat.numel() - count + 1).values
    mask = flat > threshold
    level = torch.nonzero(flat == threshold).flatten()
    mask[level[: count - int(mask.sum())]] = True
    return mask.view(scores.shape)


def ranked_first(order: Tensor, count: int) -> Tensor:
    """Returns bool [n], True at the first `count` indices of a permutation of n; for devices, as nothing has to be looked at."""
    return torch.zeros(len(order), dtype=torch.bool, device=order.device).scatter_(0, order[:count], True)


def ranked(scores: Tensor) -> Tensor:
    """Returns the scores without their history, −inf for NaN."""
    return torch.nan_to_num(scores.detach(), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
