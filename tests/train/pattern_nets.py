"""Small networks and recipes on which the granularities are tried out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn

from vsparse.graph import from_torch
from vsparse.graph.ir import Graph
from vsparse.recipe import Train
from vsparse.stages.train.granularity import Pattern

SHAPE = (4, 6, 6)


class Residual(nn.Module):
    """A batch-normed stem, a residual block with a projection, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.first, self.second, self.cut = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1), nn.Conv2d(6, 6, 1, bias=False)
        self.hidden, self.logits = nn.Linear(6 * 36, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.second(torch.relu(self.first(x))) + self.cut(x))
        logits: Tensor = self.logits(torch.relu(self.hidden(torch.flatten(x, 1))))
        return logits


@cache
def graph_of(name: str) -> Graph:
    torch.manual_seed(3)
    nets: dict[str, nn.Module] = {
        "plain": nn.Sequential(
            nn.Conv2d(4, 8, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(8, 12, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12, 20),
            nn.ReLU(),
            nn.Linear(20, 4),
        ),
        "residual": Residual(),
        "depthwise": nn.Sequential(
            nn.Conv2d(4, 8, 1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(96, 4),
        ),
        "grouped": nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.ReLU(), nn.Flatten(), nn.Linear(160, 4)),
    }
    return from_torch(nets[name], SHAPE)


NETS = ["plain", "residual", "depthwise", "grouped"]


def spec(sparsity: float, **keys: object) -> Train:
    sparse = {key: keys.pop(key) for key in ("granularity", "allocation", "conv_share", "block") if key in keys}
    return Train.model_validate({"sparsity": sparsity, **keys, "sparse": {"conv_share": 1.0, **sparse}})


def magnitudes(pattern: Pattern, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return pattern.items({name: value.abs() for name, value in params.items()})
