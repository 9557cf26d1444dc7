"""Which ReLU to split: candidates by two cheap scores, and of those the one whose two halves have the best bounds.

The look-ahead is filtered smart branching (De Palma et al., arXiv 2104.06718); the scores are the intercept score of BaBSR (Bunel et al.,
JMLR 2020) and the gap between relaxation and ReLU at the point that attains the bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vsparse.search.alpha import Net
from vsparse.search.dense import AffineRows
from vsparse.search.relaxed import Choice, Evaluation


def candidates(net: Net, choice: Choice, found: Evaluation, count: int) -> tuple[Tensor, Tensor]:
    """Returns the columns [R, count] of the most promising units to split, and which of them can be split ([R, count] bool)."""
    assert found.coefficients is not None
    assert found.values is not None
    a, z = found.coefficients, found.values
    lower, upper, intercept = net.relaxation(choice)
    relaxed = torch.where(a > 0, lower * z, upper * z + intercept)
    gap = a * (z.clamp(min=0) - relaxed)
    offset = -a.clamp(max=0) * intercept
    free = choice.splits == 0
    scores = torch.where(free, torch.stack([gap, offset]), -1.0)
    by_gap = count - count // 2
    count = min(count, a.shape[1])
    first = scores[0].topk(min(by_gap, count), dim=1).indices
    rest = scores[1].scatter(1, first, -1.0).topk(count - first.shape[1], dim=1)
    columns = torch.cat([first, rest.indices], dim=1)
    usable = free.gather(1, columns)
    usable[:, first.shape[1] :] &= rest.values >= 0
    return columns, usable


def children(choice: Choice, column: Tensor, multipliers: Tensor | None = None) -> Choice:
    """Returns the two halves of each row, [2R]: first all with z <= 0, then all with z >= 0, for one column [R] of each row.

    `multipliers` [2R] are those of the new splits, zero where not given.
    """
    rows = torch.arange(len(choice), device=column.device)
    both = Choice(*(torch.cat([part, part]) for part in (choice.slopes, choice.splits, choice.multipliers)))
    both.splits[rows, column] = -1.0
    both.splits[rows + len(choice), column] = 1.0
    if multipliers is not None:
        both.multipliers[torch.cat([rows, rows + len(choice)]), torch.cat([column, column])] = multipliers
    return both


def best_split(
    net: Net, form: AffineRows | tuple[Tensor, str], choice: Choice, found: Evaluation, count: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Returns for each row the column [R] to split on, -1 where every unstable unit is split, and first multipliers [2R] of the halves.

    `form` has one row. A half whose bound would be below that of the whole gets the multiplier that gives it the coefficients of the
    whole: where the coefficient a of the unit's output is positive and its slope α, a·α for z <= 0, and a·(1 − α) for z >= 0.
    """
    columns, usable = candidates(net, choice, found, count)
    rows, width = columns.shape
    if width == 0:
        return columns.new_full((rows,), -1), found.bound.new_zeros(2 * rows)
    assert found.coefficients is not None
    halves = children(choice.repeat(width), columns.flatten())
    bounds = net.evaluate(form, halves, False).bound.view(2, rows, width)  # type: ignore[arg-type]  # the form is the net's own
    # Bounds above the threshold count as the threshold.
    gain = (bounds.clamp(max=threshold) - found.bound.unsqueeze(1)).clamp(min=0)
    score = gain.amin(dim=0) + 0.1 * gain.amax(dim=0)
    # Where no half improves at once, the cheap score decides: candidates are sorted by it.
    score = score - torch.arange(width, device=score.device) * 1e-9
    score = torch.where(usable, score, -torch.inf)
    chosen = score.argmax(dim=1, keepdim=True)
    column = columns.gather(1, chosen)
    above, slope = found.coefficients.gather(1, column)[:, 0].clamp(min=0), choice.slopes.gather(1, column)[:, 0]
    same = torch.stack([above * slope, above * (1 - slope)])
    worse = bounds.gather(2, chosen.expand(2, rows, 1))[:, :, 0] < found.bound
    return torch.where(usable.any(dim=1), column[:, 0], -1), torch.where(worse, same, 0.0).flatten()
