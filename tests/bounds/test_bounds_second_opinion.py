"""With the same relaxations our CROWN bounds are auto_LiRPA's, less the float64 padding, and never above them."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from vsparse import second_opinion
from vsparse.bounds import Rounding, ball, crown, interval, margin_rows, refine
from vsparse.contract import CONTRACTS
from vsparse.graph import from_torch


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(2, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.last = nn.Linear(96, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.first(x))
        return self.last(torch.flatten(torch.relu(a + self.third(torch.relu(self.second(a)))), 1))


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, 1, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    )


def max_pooled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5))


@pytest.mark.skipif(not second_opinion.is_available(), reason="auto_LiRPA is not installed")
@pytest.mark.parametrize("make", [Residual, pooled, max_pooled])
@pytest.mark.parametrize("radius", [Fraction(1, 50), Fraction(1, 10)])
def test_same_relaxations_same_bounds(make, radius):
    torch.manual_seed(0)
    network = make().eval()
    graph = from_torch(network, (2, 8, 8))
    rounding = Rounding(graph, CONTRACTS["real"])
    box = ball(torch.rand(3, 2, 8, 8), radius)
    rows = margin_rows(torch.tensor([0, 3, 4]), 5)
    enclosure = interval(graph, rounding.params, box, rounding)
    plain = refine(graph, rounding.params, box, enclosure, rounding, only_unstable=False, intersect=False)
    for boxes, method in ((enclosure, "IBP+backward"), (plain, "CROWN")):
        ours = crown(graph, rounding.params, box, rows, boxes, rounding)
        theirs = second_opinion.crown_lower(network, *box, rows, method)
        assert bool((ours <= theirs + 1e-9).all())
        assert torch.allclose(ours, theirs, atol=1e-9, rtol=0)
