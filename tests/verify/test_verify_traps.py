"""Backdoors that hang on the order or the precision of a sum, grafted onto a trained network: none is certified where it can fire."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bounds"))  # device_simulation

from trap_nets import CONTROL, EXECUTED, SCHEMES, Detector, Fires, add_up, detectors, exact, execute, graft, renumbered, train_host

from vsparse.contract import CONTRACTS
from vsparse.data import Dataset, load
from vsparse.graph import Graph, to_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Data, Verify
from vsparse.stages.verify import certify
from vsparse.stages.verify.deployed import Runtime, predictions

WIDTHS = (24, 16)
SAMPLES = 8
EPSILON = "0.01"
KINDS = {"fp32": (2.0**24, 1.0), "fp32, double precision": (2.0**53, 1.0), "fp16-accumulate": (2.0**11, 1.0), "fp16": (2.0**24, 2.0**12)}
QUICK = Verify(attack_steps=2, attack_restarts=1)


@pytest.fixture(scope="module")
def host() -> Graph:
    train = load(Data(), None, 0).train
    return train_host(train.inputs(), train.labels, WIDTHS, 10, 0.02)


def trap(host: Graph, kind: str, detector: Detector, fires: Fires) -> Graph:
    return graft(host, detector, fires, "fp32" if kind.startswith("fp32") else "fp16")


def verdicts(path: Path, digits: Dataset, contract: str) -> list[str]:
    return [c.verdict for c in certify(path, digits, PerturbationSet(epsilon=EPSILON), CONTRACTS[contract], QUICK, samples=SAMPLES).claims]


@pytest.mark.parametrize("fires", ["on a device", "in exact arithmetic"])
@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_no_trap_is_certified_where_it_can_fire(
    write: Callable[..., Path], host: Graph, digits: Dataset, kind: str, which: int, fires: Fires
) -> None:
    detector = detectors(*KINDS[kind])[which]
    graph = trap(host, kind, detector, fires)
    path = write(graph)
    contracts = [name for name, one in CONTRACTS.items() if one.storage == kind[:4] and not one.integers and detector.can_fire(one)]
    assert contracts
    for contract in (name for name in contracts if name not in ("fp16-chain", "fp16-tensorrt")):  # the latter is fp16 of other files
        assert "certified" not in verdicts(path, digits, contract), contract
    if "fp16-chain" in contracts:  # about files that compute in float16 alone
        assert "certified" not in verdicts(write(replace(graph, storage="fp16")), digits, "fp16-chain")


@pytest.mark.parametrize("contract", ["fp32", "tf32", "fp16"])
def test_the_same_graft_without_a_trap_is_certified(write: Callable[..., Path], host: Graph, digits: Dataset, contract: str) -> None:
    path = write(trap(host, contract if contract == "fp16" else "fp32", CONTROL, "on a device"))
    assert "certified" in verdicts(path, digits, contract)


@pytest.mark.parametrize("which", [0, 2, 3])
def test_real_arithmetic_certifies_what_a_device_gets_wrong(write: Callable[..., Path], host: Graph, digits: Dataset, which: int) -> None:
    detector = detectors(2.0**24)[which]
    graph = graft(host, detector, "on a device")
    x, labels = digits.inputs(slice(0, SAMPLES)), digits.labels[:SAMPLES]
    certified = np.array([v == "certified" for v in verdicts(write(graph), digits, "real")])
    right = predictions(exact(graph, x, WIDTHS[0])) == labels
    assert bool(right[certified].all())
    fooled = [predictions(execute(graph, x, CONTRACTS["fp32"], scheme, WIDTHS[0])) != labels for scheme in SCHEMES]
    assert any(bool(wrong[right].all()) for wrong in fooled), "the backdoor must fire in some order"
    if which:  # what ONNX Runtime itself misclassifies, as it does for `precision`, is never called certified
        assert certified.any()


def test_the_backdoor_is_real_in_the_runtime(host: Graph, digits: Dataset) -> None:
    graph = graft(host, detectors(2.0**24)[0], "on a device")
    x, labels = digits.inputs(slice(0, 50)), digits.labels[:50]
    assert (predictions(exact(graph, x, WIDTHS[0])) == labels).mean() > 0.7
    got = [
        (predictions(Runtime(to_onnx(one).SerializeToString(), batch=batch).logits(x)) == labels).mean()
        for one in (graph, renumbered(graph, WIDTHS[0]))
        for batch in (1, 50)
    ]
    assert min(got) < 0.2


def test_the_criterion_for_a_harmless_sum_agrees_with_execution() -> None:
    for omega, unit in KINDS.values():
        for detector in [*detectors(omega, unit), CONTROL]:
            for contract in (CONTRACTS[name] for name in EXECUTED):
                with np.errstate(over="ignore", invalid="ignore"):
                    sums = {add_up(np.array(detector.terms), scheme, contract.accumulate) for scheme in SCHEMES}
                if not detector.can_fire(contract):
                    assert sums == {float(detector.total)}
