"""Contract `sequential`: by hand, against executions of the stated order (fused or flushed, or not), and against any order's bound."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from device_simulation import Device, exact_node, random_graph

from vsparse.bounds import Rounding, ball, interval
from vsparse.bounds.float64 import gamma
from vsparse.bounds.sequential import sequential_growth
from vsparse.contract import CONTRACTS
from vsparse.graph.ir import Add, Conv, Gemm, Graph

U = 2.0**-24
FP32, SEQUENTIAL = CONTRACTS["fp32"], CONTRACTS["sequential"]


def one_row(weight, bias):
    return Graph(
        input="x",
        input_shape=(len(weight),),
        nodes=(Gemm(name="g", inputs=("x",), shape=(1,), weight="w", bias="b"),),
        output="g",
        params={"w": np.array([weight], np.float32), "b": np.array([bias], np.float32)},
    )


def error_at(graph, contract, m):
    """Returns E of the last node where inputs are points of magnitude m."""
    x = torch.tensor([m], dtype=torch.float64)
    rounding = Rounding(graph, contract)
    boxes = {graph.input: (x, x)}
    node = graph.nodes[-1]
    value = interval(graph, rounding.params, (x, x), rounding)[node.name]
    return rounding.error(node, boxes, value)[0]


def test_roundings_by_hand():
    survivors = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]], [[[0.0, 0.0], [0.0, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]], dtype=torch.float64)
    products, bias = sequential_growth(survivors, U)
    expected = [[gamma(4, U), 0, gamma(3, U), gamma(2, U)], [0, 0, 0, gamma(2, U)], [0, 0, 0, 0]]
    assert torch.allclose(products.flatten(1), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)
    assert torch.allclose(bias, torch.tensor([gamma(3, U), gamma(1, U), 0.0], dtype=torch.float64), rtol=1e-14, atol=0)


def test_the_error_of_a_row_by_hand():
    graph = one_row([2.0, 0.0, -1.0, 4.0], 8.0)
    expected = gamma(4, U) * 2 * 3 + gamma(3, U) * 1 * 5 + gamma(2, U) * 4 * 7 + gamma(3, U) * 8
    got = float(error_at(graph, SEQUENTIAL, [3.0, 100.0, 5.0, 7.0]))
    assert expected <= got <= expected * (1 + 1e-6)


def test_rows_too_long_for_float32_are_not_certified():
    products, bias = sequential_growth(torch.ones(1, 2**12, dtype=torch.float64), 2.0**-12)
    assert torch.isinf(products[0, 0])
    assert torch.isinf(bias[0])
    assert torch.isfinite(products[0, -1])


def test_no_execution_of_the_order_errs_by_more_or_leaves_the_enclosure():
    rng = np.random.default_rng(11)
    worst, checked = 0.0, 0
    for _ in range(16):
        graph = random_graph(rng, "fp32", spread=float(rng.choice([1.0, 30.0])))
        if rng.random() < 0.2:  # into the range where underflow is what is lost
            graph = graph.with_params({name: (value * np.float32(2.0**-66)).astype(np.float32) for name, value in graph.params.items()})
        rounding = Rounding(graph, SEQUENTIAL)
        x = rng.random((1, *graph.input_shape)).astype(np.float32)
        box = ball(torch.tensor(x), Fraction(1, int(rng.choice([3, 1000]))))
        boxes = interval(graph, rounding.params, box, rounding)
        device = Device(graph, SEQUENTIAL, rng)
        for _ in range(3):
            point = np.clip(rng.uniform(box[0][0], box[1][0]).astype(np.float32), box[0][0].numpy(), box[1][0].numpy()).astype(np.float32)
            values = device.run(point)
            for name, (lower, upper) in boxes.items():
                assert (values[name] >= lower[0].numpy()).all(), name
                assert (values[name] <= upper[0].numpy()).all(), name
            at = {name: (torch.tensor(value[None]),) * 2 for name, value in values.items()}
            for node in graph.nodes:
                allowed = rounding.error(node, at, at[node.name])[0].numpy().reshape(-1)
                exact = exact_node(device, node, *(values[name] for name in node.inputs))
                for got, true, limit in zip(values[node.name].reshape(-1), exact, allowed, strict=True):
                    off = abs(Fraction(float(got)) - true)
                    assert off <= Fraction(float(limit)), (node, float(off), limit)
                    worst = max(worst, float(off) / limit if limit > 1e-30 else 0.0)
                    checked += 1
    assert checked > 3000
    assert worst > 0.3, "the executions are too tame to test anything"


def test_every_rounding_that_is_counted_can_happen():
    """With one term, product and addition each lose nearly u: one rounding fewer in the bound, and this search would break it."""
    rng = np.random.default_rng(0)
    w, x = (rng.integers(2**23, 2**23 + 2**13, 200_000).astype(np.float32) * np.float32(2.0**-23) for _ in range(2))
    b = (rng.random(200_000).astype(np.float32) * np.float32(2.0**-20)).astype(np.float32)
    got = (w * x + b).astype(np.float64)
    wide = w.astype(np.float64) * x  # exact: 48 bits
    off = np.abs(got - wide - b)
    fewer = gamma(1, U) * wide + gamma(1, U) * b
    stated = gamma(2, U) * wide + gamma(1, U) * b
    assert (off <= stated * (1 + 1e-7)).all()
    assert (off > 1.8 * fewer).any()


def test_it_is_never_above_the_bound_of_any_order_and_about_half_of_it():
    rng = np.random.default_rng(2)
    for _ in range(10):
        graph = random_graph(rng)
        x = ball(torch.rand(2, *graph.input_shape), Fraction(1, 20))
        tight, loose = Rounding(graph, SEQUENTIAL), Rounding(graph, FP32)
        boxes = interval(graph, loose.params, x, loose)
        for node in graph.nodes:
            assert bool((tight.error(node, boxes, boxes[node.name]) <= loose.error(node, boxes, boxes[node.name])).all())
    row = one_row([1.0] * 1000, 1.0)
    share = float(error_at(row, SEQUENTIAL, [1.0] * 1000) / error_at(row, FP32, [1.0] * 1000))
    assert 0.49 < share < 0.52


def test_a_residual_addition_is_not_part_of_the_sum():
    """Under fp32 a runtime may add 512 ones to 2^24 one by one; our C adds their sum, which is exact."""
    params = {"w": np.ones((1, 512, 1, 1), np.float32)}
    conv = Conv(name="c", inputs=("x",), shape=(1, 1, 1), weight="w", bias=None)
    skip = Conv(name="s", inputs=("x",), shape=(1, 1, 1), weight="v", bias=None)
    params["v"] = np.zeros((1, 512, 1, 1), np.float32)
    params["v"][0, 0] = 2.0**24
    graph = Graph(
        input="x", input_shape=(512, 1, 1), nodes=(conv, skip, Add(name="a", inputs=("c", "s"), shape=(1, 1, 1))), output="a", params=params
    )
    x = torch.ones(1, 512, 1, 1, dtype=torch.float64)
    errors = {}
    for contract in (SEQUENTIAL, FP32):
        rounding = Rounding(graph, contract)
        boxes = interval(graph, rounding.params, (x, x), rounding)
        errors[contract.name] = float(rounding.error(graph.nodes[-1], boxes, boxes["a"]))
    assert errors["sequential"] < 2
    assert errors["fp32"] > 256
