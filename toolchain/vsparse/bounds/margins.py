"""Margins: the rows z_y − z_j of a classification property, and what their lower bounds prove."""

from __future__ import annotations

import torch
from torch import Tensor

from vsparse.errors import InputError


def margin_rows(label: Tensor | int, classes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Returns rows [batch, classes − 1, classes] (or without batch for an int label) with z_label − z_j for each j ≠ label, j ascending.

    InputError when a label is not one of 0 … classes − 1, and for a single class: it has no margin, and no rows prove nothing.
    """
    if classes < 2:
        raise InputError(f"a margin is between two classes, and there is {classes}; property.delta is for networks with one answer")
    labels = torch.as_tensor(label, dtype=torch.int64).reshape(-1)
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise InputError(f"a label lies outside 0 … {classes - 1}; check the labels against the number of classes")
    identity = torch.eye(classes, dtype=dtype, device=labels.device)
    others = identity.unsqueeze(0).expand(labels.numel(), classes, classes)
    keep = ~torch.eye(classes, dtype=torch.bool, device=labels.device)[labels]
    rows = identity[labels].unsqueeze(1) - others[keep].view(labels.numel(), classes - 1, classes)
    return rows[0] if isinstance(label, int) else rows


def lowest_margin(lower: Tensor) -> Tensor:
    """Returns the smallest of the lower bounds [batch, rows] of each sample, −inf where one is NaN or there are none."""
    if lower.shape[1] == 0:
        return lower.new_full((lower.shape[0],), -torch.inf)
    return torch.nan_to_num(lower, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).min(dim=1).values
