"""Regression: changes known by hand, by exact rational arithmetic and by attack; what rounding of the sample's own execution costs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from verify_nets import dense_graph

from vsparse.artifact.certificate import read_certificate, write_certificate
from vsparse.artifact.counterexamples import npz_bytes
from vsparse.bounds import margin_rows
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.verify import Certificate, certify
from vsparse.stages.verify.deployed import Runtime
from vsparse.stages.verify.regression import change_margins
from vsparse_check.certificate import digest
from vsparse_check.claims import check_certificate
from vsparse_check.limits import ResourceBudget
from vsparse_check.records import CertificateFiles, CertificateRecord

Write = Callable[..., Path]
# f(x) = relu(2 x0 - x1) - relu(x1 - 1/2) + 1/4
BY_HAND = ([[2, -1], [0, 1]], [0, -0.5]), ([[1, -1]], [0.25])
CHEAP = ("interval", "crown-ibp", "crown")


def samples_of(points: list[list[float]], targets: list[float] | None = None) -> Dataset:
    """Samples of regression, with targets of 0 where none are given."""
    pixels = np.array(points, np.float32)[:, None, None, :]
    wanted = np.array(targets if targets is not None else [0.0] * len(points))
    return Dataset(pixels, 1.0, np.zeros(len(points), np.int64), ("value",), None, wanted)


def certificate_of(path: Path, data: Dataset, epsilon: str, delta: str, contract: str = "fp32", **settings: Any) -> Certificate:
    settings = {"attack_steps": 10, "attack_restarts": 2, "cross_check": 0, **settings}
    return certify(
        path, data, PerturbationSet(epsilon=epsilon, delta=delta), CONTRACTS[contract], Verify.model_validate(settings), file=path.name
    )


def checked(
    path: Path, data: Dataset, certificate: Certificate, change: Callable[[dict[str, Any]], None] | None = None
) -> CertificateRecord:
    """What the checker says of a certificate, changed by `change` and hashed again."""
    folder = path.parent / "certificate"
    write_certificate(folder / "certificate.json", certificate)
    kept = np.array([claim.id for claim in certificate.claims if claim.verdict != "falsified"], np.int64)
    inputs = data.inputs().reshape(len(data), -1)[kept]
    (folder / "inputs.npz").write_bytes(npz_bytes({"ids": kept, "inputs": inputs}))
    if change is not None:
        content = json.loads((folder / "certificate.json").read_text())
        change(content)
        content["certificate_sha256"] = digest(content)
        (folder / "certificate.json").write_text(json.dumps(content))
    files = CertificateFiles(folder, path, "certificate", path.name)
    return check_certificate(files, ResourceBudget(), None, lambda done, total: None)


def value(point: list[Fraction]) -> Fraction:
    x0, x1 = point
    return max(Fraction(0), 2 * x0 - x1) - max(Fraction(0), x1 - Fraction(1, 2)) + Fraction(1, 4)


@pytest.mark.parametrize(
    ("delta", "verdict"),
    # Around (1/2, 1/4) both ReLUs are stable within 1/10: f changes by at most 2/10 + 1/10.
    [("0.31", "certified"), ("0.3001", "certified"), ("0.2999", "falsified"), ("0.1", "falsified")],
)
@pytest.mark.parametrize("methods", [("interval",), ("crown-ibp",), ("crown",), CHEAP])
def test_changes_by_hand(write: Write, delta: str, verdict: str, methods: tuple[str, ...]) -> None:
    data = samples_of([[0.5, 0.25]], [1.5])
    path = write(dense_graph(2, *BY_HAND))
    certificate = certificate_of(path, data, "0.1", delta, methods=methods)
    claim = certificate.claims[0]
    assert (claim.verdict, claim.value, claim.target, claim.label) == (verdict, 1.0, 1.5, 0)
    if verdict == "certified":
        margin = Fraction(delta) - Fraction(3, 10)
        assert claim.margin_lower is not None
        assert 0 < claim.margin_lower < margin
        assert claim.margin_lower > min(float(margin) - 3e-5, float(margin) * 0.49)
    else:
        assert certificate.counterexamples is not None
        point, x = certificate.counterexamples.inputs.ravel(), certificate.counterexamples.originals.ravel()
        moved = value([Fraction(float(v)) for v in point]) - value([Fraction(float(v)) for v in x])
        assert abs(moved) > Fraction(delta)
        assert all(abs(Fraction(float(p)) - Fraction(float(v))) <= Fraction(1, 10) for p, v in zip(point, x, strict=True))
    found = checked(path, data, certificate)
    assert found.certified == found.confirmed == (verdict == "certified")
    assert found.verdict == "confirmed", found.problem
    assert found.mean_absolute_error == 0.5


def test_a_change_upward_alone_is_seen(write: Write) -> None:
    # relu(x - 1/2) from below: f cannot fall, and rises by 1/10.
    path = write(dense_graph(1, ([[1]], [-0.5]), ([[1]], [0])))
    for delta, verdict in (("0.101", "certified"), ("0.099", "falsified")):
        assert certificate_of(path, samples_of([[0.5]]), "0.1", delta).claims[0].verdict == verdict


def test_the_sample_is_an_execution_too(write: Write) -> None:
    """At radius 0 x' is x, and yet two executions differ: 2^24 + 1 - 2^24 is 0, 1 or 2 by the order and the rounding."""
    layers = ([[2.0**24], [1.0], [2.0**24]], [0, 0, 0]), ([[1, 1, -1]], [0])
    path, data = write(dense_graph(1, *layers)), samples_of([[1.0]])
    exact = certificate_of(path, data, "0", "0.5", "real")
    assert exact.claims[0].verdict == "certified"
    for delta in ("0.5", "0.999"):
        assert certificate_of(path, data, "0", delta).claims[0].verdict == "unknown"
    wide = certificate_of(path, data, "0", "1000")
    assert wide.claims[0].verdict == "certified"
    margin = wide.claims[0].margin_lower
    # Both executions may be off by u times 2^25 each, at the least.
    assert margin is not None
    assert margin < 1000 - 2


def random_net(seed: int) -> tuple[tuple[Any, Any], ...]:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(5, 3)), rng.normal(size=(4, 5))
    return (first, rng.normal(size=5) / 2), (second, rng.normal(size=4) / 2), (rng.normal(size=(1, 4)) * 20, rng.normal(size=1) * 50)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("methods", [("interval",), CHEAP])
def test_no_certified_change_is_exceeded(write: Write, seed: int, methods: tuple[str, ...]) -> None:
    layers, rng = random_net(seed), np.random.default_rng(100 + seed)
    graph = dense_graph(3, *((np.float32(w).tolist(), np.float32(b).tolist()) for w, b in layers))
    data = samples_of(rng.random((8, 3)).round(3).tolist())
    path = write(graph)
    epsilon, delta = Fraction(1, 20), Fraction(12)
    certificate = certificate_of(path, data, str(epsilon), str(delta), methods=methods)
    assert checked(path, data, certificate).verdict == "confirmed"
    x = data.inputs().reshape(8, 3)
    runtime = Runtime(path.read_bytes(), "all")
    own = runtime.logits(data.inputs().reshape(8, *graph.input_shape)).ravel().astype(np.float64)
    lower = np.maximum(0, x.astype(np.float64) - float(epsilon) * (1 - 1e-7))
    upper = np.minimum(1, x.astype(np.float64) + float(epsilon) * (1 - 1e-7))
    corners = np.array(list(itertools.product((0, 1), repeat=3)))
    fractions = np.concatenate([corners, rng.random((200, 3))])
    certified = 0
    for claim in certificate.claims:
        i = claim.id
        points = (lower[i] + fractions * (upper[i] - lower[i])).astype(np.float32)
        answers = runtime.logits(points.reshape(-1, *graph.input_shape)).ravel().astype(np.float64)
        most = max(np.abs(answers - own[i]).max(), np.abs(reversed_sums(layers, points) - reversed_sums(layers, x[i : i + 1])).max())
        if claim.verdict == "certified":
            certified += 1
            assert claim.margin_lower is not None
            assert most <= float(delta) - claim.margin_lower
        elif claim.verdict == "falsified":
            assert certificate.counterexamples is not None
    assert certified or methods == ("interval",)


def reversed_sums(layers: tuple[tuple[Any, Any], ...], points: np.ndarray) -> np.ndarray:
    """Executes a network in float32 with every sum added from its last term to its first."""
    values = points.astype(np.float32)
    for number, (weight, bias) in enumerate(layers):
        total = np.tile(np.float32(bias), (len(values), 1))
        for column in reversed(range(np.shape(weight)[1])):
            total = np.float32(total + np.float32(values[:, column : column + 1] * np.float32(weight)[:, column]))
        values = total if number == len(layers) - 1 else np.maximum(total, 0)
    return values.ravel().astype(np.float64)


def test_margins_are_rounded_outward() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        delta = Fraction(int(rng.integers(1, 10**6)), int(rng.integers(1, 10**6)))
        lower, low, high = (float(v) for v in rng.normal(size=3) * 10.0 ** rng.integers(-3, 6))
        found = change_margins(
            torch.tensor([[lower, lower]], dtype=torch.float64), (torch.tensor([low]).double(), torch.tensor([high]).double()), delta
        )
        low, high = float(torch.tensor([low]).double()), float(torch.tensor([high]).double())
        exact = [delta + Fraction(low) + Fraction(lower), delta - Fraction(high) + Fraction(lower)]
        assert all(Fraction(float(one)) <= most for one, most in zip(found[0].tolist(), exact, strict=True))


def _raise(content: dict[str, Any]) -> None:
    content["claims"][0]["margin_lower"] += 0.02


def _narrow(content: dict[str, Any]) -> None:
    for about in (content, *content["claims"]):
        about["property"] = {**about["property"], "delta": "0.29"}


def _widen(content: dict[str, Any]) -> None:
    for about in (content, *content["claims"]):
        about["property"] = {**about["property"], "epsilon": "0.12"}


def _answer(content: dict[str, Any]) -> None:
    content["claims"][0]["value"] += 0.01


def _no_target(content: dict[str, Any]) -> None:
    del content["claims"][0]["target"]


def _classes(content: dict[str, Any]) -> None:
    for about in (content, *content["claims"]):
        about["property"] = {key: one for key, one in about["property"].items() if key != "delta"}


def _zero(content: dict[str, Any]) -> None:
    for about in (content, *content["claims"]):
        about["property"] = {**about["property"], "delta": "0"}


def _searched(content: dict[str, Any]) -> None:
    content["claims"][0]["method"] = "branch-and-bound"


@pytest.mark.parametrize("forge", [_raise, _narrow, _widen, _answer, _no_target, _classes, _zero, _searched])
def test_the_checker_refutes_what_does_not_follow(write: Write, forge: Callable[[dict[str, Any]], None]) -> None:
    path, data = write(dense_graph(2, *BY_HAND)), samples_of([[0.5, 0.25]], [1.5])
    certificate = certificate_of(path, data, "0.1", "0.31")
    assert checked(path, data, certificate).verdict == "confirmed"
    found = checked(path, data, certificate, forge)
    assert found.verdict == "refuted", found
    assert found.confirmed == 0 or forge in (_answer,)


def test_a_counterexample_within_delta_is_refuted(write: Write) -> None:
    path, data = write(dense_graph(2, *BY_HAND)), samples_of([[0.5, 0.25]])
    certificate = certificate_of(path, data, "0.1", "0.29")
    assert certificate.claims[0].verdict == "falsified"

    def wider(content: dict[str, Any]) -> None:
        for about in (content, *content["claims"]):
            about["property"] = {**about["property"], "delta": "0.4"}

    assert "no more than delta" in checked(path, data, certificate, wider).problem


def test_a_certificate_is_read_back(write: Write, tmp_path: Path) -> None:
    path, data = write(dense_graph(2, *BY_HAND)), samples_of([[0.5, 0.25], [0.1, 0.9]], [1.5, -2])
    certificate = certificate_of(path, data, "0.1", "0.31")
    write_certificate(tmp_path / "c.json", certificate)
    assert read_certificate(tmp_path / "c.json").claims == certificate.claims
    with pytest.raises(ValueError, match="of a class where"):
        Certificate.model_validate(
            {**dict(certificate), "claims": tuple(claim.model_copy(update={"target": None}) for claim in certificate.claims)}
        )


def test_what_does_not_go_together_is_refused(write: Write) -> None:
    one, two = write(dense_graph(2, *BY_HAND)), write(dense_graph(2, ([[1, 0], [0, 1]], [0, 0])), "two.onnx")
    data = samples_of([[0.5, 0.25]])
    classes = Dataset(data.pixels, 1.0, data.labels, ("a", "b"), None)
    with pytest.raises(InputError, match="networks with one"):
        certificate_of(two, data, "0.1", "1")
    with pytest.raises(InputError, match="has one output: a number"):
        certificate_of(one, data, "0.1", "0")
    with pytest.raises(InputError, match="these samples have classes"):
        certificate_of(one, classes, "0.1", "1")
    with pytest.raises(InputError, match="a number to predict and no class"):
        certificate_of(two, data, "0.1", "0")
    with pytest.raises(InputError, match="between two classes"):
        margin_rows(torch.tensor([0]), 1)


def test_answers_that_are_not_finite_are_unknown(write: Write) -> None:
    huge = 3e38
    path = write(dense_graph(1, ([[huge]], [huge]), ([[2]], [0])))
    claim = certificate_of(path, samples_of([[1.0]]), "0.1", "1").claims[0]
    assert (claim.verdict, claim.value, claim.predicted) == ("unknown", None, -1)
    assert onnx.load(path).graph.output[0].type.tensor_type.shape.dim[-1].dim_value == 1
