"""Small networks and batches for the tests of attacks, and every loss written out in plain torch to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsparse.graph import from_torch
from vsparse.graph.ir import Graph
from vsparse.recipe_train import LossSpec, Train
from vsparse.stages.train.objectives import Loss, TrainingBatch, make_objective

Net = tuple[Graph, dict[str, Tensor]]


def linear() -> Net:
    """x ∈ R² → logits (x₁ + 2 x₂, 3 x₁ − x₂): logit 0 less logit 1 is 3 x₂ − 2 x₁."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
    graph = from_torch(module, (1, 1, 2))
    return graph, graph.tensors()


def point(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 2)


def small(norm: bool = False) -> tuple[nn.Sequential, Graph, dict[str, Tensor]]:
    """A convolution, batch norm if asked for, and two linear layers, in float64; parameters that require gradients."""
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(1, 3, 2), *([nn.BatchNorm2d(3)] if norm else []), nn.ReLU(), nn.Flatten(), nn.Linear(27, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(2.0)
    graph = from_torch(module.eval(), (1, 4, 4))
    return module.double(), graph, graph.tensors(torch.float64)


def data(count: int = 6, dtype: torch.dtype = torch.float64, side: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Random inputs, a third of whose pixels are 0 or 1, where the box is clipped; random labels."""
    draws = torch.Generator().manual_seed(7)
    x = (torch.rand(count, 1, side, side, dtype=dtype, generator=draws) * 1.5 - 0.25).clamp(0, 1)
    return x, torch.randint(0, classes, (count,), generator=draws)


def batch(x: Tensor, labels: Tensor, epsilon: float = 0.1, kappa: float = 0.0, seed: int = 5, enclosure: bool = False) -> TrainingBatch:
    return TrainingBatch(x, labels, epsilon, epsilon, kappa, enclosure, torch.Generator().manual_seed(seed))


def objective(name: str, graph: Graph, params: dict[str, Tensor], amp: bool = False, **loss: Any) -> Callable[..., Loss]:
    return make_objective(Train(objective=name, amp=amp, loss=LossSpec(**loss)), graph, params)  # type: ignore[arg-type]


def plain_forward(module: nn.Sequential, x: Tensor, statistics: tuple[Tensor, Tensor] | None) -> Tensor:
    """Runs the layers one by one; batch norm written out, on the statistics given."""
    for layer in module:
        if isinstance(layer, nn.BatchNorm2d):
            assert statistics is not None
            mean, variance = (value.view(1, -1, 1, 1) for value in statistics)
            scale, shift = layer.weight.view(1, -1, 1, 1), layer.bias.view(1, -1, 1, 1)
            x = (x - mean) / (variance + layer.eps).sqrt() * scale + shift
        else:
            x = layer(x)
    return x


def plain_bounds(module: nn.Sequential, box: tuple[Tensor, Tensor], statistics: tuple[Tensor, Tensor] | None, labels: Tensor) -> Tensor:
    """Returns the worst-case logits by interval arithmetic with positive and negative weights apart, the last layer folded."""
    lower, upper = box
    layers = list(module)
    for layer in layers[:-1]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
            product_of: Callable[[Tensor, Tensor], Tensor] = F.conv2d if isinstance(layer, nn.Conv2d) else F.linear
            bias = layer.bias.view(1, -1, 1, 1) if isinstance(layer, nn.Conv2d) else layer.bias
            lower, upper = product_of(lower, up) + product_of(upper, down) + bias, product_of(upper, up) + product_of(lower, down) + bias
        elif isinstance(layer, nn.BatchNorm2d):
            assert statistics is not None
            scale = (layer.weight / (statistics[1] + layer.eps).sqrt()).view(1, -1, 1, 1)
            shift = (layer.bias - statistics[0] * scale.flatten()).view(1, -1, 1, 1)
            ends = lower * scale + shift, upper * scale + shift
            lower, upper = torch.minimum(*ends), torch.maximum(*ends)
        else:
            lower, upper = layer(lower), layer(upper)
    last = layers[-1]
    rows = last.weight[None] - last.weight[labels][:, None]
    worst = (rows.clamp(min=0) * upper[:, None]).sum(2) + (rows.clamp(max=0) * lower[:, None]).sum(2)
    return worst + last.bias[None] - last.bias[labels][:, None]


def plain_loss(name: str, module: nn.Sequential, b: TrainingBatch, spec: LossSpec) -> Tensor:
    """The loss of a batch, each paper's equation step by step, with its random numbers in the order in which they are drawn."""
    statistics = None
    if isinstance(module[1], nn.BatchNorm2d):
        hidden = module[0](b.x)
        statistics = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3), unbiased=False)
    fixed = None if statistics is None else (statistics[0].detach(), statistics[1].detach())
    low, high = (b.x - b.epsilon).clamp(0, 1), (b.x + b.epsilon).clamp(0, 1)
    logits = plain_forward(module, b.x, statistics)
    clean = F.cross_entropy(logits, b.labels)
    p = logits.softmax(1)

    def kl(first: Tensor, other: Tensor) -> Tensor:
        return (first * (first.log() - other.softmax(1).log())).sum(1)

    def uphill(x: Tensor, length: float, rise: Callable[[Tensor], Tensor]) -> Tensor:
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(rise(plain_forward(module, x, fixed)), x)
        return torch.max(torch.min(x.detach() + length * gradient.sign(), high), low)

    def drawn() -> Tensor:
        return low + torch.rand(b.x.shape, dtype=b.x.dtype, generator=b.generator) * (high - low)

    def against(out: Tensor) -> Tensor:
        return F.cross_entropy(out, b.labels)

    if name == "natural":
        return clean
    if name == "fgsm":
        start, length = (drawn(), 1.25 * b.epsilon) if spec.random_start else (b.x, b.epsilon)
        return b.kappa * clean + (1 - b.kappa) * against(plain_forward(module, uphill(start, length, against), statistics))
    if name == "pgd":
        at = drawn()
        for _ in range(spec.attack_steps):
            at = uphill(at, spec.attack_step * b.epsilon, against)
        return b.kappa * clean + (1 - b.kappa) * against(plain_forward(module, at, statistics))
    if name == "trades":
        at = torch.max(torch.min(b.x + 0.001 * torch.randn(b.x.shape, dtype=b.x.dtype, generator=b.generator), high), low)
        for _ in range(spec.attack_steps):
            at = uphill(at, spec.attack_step * b.epsilon, lambda out: kl(p.detach(), out).sum())
        return clean + spec.beta * kl(p, plain_forward(module, at, statistics)).mean()
    if name == "smoothing":
        noise = torch.randn(b.x.shape, dtype=b.x.dtype, generator=b.generator)
        return clean + spec.beta * kl(p, plain_forward(module, b.x + spec.sigma * noise, statistics)).mean()
    assert name == "mixtrain"
    chosen = torch.randperm(len(b.x), generator=b.generator)[: round(spec.mix * len(b.x))]
    worst = plain_bounds(module, (low[chosen], high[chosen]), statistics, b.labels[chosen])
    return (1 - spec.alpha) * clean + spec.alpha * F.cross_entropy(worst, b.labels[chosen])
