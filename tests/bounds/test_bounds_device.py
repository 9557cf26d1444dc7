"""Bounds that are made on a simulated accelerator hold what rational arithmetic computes, and grant its sums more than the processor's."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from device_simulation import Device
from exact_execution import exact_run

from device_engines import Placed
from engine_nets import case
from simulated_device import simulated_device
from vsparse.bounds import Rounding, crown, interval
from vsparse.bounds.float64 import DEVICE_UNIT64, UNIT64, gamma64
from vsparse.bounds.zonotope import zonotope
from vsparse.compute_device import accelerated, to_host
from vsparse.contract import CONTRACTS
from vsparse.graph import Add, AveragePool, Conv, Gather, Gemm, Graph, MaxPool, Node

POINTS = 3


@pytest.mark.parametrize("kind", [Conv, Gemm, AveragePool, MaxPool, Gather, Add], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("width", [0.0, 0.0625], ids=["point", "box"])
def test_boxes_and_margins_made_there_hold_in_rational_arithmetic(kind: type[Node], width: float) -> None:
    """At a point nothing but the allowance for rounding lies between a value and its bounds."""
    one = case(kind, False)
    middle = (one.box[0] + one.box[1]) / 2
    with simulated_device():
        at = Placed(one, "cuda", "real")
        at.box = (middle - width).to("cuda"), (middle + width).to("cuda")
        at.boxes = interval(at.graph, at.params, at.box, at.rounding)
        found = [at.boxes, at.refined(), zonotope(at.graph, at.box, at.rounding).boxes]
        lower = float(to_host(crown(at.graph, at.params, at.box, at.row[None], at.boxes, at.rounding)))
        ends = [{name: [to_host(end).flatten().tolist() for end in box] for name, box in boxes.items()} for boxes in found]
    rng = np.random.default_rng(0)
    device = Device(one.graph, CONTRACTS["real"], rng)
    for _ in range(POINTS):
        x = (middle + width * torch.from_numpy(rng.choice([-1.0, 0.5, 1.0], middle.shape)))[0].numpy()
        values = exact_run(one.graph, device, x)
        for boxes in ends:
            for name, (low, high) in boxes.items():
                flat = values[name].reshape(-1).tolist()
                assert all(Fraction(a) <= v <= Fraction(b) for a, v, b in zip(low, flat, high, strict=True)), name
        output = values[one.graph.output].reshape(-1).tolist()
        assert Fraction(lower) <= sum(Fraction(w) * v for w, v in zip(one.row.tolist(), output, strict=True))


def test_a_term_of_a_sum_is_charged_what_a_matrix_unit_may_lose() -> None:
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert DEVICE_UNIT64 == 4 * UNIT64
    assert gamma64(100, cuda) > 3.9 * gamma64(100, cpu) > 0
    one = case(Conv, False)
    with simulated_device():
        there = Placed(one, "cuda").rounding.sums["f"].pad
    assert there == pytest.approx(4 * Placed(one, "cpu").rounding.sums["f"].pad)


def test_a_sum_in_the_kernels_own_order_is_bounded_there_as_here() -> None:
    """Running sums are taken on the processor: on an accelerator they are not repeatable, and refused."""
    rng = np.random.default_rng(0)
    weight = (rng.integers(-64, 65, size=(3, 8)) / 64).astype(np.float32)
    graph = Graph("x", (8,), (Gemm(name="y", inputs=("x",), shape=(3,), weight="w", bias=None),), "y", {"w": weight}, storage="fp16")
    box = torch.zeros(1, 8, dtype=torch.float64), torch.ones(1, 8, dtype=torch.float64)
    here = Rounding(graph, CONTRACTS["fp16-chain"])
    wanted = interval(graph, here.params, box, here)["y"]
    with simulated_device(), accelerated(torch.device("cuda", 0)):
        there = Rounding(graph, CONTRACTS["fp16-chain"], "cuda")
        found = [to_host(end) for end in interval(graph, there.params, (box[0].to("cuda"), box[1].to("cuda")), there)["y"]]
    assert torch.allclose(found[0], wanted[0], rtol=1e-12)
    assert torch.allclose(found[1], wanted[1], rtol=1e-12)
