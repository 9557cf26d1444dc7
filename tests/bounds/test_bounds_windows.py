"""Bounds on receptive fields must be those of whole maps."""

from __future__ import annotations

from fractions import Fraction
from math import inf

import pytest
import torch
from torch import nn

from vsparse.bounds import Rounding, ball, interval, paths, refine
from vsparse.bounds.crown import unit_costs
from vsparse.bounds.windows import windows
from vsparse.contract import contract
from vsparse.graph import Graph, Relu, from_torch, run
from vsparse.graph.fold import fold_batch_norm


class Normalised(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor([0.3, -0.4]).view(2, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body((x - self.mean) * 1.7)


def network(kind: str) -> nn.Module:
    torch.manual_seed(len(kind))
    if "residual" in kind:
        return blocks(kind)
    first, second, third = {
        "strided": (nn.Conv2d(2, 4, 4, 2, 1), nn.Conv2d(4, 6, 4, 2, 1), nn.Conv2d(6, 5, 2)),
        "dilated": (nn.Conv2d(2, 4, 3, 1, 2, dilation=2), nn.Conv2d(4, 4, 3, 2, 1, groups=2), nn.Conv2d(4, 3, 1)),
        "uneven": (nn.Conv2d(2, 3, (1, 3), (1, 2), (0, 1)), nn.Conv2d(3, 4, (3, 2), (2, 1), (2, 0)), nn.Conv2d(4, 2, (2, 1), 1, (1, 0))),
        "bottleneck": (nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 5, 2, 2), nn.Conv2d(4, 3, 3, 1, 1)),
        "separable": (nn.Conv2d(2, 4, 3, 1, 1, groups=2), nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.Conv2d(4, 3, 1)),
        "linear": (nn.Conv2d(2, 3, 3, 1, 2, dilation=2), nn.Conv2d(3, 4, 3, 2, (1, 0)), nn.Conv2d(4, 3, 2, 1, 1)),
    }[kind]
    # Convolutions that read each other: the zero padding between them is not what their biases make of zeros.
    between = {"bottleneck": (None, nn.ReLU()), "separable": (nn.ReLU(), None), "linear": (None, None)}.get(kind, (nn.ReLU(), nn.ReLU()))
    body = [one for one in (first, between[0], second, between[1], third, nn.ReLU()) if one is not None]
    return Normalised(nn.Sequential(*body, nn.Flatten(), nn.LazyLinear(4)))


class Residual(nn.Module):
    """A block whose skip is strided or not, behind a normalisation of each channel that ReLUs keep from being folded."""

    def __init__(self, inner: int, outer: int, stride: int, pool: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inner)
        nn.init.uniform_(self.norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        self.first = nn.Conv2d(inner, outer, 3, stride, 1)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1)
        self.skip = nn.Conv2d(inner, outer, 1, stride) if inner != outer else nn.Identity()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(x))
        found: torch.Tensor = self.pool(self.second(torch.relu(self.first(y))) + self.skip(y))
        return found


def blocks(kind: str) -> nn.Module:
    """Returns networks of blocks: each activation that several operators read has one window."""
    stride, pool = {"residual": (1, False), "strided residual": (2, False), "pooled residual": (1, True)}[kind]
    body = (
        nn.Conv2d(2, 3, 3, 1, 1),
        Residual(3, 3, 1, pool),
        Residual(3, 4, stride, False),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, 1, 1),
        nn.ReLU(),
    )
    return Normalised(nn.Sequential(*body, nn.Flatten(), nn.LazyLinear(4)))


KINDS = ["residual", "strided residual", "pooled residual", "strided", "dilated", "uneven", "bottleneck", "separable", "linear"]


def graph_of(kind: str) -> Graph:
    model = network(kind)
    model(torch.zeros(1, 2, 14, 14))
    return fold_batch_norm(from_torch(model.eval(), (2, 14, 14)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["real", "fp32", "bf16"])
def test_windows_give_the_bounds_of_whole_maps(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(kind)
    if name == "bf16":
        graph = graph.with_params({key: torch.tensor(value).bfloat16().float().numpy() for key, value in graph.params.items()})
    rounding = Rounding(graph, contract(name))
    box = ball(torch.rand(3, 2, 14, 14, generator=torch.Generator().manual_seed(1)), Fraction("0.04"))
    enclosure = interval(graph, rounding.params, box, rounding)
    costs = unit_costs(list(graph.nodes), enclosure, rounding)
    monkeypatch.setattr(paths, "WINDOWS", inf if "residual" in kind else paths.WINDOWS)
    monkeypatch.setattr(paths, "TOGETHER", 0 if "residual" in kind else inf)
    used = [node.name for node in graph.nodes if windows(graph, rounding.params, enclosure, rounding, node.name, costs)]
    assert len(used) > 3 or "residual" not in kind
    assert used, "no activation was bounded on windows: nothing is tested"
    found = refine(graph, rounding.params, box, enclosure, rounding)
    monkeypatch.setattr(paths, "WINDOWS", 0.0)
    assert not any(windows(graph, rounding.params, enclosure, rounding, node.name, costs) for node in graph.nodes)
    whole = refine(graph, rounding.params, box, enclosure, rounding)
    tightened = False
    for node in graph.nodes:
        # The verifier's own rounding differs a little, as sums over windows are shorter; bf16 widens the input first.
        for one, other, loose in zip(found[node.name], whole[node.name], enclosure[node.name], strict=True):
            assert torch.allclose(one, other, rtol=1e-9 if name != "bf16" else 2e-2, atol=1e-9 if name != "bf16" else 2e-2)
            tightened |= isinstance(node, Relu) or bool((other != loose).any())
    assert tightened


@pytest.mark.parametrize("kind", ["uneven", "bottleneck", "separable", "linear", "residual", "strided residual", "pooled residual"])
def test_points_of_the_region_stay_inside(kind: str) -> None:
    graph = graph_of(kind)
    rounding = Rounding(graph, contract("real"))
    x = torch.rand(2, 2, 14, 14, dtype=torch.float64)
    box = ball(x.float(), Fraction("0.1"))
    found = refine(graph, rounding.params, box, interval(graph, rounding.params, box, rounding), rounding)
    for _ in range(200):
        share = torch.rand_like(x) if _ % 2 else torch.randint(0, 2, x.shape).double()
        values = run(graph, rounding.params, box[0] + share * (box[1] - box[0]), keep=True)
        for name, (lower, upper) in found.items():
            assert bool(((values[name] >= lower - 1e-12) & (values[name] <= upper + 1e-12)).all())


def test_refinement_ends_where_its_work_does() -> None:
    graph = graph_of("residual")
    rounding = Rounding(graph, contract("fp32"))
    box = ball(torch.rand(2, 2, 14, 14, generator=torch.Generator().manual_seed(3)), Fraction("0.05"))
    enclosure = interval(graph, rounding.params, box, rounding)
    whole = refine(graph, rounding.params, box, enclosure, rounding)
    nothing = refine(graph, rounding.params, box, enclosure, rounding, work=0)
    assert all(torch.equal(a, b) for name in enclosure for a, b in zip(nothing[name], enclosure[name], strict=True))
    tight = []
    for work in (1e5, 1e6, 1e9):
        some = refine(graph, rounding.params, box, enclosure, rounding, work=work)
        changed = [bool((some[node.name][0] > enclosure[node.name][0]).any()) for node in graph.nodes if isinstance(node, Relu)]
        tight.append(sum(changed))
        for name, (lower, upper) in some.items():
            assert bool((lower >= enclosure[name][0]).all())
            assert bool((upper <= enclosure[name][1]).all())
    assert all(torch.allclose(a, b) for name in whole for a, b in zip(some[name], whole[name], strict=True))
    assert tight[0] < tight[2]
