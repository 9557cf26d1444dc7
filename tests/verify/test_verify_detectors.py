"""Networks that detect how a device sums must never be certified (Szász, Bánhelyi and Jelasity, ICML 2025; shared PAPERS, section 6).

Each detector neuron is 0 or 1 in real arithmetic and something else in floating point, for some order; the network's label hangs on it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from verify_nets import dataset_of, dense_graph

from vsparse.contract import CONTRACTS
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.verify import certify

OMEGA = 2.0**24
DETECTORS: dict[str, tuple[list[float], float]] = {
    # weights on neurons that are all 1, and the exact sum
    "precision": ([OMEGA, 1.0, -OMEGA], 1.0),
    "order 1": (([OMEGA / 4] * 4 + [1.0] + [-OMEGA / 4] * 4) * 15, 15.0),
    "order 2": ([2 / 512] * 512 + [OMEGA, -OMEGA], 2.0),
    "order 3": ([1.0] * 512 + [OMEGA, -OMEGA], 512.0),
    "double precision": ([2.0**53, 1.0, -(2.0**53)], 1.0),
}


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("label", [0, 1])
def test_detectors_are_never_certified_under_fp32(write: Callable[..., Path], name: str, label: int) -> None:
    terms, total = DETECTORS[name]
    ones = ([[0.0]] * len(terms), [1.0] * len(terms))
    detector = ([terms], [0.0])
    # z0 = detector, z1 = half of its exact value: label 0 in real arithmetic, label 1 where the sum comes out too small.
    graph = dense_graph(1, ones, detector, ([[1.0], [0.0]], [0.0, total / 2]))
    path, data = write(graph), dataset_of(np.array([[0.5]]), [label], 2)
    claim = certify(path, data, PerturbationSet(epsilon="0.1"), CONTRACTS["fp32"], Verify()).claims[0]
    assert claim.verdict in ("unknown", "falsified")
    assert claim.verdict == ("unknown" if claim.predicted == label else "falsified")
    in_real_terms = certify(path, data, PerturbationSet(epsilon="0.1"), CONTRACTS["real"], Verify()).claims[0]
    assert in_real_terms.verdict != "certified" or label == 0


@pytest.mark.parametrize("contract", ["fp32", "tf32", "fp16", "bf16"])
def test_constants_that_cancel_are_never_certified(write: Callable[..., Path], contract: str) -> None:
    # x + 2^k - 2^k, with 2^k as biases of two layers: exact in real arithmetic, x's low bits are lost on the device.
    big = 2.0**15 if contract == "fp16" else 2.0**30
    graph = dense_graph(2, ([[1, 0], [0, 1]], [big, big]), ([[1, 0], [0, 1]], [-big, -big]))
    data = dataset_of([[0.501, 0.5]], [0], 2)
    claim = certify(write(graph), data, PerturbationSet(epsilon="0"), CONTRACTS[contract], Verify()).claims[0]
    assert claim.verdict != "certified"
