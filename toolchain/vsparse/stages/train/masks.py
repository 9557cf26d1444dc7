"""Masks: what stays of each parameter, how it is enforced, and the fraction of the weights that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vsparse.compute_device import reading_back


@dataclass(frozen=True)
class Masks:
    """What stays of a network, True where it does; both empty before anything was chosen.

    `entries`: bool by parameter name, shaped like the parameter. `groups`: bool [count] by the name of a group of coupled units, of
    the channel pattern alone, whose entries follow from them.
    """

    entries: dict[str, Tensor] = field(default_factory=dict)
    groups: dict[str, Tensor] = field(default_factory=dict)


def enforce(params: Mapping[str, Tensor], masks: Masks) -> None:
    """Sets every masked entry of the parameters to exactly 0, in place."""
    with torch.no_grad():
        for name, mask in masks.entries.items():
            params[name].masked_fill_(~mask, 0)


def density(params: Mapping[str, Tensor], masks: Masks, weights: list[str]) -> float:
    """Returns the fraction of the entries of the named weights that the masks leave; 1 for a network without weights."""
    total = sum(params[name].numel() for name in weights)
    if not total:
        return 1.0
    with reading_back("the density of an epoch is reported"):
        return sum(int(masks.entries[name].sum()) if name in masks.entries else params[name].numel() for name in weights) / total
