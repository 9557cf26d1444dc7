"""Brute force: simulated devices of every contract never leave the enclosure, and never err by more than E."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from device_simulation import Device, exact_node, random_graph

from vsparse.bounds import Choices, Rounding, ball, crown, interval, refine
from vsparse.contract import CONTRACTS
from vsparse.graph import from_onnx, run, to_onnx


def members(rng, lower, upper, x, count):
    """Yields float32 points of a box: the centre, corners, random points."""
    yield x
    for i in range(count):
        corner = rng.integers(0, 2, x.shape).astype(bool)
        yield np.where(corner, lower, upper) if i % 2 else rng.uniform(lower, upper)


def inner(lower, upper):
    """Returns the ends as float32 values inside the box."""
    low, high = lower.astype(np.float32), upper.astype(np.float32)
    low = np.where(low < lower, np.nextafter(low, np.float32(np.inf)), low)
    return low, np.where(high > upper, np.nextafter(high, np.float32(-np.inf)), high)


@pytest.mark.parametrize(
    ("name", "nets"),
    [("fp32", 24), ("tf32", 16), ("fp16", 16), ("bf16", 16), ("fp16-accumulate", 16), ("fp16-chain", 16), ("fp16-tensorrt", 24)],
)
def test_no_device_leaves_the_enclosure_or_errs_by_more_than_its_error_term(name, nets):
    attack(name, nets, sum(map(ord, name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp32", "tf32", "fp16", "bf16", "fp16-accumulate", "fp16-chain", "fp16-tensorrt"])
def test_no_device_leaves_the_enclosure_at_length(name):
    attack(name, 300, 1000 + sum(map(ord, name)))


def attack(name, nets, seed):
    """Runs simulated devices on random networks and members of random balls, and compares with exact rationals."""
    contract = CONTRACTS[name]
    rng = np.random.default_rng(seed)
    kinds, ends, worst, finite = set(), set(), 0.0, 0
    for trial in range(nets):
        graph = random_graph(rng, contract.storage, spread=float(rng.choice([1.0, 30.0])))
        if name == "fp16-tensorrt":  # as its file is read: which ends are never rounded is part of it
            graph = from_onnx(to_onnx(replace(graph, storage="fp16", wide_sums=True)).SerializeToString())
            ends |= {"output" if one != graph.input else "input" for one in graph.unrounded}
        kinds |= {type(node).__name__ for node in graph.nodes}
        rounding = Rounding(graph, contract)
        x = rng.random((1, *graph.input_shape)).astype(np.float32)
        box = ball(torch.tensor(x), Fraction(1, int(rng.choice([3, 20, 1000]))))
        enclosure = interval(graph, rounding.params, box, rounding)
        refined = refine(graph, rounding.params, box, enclosure, rounding)
        rows = torch.tensor(np.concatenate([np.eye(3), -np.eye(3), [[1, -1, 0.0]]]))
        bounds = [crown(graph, rounding.params, box, rows, boxes, rounding)[0].numpy() for boxes in (enclosure, refined)]
        errors = {node.name: rounding.error(node, refined, refined[node.name])[0].numpy().reshape(-1) for node in graph.nodes}
        low, high = inner(box[0][0].numpy(), box[1][0].numpy())
        device = Device(graph, contract, rng)
        for point in members(rng, low, high, x[0], 3):
            point = np.clip(point.astype(np.float32), low, high)
            values = device.run(point)
            if not all(np.isfinite(value).all() for value in values.values()):  # an overflow on the device must have been foreseen
                assert all((bound == -np.inf).all() for bound in bounds)
                for key, value in values.items():
                    assert torch.isinf(enclosure[key][0][0]).numpy()[~np.isfinite(value)].all()
                continue
            for boxes in (enclosure, refined):
                for key, (lower, upper) in boxes.items():
                    assert (values[key] >= lower[0].numpy()).all(), (trial, key)
                    assert (values[key] <= upper[0].numpy()).all(), (trial, key)
            for node in graph.nodes:
                exact = exact_node(device, node, *(values[n] for n in node.inputs))
                for got, true, allowed in zip(values[node.name].reshape(-1), exact, errors[node.name], strict=True):
                    if np.isfinite(allowed):
                        finite += 1
                        off = abs(Fraction(float(got)) - true)
                        assert off <= Fraction(float(allowed)), (trial, node)
                        worst = max(worst, float(off) / allowed if allowed else 0.0)
            for bound in bounds:
                logits = [Fraction(float(v)) for v in values[graph.output].reshape(-1)]
                for row, lower in zip(rows.tolist(), bound, strict=True):
                    if np.isfinite(lower):
                        assert sum(Fraction(c) * v for c, v in zip(row, logits, strict=True)) >= Fraction(float(lower))
    assert ends == ({"input", "output"} if name == "fp16-tensorrt" else set())
    assert finite > 1000
    assert worst > 0.05, "the simulated device is too tame to test anything"
    assert {"Conv", "Gemm", "Relu", "Reshape", "Add", "AddConstant", "MulConstant", "AveragePool", "MaxPool"} <= kinds


def test_real_arithmetic_stays_inside_and_crown_is_attacked_by_random_search():
    rng = np.random.default_rng(5)
    for _ in range(40):
        graph = random_graph(rng)
        rounding = Rounding(graph, CONTRACTS["real"])
        x = torch.tensor(rng.random((2, *graph.input_shape)), dtype=torch.float64)
        box = ball(x, Fraction(1, 10))
        enclosure = interval(graph, rounding.params, box, rounding)
        refined = refine(graph, rounding.params, box, enclosure, rounding)
        rows = torch.tensor(rng.normal(size=(4, 3)))
        slopes = {n.name: torch.rand(1, 1, *n.shape, dtype=torch.float64) for n in graph.nodes if type(n).__name__ == "Relu"}
        bounds = [
            crown(graph, rounding.params, box, rows, boxes, rounding, choices=Choices(chosen))
            for boxes in (enclosure, refined)
            for chosen in ({}, slopes)
        ]
        lowest = torch.stack(bounds).amax(dim=0)
        for _ in range(60):
            t = torch.rand_like(x) if rng.random() < 0.5 else torch.randint(0, 2, x.shape).double()
            values = run(graph, rounding.params, box[0] + t * (box[1] - box[0]), keep=True)
            for key, (lower, upper) in refined.items():
                slack = 1e-12 * (1 + values[key].abs())
                assert bool((values[key] >= lower - slack).all())
                assert bool((values[key] <= upper + slack).all())
            assert bool((values[graph.output] @ rows.T >= lowest - 1e-11).all())


def test_refined_boxes_are_never_wider():
    rng = np.random.default_rng(9)
    narrower = 0
    for _ in range(10):
        graph = random_graph(rng)
        rounding = Rounding(graph, CONTRACTS["fp32"])
        box = ball(torch.rand(3, *graph.input_shape), Fraction(1, 20))
        enclosure = interval(graph, rounding.params, box, rounding)
        refined = refine(graph, rounding.params, box, enclosure, rounding)
        for key, (lower, upper) in refined.items():
            assert bool((lower >= enclosure[key][0]).all())
            assert bool((upper <= enclosure[key][1]).all())
            narrower += int((lower > enclosure[key][0] + 1e-9).sum())
    assert narrower > 0
