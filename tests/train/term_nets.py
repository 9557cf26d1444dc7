"""Small networks, batches and recipes for the tests of terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vsparse.graph import fold_batch_norm, from_torch
from vsparse.graph.ir import Affine, BatchNorm, Graph
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.recipe_train import Train
from vsparse.stages.train.objectives import TrainingBatch

NETWORKS = ("cnn4", "cnn5", "resnet-small", "mlp")


def network(name: str = "cnn4", seed: int = 0) -> tuple[Graph, dict[str, Tensor]]:
    """A small network whose biases, batch norms and statistics are not those of initialisation; some weights are zero."""
    graph = from_torch(make(Network(architecture=name, width=0.25), (1, 8, 8), 5, (0.4,), (0.3,), seed=seed), (1, 8, 8))
    draws = torch.Generator().manual_seed(seed)
    params = graph.tensors()
    for node in graph.nodes:
        if isinstance(node, BatchNorm):
            params[node.scale] = 0.5 + torch.rand(params[node.scale].shape, generator=draws)
            params[node.mean] = 0.1 * torch.randn(params[node.mean].shape, generator=draws)
            params[node.variance] = 0.5 + torch.rand(params[node.variance].shape, generator=draws)
        for bias in [node.bias] if isinstance(node, Affine | BatchNorm) and node.bias is not None else []:
            params[bias] = 0.1 * torch.randn(params[bias].shape, generator=draws)
        if isinstance(node, Affine):
            params[node.weight] = params[node.weight] * (torch.rand(params[node.weight].shape, generator=draws) < 0.8)
    return graph, params


def batch(epsilon: float = 0.05, kappa: float = 0.0, *, size: int = 8, seed: int = 0, enclosure: bool = False) -> TrainingBatch:
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(size, 1, 8, 8, generator=draws)
    return TrainingBatch(x, torch.randint(0, 5, (size,), generator=draws), epsilon, epsilon, kappa, enclosure, draws)


def spec(objective: str = "ibp", regulariser: float = 0.0, **terms: Any) -> Train:
    return Train.model_validate({"objective": objective, "regulariser": regulariser, "terms": terms})


class NormFirst(nn.Module):
    """A batch norm that nothing precedes, one behind a layer that two read, and two in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(1), nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2)])
        self.convs = nn.ModuleList([nn.Conv2d(1, 2, 3, bias=False), nn.Conv2d(2, 2, 1)])
        self.last = nn.Linear(72, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = self.convs[0](self.norms[0](x))
        second = torch.relu(self.norms[1](first)) + first
        result: Tensor = self.last(torch.relu(self.norms[3](self.norms[2](self.convs[1](second)))).flatten(1))
        return result


def trained(graph: Graph, params: Mapping[str, Tensor]) -> Graph:
    """The graph with these parameters, its batch norm folded, as a training hands it over."""
    return fold_batch_norm(graph.with_params({name: value.detach().numpy() for name, value in params.items()}))
