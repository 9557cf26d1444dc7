"""Sums in float32, rounded up: never below the exact ones, and boxes that hold what those in float64 hold."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vsparse.bounds import Rounding, ball, interval, paths, wide_sums
from vsparse.contract import CONTRACTS, contract
from vsparse.graph import Graph, from_torch, run
from vsparse.graph.ir import Conv, Gemm

PLAIN = [name for name, one in CONTRACTS.items() if one.storage == one.accumulate == "fp32" and one.order == "any" and not one.integers]


class Block(nn.Module):
    """Convolutions of every geometry, an addition, and linear layers."""

    def __init__(self, seed: int, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(2, 32, 3, 1, 1)
        self.second = nn.Conv2d(32, 6, 3, (1, 2), (2, 1), dilation=(2, 1))
        self.third = nn.Conv2d(6, 6, (2, 3), 1, 0, groups=3)
        self.skip = nn.Conv2d(2, 6, 1, (1, 2))
        self.head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.LazyLinear(12), nn.ReLU(), nn.Linear(12, 5))
        self.head(torch.zeros(1, 6, 7, 1))
        if sparse:
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.weight.data *= torch.rand_like(layer.weight) < torch.rand(len(layer.weight)).view(
                        -1, *[1] * (layer.weight.dim() - 1)
                    )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.second(torch.relu(self.first(x)))) + self.skip(x)
        found: torch.Tensor = self.head(self.third(y))
        return found


def both(graph: Graph, name: str, box: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Rounding, dict[str, Any]]]:
    """Returns the model of rounding and the boxes with sums in float32 never, and always."""
    found = []
    for least in (float("inf"), 0):
        monkeypatch.setattr(paths, "WIDE_PRODUCTS", least)
        rounding = Rounding(graph, contract(name))
        found.append((rounding, interval(graph, rounding.params, box, rounding)))
    return found


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_boxes_hold_those_of_float64(name: str, sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        graph = from_torch(Block(seed, sparse).eval(), (2, 8, 6))
        x = torch.rand(3, 2, 8, 6, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (-3 * seed)
        box = ball(x, Fraction(1, 50 * 10**seed))
        (narrow, wanted), (wide, found) = both(graph, name, box, monkeypatch)
        taken = [node for node in graph.nodes if isinstance(node, Conv | Gemm) and wide.sums[node.name].wide is not None]
        assert len(taken) == 6, "the 1×1 convolution too, as it strides"
        assert not any(sums.wide for sums in narrow.sums.values())
        for node in graph.nodes:
            (low, up), (lower, upper) = wanted[node.name], found[node.name]
            size = max(float(end.abs().max()) for end in (low, up))
            # What float64 itself may lose is charged in both; nothing else may be missing.
            assert bool((lower <= low + 1e-13 * size).all()), node.name
            assert bool((upper >= up - 1e-13 * size).all()), node.name
            # E of each operator twice at the most: an even factor, or the float32 sum of the radius.
            real = interval(graph, narrow.params, box)[node.name]
            assert (
                float(((upper - lower) - (real[1] - real[0])).max()) <= 3.5 * float(((up - low) - (real[1] - real[0])).max()) + 1e-12 * size
            )


def exact_sum(node: Conv | Gemm, weight: np.ndarray[Any, Any], m: np.ndarray[Any, Any], at: tuple[int, ...]) -> Fraction:
    """Returns Σ|w|m of one output in rational arithmetic."""
    if isinstance(node, Gemm):
        return sum((abs(Fraction(float(w))) * Fraction(float(v)) for w, v in zip(weight[at[0]], m, strict=True)), Fraction(0))
    out, y, x = at
    groups = len(weight) // node.groups
    total = Fraction(0)
    for (c, i, j), w in np.ndenumerate(weight[out]):
        row, column = y * node.stride[0] + i * node.dilation[0] - node.pads[0], x * node.stride[1] + j * node.dilation[1] - node.pads[1]
        if 0 <= row < m.shape[1] and 0 <= column < m.shape[2]:
            total += abs(Fraction(float(w))) * Fraction(float(m[out // groups * weight.shape[1] + c, row, column]))
    return total


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-30, 1e-42, 1e30])
def test_sums_are_never_below_the_exact_ones(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "WIDE_PRODUCTS", 0)
    graph = from_torch(Block(7, True).eval(), (2, 8, 6))
    rounding = Rounding(graph, contract("fp32"))
    draws = np.random.default_rng(3)
    for node in graph.nodes:
        if not isinstance(node, Conv | Gemm):
            continue
        wide = rounding.sums[node.name].wide
        assert wide is not None
        shape = graph.shape_of(node.inputs[0])
        m = torch.tensor(draws.random((1, *shape)) * scale * 10.0 ** draws.integers(-9, 1, (1, *shape)))
        found = wide_sums.magnitude_sums(node, wide, m)[0]
        for _ in range(20):
            at = tuple(int(draws.integers(0, size)) for size in node.shape)
            wanted = exact_sum(node, graph.params[node.weight], m[0].numpy(), at)
            assert Fraction(float(found[at])) >= wanted
            assert scale < 1e-20 or Fraction(float(found[at])) <= wanted * (1 + Fraction(1, 10**4)) + Fraction(1, 10**30)


def test_executions_in_float32_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "WIDE_PRODUCTS", 0)
    graph = from_torch(Block(11, False).eval(), (2, 8, 6))
    rounding = Rounding(graph, contract("fp32"))
    x = torch.rand(2, 2, 8, 6, generator=torch.Generator().manual_seed(5))
    box = ball(x, Fraction(0))
    boxes = interval(graph, rounding.params, box, rounding)
    for dtype in (torch.float32, torch.float64):
        values = run(graph, graph.tensors(dtype), x.to(dtype), keep=True)
        for name, (lower, upper) in boxes.items():
            assert bool(((values[name].double() >= lower) & (values[name].double() <= upper)).all()), name


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e39, 3e38])
def test_what_overflows_is_not_bounded(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = from_torch(Block(2, False).eval(), (2, 8, 6))
    x = torch.rand(1, 2, 8, 6, dtype=torch.float64)
    lower, upper = x.clone(), x.clone()
    upper[0, 1, 3, 3] = value
    (_, wanted), (_, found) = both(graph, "fp32", (lower, upper), monkeypatch)
    for name, (low, up) in wanted.items():
        open_ = torch.isinf(low) | torch.isinf(up)
        assert bool((torch.isinf(found[name][0]) & torch.isinf(found[name][1]))[open_].all()), name
    assert value < 1e39 or bool(torch.isinf(found[graph.output][0]).any())


def test_shorter_products_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wide_sums.whole_float32()
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert not wide_sums.whole_float32()
    monkeypatch.delenv("ONEDNN_DEFAULT_FPMATH_MODE")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert not wide_sums.whole_float32()
    finally:
        torch.set_float32_matmul_precision(before)
    assert wide_sums.whole_float32()
    monkeypatch.setenv("DNNL_DEFAULT_FPMATH_MODE", "ANY")
    graph = from_torch(Block(2, False).eval(), (2, 8, 6))
    box = ball(torch.rand(1, 2, 8, 6), Fraction(1, 100))
    (_, wanted), (_, found) = both(graph, "fp32", box, monkeypatch)
    for name, ends in wanted.items():
        for one, other in zip(ends, found[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_weights_that_may_be_read_as_zero_take_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = from_torch(Block(3, False).eval(), (2, 8, 6))
    name = next(node.weight for node in graph.nodes if isinstance(node, Conv))
    value = graph.params[name].copy()
    monkeypatch.setattr(paths, "WIDE_PRODUCTS", 0)
    for smallest, taken in ((2.0**-126, True), (2.0**-127, False), (0.0, True)):
        value.flat[0] = smallest
        rounding = Rounding(replace(graph, params={**graph.params, name: value}), contract("fp32"))
        found = [kernels.wide is not None for node, kernels in rounding.sums.items() if getattr(graph.node(node), "weight", "") == name]
        assert found == [taken]
