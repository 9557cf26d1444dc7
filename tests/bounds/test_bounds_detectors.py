"""Networks that detect the order or the precision of summation (Szász, Bánhelyi, Jelasity, ICML 2025): never certified."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from vsparse.bounds import Rounding, ball, crown, interval, margin_rows, refine
from vsparse.contract import CONTRACTS
from vsparse.graph.ir import Gemm, Graph, Relu

OMEGA = 2.0**24
DETECTORS = {
    "precision": [OMEGA, 1.0, -OMEGA],
    "order 1": ([OMEGA / 4] * 4 + [1.0] + [-OMEGA / 4] * 4) * 15,
    "order 2": [2 / 512] * 512 + [OMEGA, -OMEGA],
    "order 3": [1.0] * 512 + [OMEGA, -OMEGA],
}


def detector(weights: list[float], sign: float) -> Graph:
    """A network with a switch: hidden unit 0 is relu(0·x + 1) = 1 copied to every summand, unit 1 sums them in exact arithmetic to a
    constant, and the logits are ±(sum − half of it): class 0 for exact sums, class 1 for the sums that some orders give."""
    n = len(weights)
    total = float(sum(Fraction(w) for w in weights))
    params = {
        "w1": np.zeros((n, 2), np.float32),
        "b1": np.ones(n, np.float32),
        "w2": np.array([weights], np.float32),
        "b2": np.zeros(1, np.float32),
        "w3": np.array([[sign], [-sign]], np.float32),
        "b3": np.array([-sign * total / 2, sign * total / 2], np.float32),
    }
    nodes = (
        Gemm(name="copies", inputs=("x",), shape=(n,), weight="w1", bias="b1"),
        Relu(name="r1", inputs=("copies",), shape=(n,)),
        Gemm(name="sum", inputs=("r1",), shape=(1,), weight="w2", bias="b2"),
        Relu(name="r2", inputs=("sum",), shape=(1,)),
        Gemm(name="z", inputs=("r2",), shape=(2,), weight="w3", bias="b3"),
    )
    return Graph(input="x", input_shape=(2,), nodes=nodes, output="z", params=params)


def margins(graph: Graph, name: str, label: int) -> float:
    rounding = Rounding(graph, CONTRACTS[name])
    box = ball(torch.full((1, 2), 0.5), Fraction(1, 100))
    enclosure = interval(graph, rounding.params, box, rounding)
    refined = refine(graph, rounding.params, box, enclosure, rounding)
    lower, upper = enclosure["z"]
    by_interval = lower[0, label] - upper[0, 1 - label]
    rows = margin_rows(torch.tensor([label]), 2)
    return max(float(by_interval), *(float(crown(graph, rounding.params, box, rows, boxes, rounding)) for boxes in (enclosure, refined)))


@pytest.mark.parametrize("which", DETECTORS)
@pytest.mark.parametrize("contract", ["fp32", "tf32", "fp16-accumulate", "bf16"])
def test_a_detector_is_never_certified_for_either_class(which, contract):
    graph = detector(DETECTORS[which], 1.0)
    if contract in ("fp16-accumulate", "bf16"):
        largest = 2.0**15 if contract == "fp16-accumulate" else OMEGA
        weights = [w / OMEGA * largest if abs(w) > 1000 else w for w in DETECTORS[which]]
        graph = detector(weights, 1.0)
    for label in (0, 1):
        assert margins(graph, contract, label) <= 0


@pytest.mark.parametrize("which", DETECTORS)
def test_the_same_network_is_certified_in_real_arithmetic(which):
    assert margins(detector(DETECTORS[which], 1.0), "real", 0) > 0


@pytest.mark.parametrize("which", ["precision", "order 1", "order 3"])
def test_a_detector_does_fool_float32(which):
    weights = np.array(DETECTORS[which], np.float32)
    sums = set()
    rng = np.random.default_rng(0)
    for order in [np.arange(len(weights)), *(rng.permutation(len(weights)) for _ in range(20))]:
        total = np.float32(0)
        for w in weights[order]:
            total += w
        sums.add(float(total))
    exact = float(sum(Fraction(float(w)) for w in weights))
    assert any(abs(value - exact) >= exact / 2 for value in sums)
