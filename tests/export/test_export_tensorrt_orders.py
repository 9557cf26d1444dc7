"""The contract int8-tensorrt is attacked: every order of the float steps behind exact sums, ties both ways, on random networks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from precision_nets import random_net
from tensorrt_simulation import ORDERS, TensorRT

from vsparse.bounds import Rounding, ball, crown, interval
from vsparse.bounds.interval import propagate
from vsparse.contract import contract
from vsparse.graph import Affine, FakeQuant, Gemm, Graph
from vsparse.graph.ir import QuantisedParameter
from vsparse.stages.export.quantise import quantise

TENSORRT = contract("int8-tensorrt")


def network(seed: int) -> tuple[Graph, np.random.Generator]:
    rng = np.random.default_rng(seed)
    graph = random_net(rng)
    return quantise(graph, rng.random((48, 1, 6, 6), dtype=np.float32), "int8-tensorrt"), rng


@pytest.mark.parametrize("seed", range(10))
def test_every_order_of_the_float_steps_is_inside_the_bounds(seed: int) -> None:
    graph, rng = network(seed)
    rounding = Rounding(graph, TENSORRT)
    x = rng.random((24, 1, 6, 6), dtype=np.float32)
    first = next(node for node in graph.nodes if isinstance(node, FakeQuant))
    if first.inputs == (graph.input,):  # half of the points on ties of the input's own grid
        x[:12] = ((np.floor(x[:12] / first.scale) + 0.5) * first.scale).astype(np.float32)
    inputs = torch.from_numpy(x).double()
    boxes = interval(graph, rounding.params, (inputs, inputs), rounding)
    for order in [*range(ORDERS), None, None, None]:
        for flush in (False, True):
            values = TensorRT(graph, rng, order, flush).run(x)
            for name, value in values.items():
                lower, upper = (end.numpy() for end in boxes[name])
                assert (value >= lower).all(), (name, order)
                assert (value <= upper).all(), (name, order)


@pytest.mark.parametrize("seed", range(4))
def test_no_execution_of_a_region_leaves_its_bounds(seed: int) -> None:
    graph, rng = network(seed)
    rounding = Rounding(graph, TENSORRT)
    x = rng.random((1, 1, 6, 6), dtype=np.float32)
    box = ball(torch.from_numpy(x), Fraction(1, 50))
    boxes = interval(graph, rounding.params, box, rounding)
    rows = torch.eye(3, dtype=torch.float64)
    lower = crown(graph, rounding.params, box, rows, boxes, rounding).numpy()
    upper = -crown(graph, rounding.params, box, -rows, boxes, rounding).numpy()
    points = np.clip(x + rng.choice([-0.0199, 0.0, 0.0199], (96, 1, 6, 6)), 0, 1).astype(np.float32)
    logits = TensorRT(graph, rng).run(points)[graph.output]
    assert (logits >= lower).all()
    assert (logits <= upper).all()


def one_layer(rng: np.random.Generator) -> Graph:
    """A quantised input, one linear layer and a quantised output, with scales of any size that the contract lets stand."""
    n, out = int(rng.integers(1, 9)), 5
    s_x, s_y = (float(np.float32(2.0 ** rng.uniform(-40, 40))) for _ in range(2))
    s_w = (2.0 ** rng.uniform(-40, 40, out)).astype(np.float32)
    q = rng.integers(-127, 128, (out, n)).astype(np.int8)
    # Biases that nearly cancel a sum, tiny ones, huge ones, and none.
    size = np.exp2(rng.uniform(-40, 40, out)) * rng.choice([-1, 1], out)
    near = -(q.astype(np.float64) @ rng.integers(-128, 128, n)) * s_w * s_x
    pick = np.where(rng.random(out) < 0.5, near, size)
    bias = np.where((np.abs(pick) < 2.0**-40) | (np.abs(pick) > 2.0**40), 0, pick).astype(np.float32)
    grid = {"zero_point": 0, "lowest": -128, "highest": 127}
    nodes = (
        FakeQuant(name="q", inputs=("x",), shape=(n,), scale=s_x, **grid),
        Gemm(name="z", inputs=("q",), shape=(out,), weight="w", bias="b"),
        FakeQuant(name="y", inputs=("z",), shape=(out,), scale=s_y, **grid),
    )
    stored = QuantisedParameter(q, s_w)
    return Graph("x", (n,), nodes, "y", {"w": stored.floats(), "b": bias}, integers={"w": stored})


def test_the_error_of_one_layer_holds_for_scales_of_any_size() -> None:
    """Against rational arithmetic: |x − (W·y + b)| <= E for what a device stores, and its integer is one of the steps that E allows."""
    used = 0.0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        graph = one_layer(rng)
        rounding = Rounding(graph, TENSORRT)
        x = (rng.integers(-128, 128, (3, graph.input_shape[0])) * graph.nodes[0].scale).astype(np.float32)
        inputs = torch.from_numpy(x).double()
        boxes = interval(graph, rounding.params, (inputs, inputs), rounding)
        gemm = graph.node("z")
        assert isinstance(gemm, Affine)
        at = {"q": boxes["q"]}
        exact = propagate(gemm, rounding.params, [at["q"]])
        allowed = rounding.error(gemm, at, exact).numpy()
        for order in range(ORDERS):
            device = TensorRT(graph, rng, order, flush=bool(seed % 2))
            quantised = device.step(graph.nodes[0], [x], True)
            made = device.sum(gemm, quantised)
            stored = device.scaled(made, None)
            weight, bias = graph.params["w"], graph.params["b"]
            for i in range(len(x)):
                y = [Fraction(int(k)) * Fraction(graph.nodes[0].scale) for k in quantised[0][i]]
                for j in range(len(weight)):
                    z = sum((Fraction(float(w)) * v for w, v in zip(weight[j], y, strict=True)), Fraction(float(bias[j])))
                    away = abs(Fraction(float(stored[i, j])) - z) if np.isfinite(stored[i, j]) else None
                    if away is None:
                        assert not np.isfinite(allowed[i, j])
                        continue
                    assert not np.isfinite(allowed[i, j]) or away <= Fraction(float(allowed[i, j]))
                    if np.isfinite(allowed[i, j]):
                        used = max(used, float(away / Fraction(float(allowed[i, j]))))
            last = graph.nodes[2]
            assert isinstance(last, FakeQuant)
            found = device.quantise(last, made) * np.float64(np.float32(last.scale))
            lower, upper = (end.numpy() for end in boxes["y"])
            assert (found >= lower).all()
            assert (found <= upper).all()
    assert used > 0.05  # the attack comes near


def test_a_smaller_error_would_be_found_out() -> None:
    """The attack can fail: without the roundings of integers' scales some device leaves the bounds of a layer of one product."""
    caught = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        graph = one_layer(rng)
        x = (rng.integers(-128, 128, (8, graph.input_shape[0])) * graph.nodes[0].scale).astype(np.float32)
        device = TensorRT(graph, rng)
        quantised = device.step(graph.nodes[0], [x], True)
        gemm = graph.node("z")
        assert isinstance(gemm, Affine)
        stored = device.scaled(device.sum(gemm, quantised), None).astype(np.float64)
        y = quantised[0] * np.float64(graph.nodes[0].scale)
        weight, bias = (graph.params[name].astype(np.float64) for name in ("w", "b"))
        exact, size = y @ weight.T + bias, np.abs(y) @ np.abs(weight.T) + np.abs(bias)
        caught += int((np.abs(stored - exact) > 2.0**-24 * size).any())
    assert caught > 10
