"""Zonotopes: an example by hand, and simulated devices that never leave them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from device_simulation import Device, random_graph

from vsparse.bounds import Rounding, ball, interval
from vsparse.bounds.zonotope import lower_bounds, zonotope
from vsparse.contract import CONTRACTS
from vsparse.graph.ir import Gemm, Graph, Relu


def dense(*layers: tuple[list[list[float]], list[float]]) -> Graph:
    nodes: list[Gemm | Relu] = []
    params = {}
    for i, (weight, bias) in enumerate(layers):
        params |= {f"w{i}": np.array(weight, np.float32), f"b{i}": np.array(bias, np.float32)}
        last = nodes[-1].name if nodes else "x"
        nodes.append(Gemm(name=f"z{i}", inputs=(last,), shape=(len(bias),), weight=f"w{i}", bias=f"b{i}"))
        if i + 1 < len(layers):
            nodes.append(Relu(name=f"a{i}", inputs=(f"z{i}",), shape=(len(bias),)))
    return Graph("x", (len(layers[0][0][0]),), tuple(nodes), nodes[-1].name, params)


def test_what_cancels_is_seen_to_cancel() -> None:
    """x − x through two stable units is 0, where intervals see a width of 2."""
    graph = dense(([[1.0], [1.0]], [2.0, 2.0]), ([[1.0, -1.0]], [0.0]))
    rounding = Rounding(graph, CONTRACTS["real"])
    box = torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)
    lower, upper = zonotope(graph, box, rounding).boxes["z1"]
    assert -1e-12 < float(lower) <= 0 <= float(upper) < 1e-12
    assert float(interval(graph, rounding.params, box, rounding)["z1"][0]) <= -1.999


def test_an_unstable_unit_is_one_symbol_of_half_the_gap() -> None:
    """ReLU on [−1, 3]: λ = 3/4, the gap r = 3/4, so the output is 3/4·x + 3/8 ± 3/8, and all of the gap stems from the one input."""
    graph = dense(([[1.0]], [0.0]), ([[1.0]], [0.0]))
    box = torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64)
    state = zonotope(graph, box, Rounding(graph, CONTRACTS["real"]))
    assert state.output.centre.item() == pytest.approx(9 / 8)
    assert state.output.symbols.flatten().tolist() == pytest.approx([3 / 2, 3 / 8])
    assert state.fractions.tolist() == [[[1.0], [1.0]]]
    assert lower_bounds(state.output, torch.tensor([[[1.0]]], dtype=torch.float64)).item() == pytest.approx(-3 / 4)


@pytest.mark.parametrize("name", ["real", "fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("most", [4096, 120])
def test_no_device_leaves_the_boxes_or_falls_below_a_row(name: str, most: int) -> None:
    """`most` of 120 leaves most unstable units without a symbol of their own."""
    contract = CONTRACTS[name]
    rng = np.random.default_rng(sum(map(ord, name)) + most)
    tighter = 0
    for _ in range(10):
        graph = random_graph(rng, contract.storage if name != "real" else "fp32", spread=float(rng.choice([1.0, 10.0])))
        rounding = Rounding(graph, contract)
        x = rng.random((1, *graph.input_shape)).astype(np.float32)
        box = ball(torch.tensor(x), Fraction(1, int(rng.choice([3, 20, 1000]))))
        state = zonotope(graph, box, rounding, most)
        plain = interval(graph, rounding.params, box, rounding)
        rows = torch.tensor(rng.normal(size=(1, 5, 3)))
        bounds = lower_bounds(state.output, rows)[0].tolist()
        for key, (lower, upper) in state.boxes.items():
            assert bool((lower >= plain[key][0]).all() & (upper <= plain[key][1]).all())
            tighter += int((upper < plain[key][1]).sum())
        device = Device(graph, CONTRACTS["fp32"] if name == "real" else contract, rng)
        low, high = (end[0].numpy() for end in box)
        for _ in range(6):
            corner = rng.integers(0, 2, x[0].shape).astype(bool)
            point = np.where(corner, low, high) if rng.random() < 0.5 else rng.uniform(low, high)
            if name == "real":
                values = exact(graph, point)
            else:
                point = np.clip(point.astype(np.float32), low, high).astype(np.float32)
                point = np.where((point < low) | (point > high), x[0], point)
                values = device.run(point)
            if not all(np.isfinite(value).all() for value in values.values()):
                continue
            slack = 1e-12 if name == "real" else 0.0
            for key, (lower, upper) in state.boxes.items():
                assert (values[key] >= lower[0].numpy() - slack).all(), key
                assert (values[key] <= upper[0].numpy() + slack).all(), key
            outputs = values[graph.output]
            for row, bound in zip(rows[0].tolist(), bounds, strict=True):
                assert sum(c * float(v) for c, v in zip(row, outputs, strict=True)) >= bound - 1e-12
    assert tighter > 0


def exact(graph: Graph, point: np.ndarray) -> dict[str, np.ndarray]:
    """Returns every activation in float64, which stands for real arithmetic up to 1e-12."""
    from vsparse.graph import run

    values = run(graph, graph.tensors(torch.float64), torch.tensor(point[None], dtype=torch.float64), keep=True)
    return {key: value[0].numpy() for key, value in values.items()}
