"""Weights that lead nowhere: of units that nothing reads, or that read nothing, every weight is wasted.

Vysogorets and Kempe, Connectivity matters (arXiv 2107.02306), measure how much of a pruned network is left when they are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vsparse.stages.train.units import UnitGroup


def dead_entries(groups: Sequence[UnitGroup], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns which kept entries lead nowhere, bool by weight name, shaped like the weights; weights without any are left out.

    A unit without a kept entry in what makes it passes on a constant, and one without a kept entry in what reads it is never seen: all
    its other entries are dead. One pass: removing them may leave more such units behind.
    """
    found: dict[str, Tensor] = {}
    for group in groups:
        made = torch.zeros(group.count, dtype=torch.bool, device=masks[group.producers[0][0]].device)
        read = made.clone()
        for weight, _ in group.producers:
            made |= masks[weight].flatten(1).any(1)
        for weight, spread in group.consumers:
            read |= masks[weight].transpose(0, 1).reshape(group.count, spread, -1).any(2).any(1)
        lost = ~(made & read)
        if not lost.any():
            continue
        for weight, mask in group.touching(lost, masks).items():
            found[weight] = found.get(weight, torch.zeros_like(masks[weight])) | (mask & masks[weight])
    return {weight: dead for weight, dead in found.items() if dead.any()}
