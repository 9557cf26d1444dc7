"""Masks: what stays of each parameter, how it is enforced, and the share of the weights that it leaves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Bool tensors by parameter name, shaped like it, True where an entry stays. A channel pattern adds for each group of coupled
# units an entry "units:<group>", bool [count].
Masks = dict[str, Tensor]

UNITS = "units:"


def group_keep(name: str, masks: Mapping[str, Tensor]) -> Tensor:
    """Returns which units of a group stay, bool [count]."""
    return masks[f"{UNITS}{name}"]


def enforce(params: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Sets every masked entry of the parameters to exactly 0, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            if not name.startswith(UNITS):
                params[name].masked_fill_(~mask, 0)


def density(params: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None, weights: list[str]) -> float:
    """Returns the share of weights that the masks leave (biases apart); 1 without masks."""
    total = sum(params[name].numel() for name in weights)
    if not masks or not total:
        return 1.0
    return sum(int(masks[name].sum()) if name in masks else params[name].numel() for name in weights) / total
