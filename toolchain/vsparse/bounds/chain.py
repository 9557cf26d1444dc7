"""The order of summation of contract `chain`: the error of one chain of additions, from bounds of its partial sums.

See docs/numerics.md, section 8.2. A kernel that adds term after term rounds each partial sum once, so that the error follows from the sizes
of these sums, which cancellation keeps far below the sum of all magnitudes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.error_model import ErrorModel
from vsparse.compute_device import to_host
from vsparse.graph.ir import Affine, Conv

# Products of one sample in one operator beyond which partial sums are not looked at: E is that of any order (the checker's too).
MOST_PRODUCTS = 2**24
# How many partial sums are held at once.
AT_ONCE = 2**22
# Covers the rounding of the evaluation itself: sums of non-negative terms, far shorter than 2^20.
UP = 1 + 2.0**-30


def any_order(n: float, u: float) -> float:
    """Returns n·u·(1 + u), rounded up: what n terms err by in any order where each operation is rounded to nearest, for every n.

    Jeannerod and Rump, SIAM J. Matrix Anal. Appl. 34(2), 2013; with products that are rounded or not, docs/numerics.md, section 8.2.
    """
    return n * u * (1 + u) * (1 + 2.0**-48)


def looks_at_partial_sums(node: Affine, weight: Tensor) -> bool:
    """Whether an operator is small enough: what is multiplied for one sample."""
    return node.size * weight[0].numel() <= MOST_PRODUCTS


def chain_error(node: Affine, model: ErrorModel, weight: Tensor, bias: Tensor | None, box: Box, pad: Tensor) -> Tensor:
    """Returns E [batch, *node.shape] of s_0 = b, s_j = fl(s_{j−1} + w_j·x_j) in the kernel's order; `pad`, of that shape, is float64's.

    With the exact partial sums t_j, at first e_j <= (1 + u)·e_{j−1} + u·|t_j| + η over the non-zero weights. What is rounded is then at
    most |t_j| + e in magnitude, so that step j errs by at most u times the power of two in it, and by at most |w_j·x_j|, as s_{j−1} is a
    number of the format: these add up to E.
    """
    if pad.device.type != "cpu":  # running sums of floats are not repeatable on an accelerator
        ends = (to_host(box[0]), to_host(box[1]))
        here = chain_error(node, model, to_host(weight), None if bias is None else to_host(bias), ends, to_host(pad))
        return here.to(pad.device)
    unit, floor = model.sum_unit(), model.floor(model.contract.accumulate)
    lower, upper = box
    centre, radius = _terms(node, weight, (lower + upper) * 0.5), _terms(node, weight, (upper - lower) * 0.5)
    rows = _rows(node, weight)
    groups, outputs, length = rows.shape
    offset = (torch.zeros(groups * outputs, dtype=rows.dtype, device=rows.device) if bias is None else bias).view(groups, outputs)
    left = (rows != 0).to(rows.dtype)
    # How often what is wrong at a term is rounded again: (1 + u) to the number of non-zero weights behind it.
    growth = left * (1 + unit) ** (left.sum(dim=2, keepdim=True) - left.cumsum(dim=2))
    places = centre.shape[3]
    pad = pad.reshape(len(lower), groups, outputs, places)
    error = torch.empty_like(pad)
    samples = max(1, AT_ONCE // max(1, groups * length * places))
    for first in range(0, len(lower), samples):
        part = slice(first, first + samples)
        c, r = centre[part].unsqueeze(2), radius[part].unsqueeze(2)
        step = max(1, AT_ONCE // max(1, c.numel()))
        for start in range(0, outputs, step):
            chosen = slice(start, start + step)
            w, b = rows[:, chosen, :, None], offset[:, chosen, None, None]
            g, k = growth[:, chosen, :, None], left[:, chosen, :, None]
            middle = (w * c).cumsum(dim=3)
            spread = (w.abs() * r).cumsum(dim=3)
            sums = (middle + b).abs() + spread + 2 * pad[part, :, chosen].unsqueeze(3)
            first_bound = (g * (unit * sums + floor)).sum(dim=3, keepdim=True) * UP
            steps = torch.minimum(unit * leading_power(sums + first_bound), w.abs() * (c.abs() + r) * UP) + floor
            error[part, :, chosen] = torch.minimum(first_bound, (steps * k).sum(dim=3, keepdim=True)).squeeze(3)
    return error.view(len(lower), *node.shape) * UP


def leading_power(value: Tensor) -> Tensor:
    """Returns the largest power of two that is at most each of these float64 numbers, 0 for 0."""
    return (value.contiguous().view(torch.int64) & 0x7FF0000000000000).view(torch.float64)


def _rows(node: Affine, weight: Tensor) -> Tensor:
    """Returns the weights [groups, outputs of a group, terms] in the order in which a kernel adds: position by position, then channels."""
    if not isinstance(node, Conv):
        return weight.unsqueeze(0)
    return weight.flatten(2).transpose(1, 2).reshape(node.groups, weight.shape[0] // node.groups, -1)


def _terms(node: Affine, weight: Tensor, x: Tensor) -> Tensor:
    """Returns what the weights of `_rows` multiply: [batch, groups, terms, positions of the output]."""
    if not isinstance(node, Conv):
        return x[:, None, :, None]
    top, left, bottom, right = node.pads
    kernel = (weight.shape[2], weight.shape[3])
    columns = F.unfold(F.pad(x, (left, right, top, bottom)), kernel, dilation=node.dilation, stride=node.stride)
    columns = columns.view(len(x), node.groups, weight.shape[1], kernel[0] * kernel[1], -1)
    return columns.transpose(2, 3).flatten(2, 3)
