"""Certificates of networks whose verdicts are known: by hand, by exact rational arithmetic, and by attack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from verify_nets import dataset_of, dense_graph

from vsparse.bounds import inner_ball_float32
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset, load
from vsparse.errors import InputError
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Data, Verify
from vsparse.stages.export import content_sha256
from vsparse.stages.verify import Certificate, certify
from vsparse.stages.verify.attack import pgd
from vsparse.stages.verify.deployed import Runtime, predictions, read_model

FP32 = CONTRACTS["fp32"]


def certificate_of(path: Path, dataset: Dataset, epsilon: str, contract: str = "fp32", **settings: object) -> Certificate:
    """Certifies every sample at one radius."""
    return certify(path, dataset, PerturbationSet(epsilon=epsilon), CONTRACTS[contract], Verify.model_validate(settings))


@pytest.mark.parametrize(
    ("epsilon", "verdict"),
    # The margin is 1/2 - 2·ε. At 1/4 the worst point is a tie, which is classified as 0: neither proved nor refuted.
    [("0", "certified"), ("0.2499", "certified"), ("1/4", "unknown"), ("0.2501", "falsified"), ("1", "falsified")],
)
@pytest.mark.parametrize("methods", [("interval",), ("crown-ibp",), ("crown",), ("interval", "crown-ibp", "crown")])
def test_verdicts_by_hand(difference: Path, epsilon: str, verdict: str, methods: tuple[str, ...]) -> None:
    certificate = certificate_of(difference, dataset_of([[0.75, 0.25]], [0], 2), epsilon, methods=methods)
    claim = certificate.claims[0]
    assert claim.verdict == verdict
    if verdict == "certified":
        exact = Fraction(1, 2) - 2 * Fraction(epsilon)
        assert claim.margin_lower is not None
        assert float(exact) - 4e-5 <= claim.margin_lower < exact


def test_a_wrong_prediction_is_its_own_counterexample(difference: Path) -> None:
    certificate = certificate_of(difference, dataset_of([[0.25, 0.75]], [0], 2), "0.1")
    claim = certificate.claims[0]
    assert (claim.verdict, claim.method, claim.predicted) == ("falsified", "clean", 1)
    assert certificate.counterexamples is not None
    assert certificate.counterexamples.inputs.tolist() == [[[[0.25, 0.75]]]]
    assert certificate.summary.clean_accuracy == certificate.summary.certified_accuracy == 0


def test_the_clip_is_part_of_the_region(difference: Path) -> None:
    # Unclipped, 0.9 of radius would turn (1, 0) round; within [0.8, 1] × [0, 0.2] nothing does. The clip is the data range.
    data = dataset_of([[1.0, 0.0]], [0], 2)
    assert certificate_of(difference, data, "0.49").claims[0].verdict == "certified"
    assert certificate_of(difference, data, "0.51").claims[0].verdict == "falsified"


def test_crown_proves_what_intervals_cannot(write: Callable[..., Path]) -> None:
    # z0 - z1 = relu(x0 + x1) - (x0 + x1) + 1/4 is at least 1/4 everywhere; intervals lose the dependence on x.
    graph = dense_graph(2, ([[1, 1], [1, 1]], [0, 0]), ([[1, 0], [0, 1]], [0.25, 0]))
    path, data = write(graph), dataset_of([[0.5, 0.5]], [0], 2)
    assert certificate_of(path, data, "0.4", methods=("interval",)).claims[0].verdict == "unknown"
    claim = certificate_of(path, data, "0.4").claims[0]
    assert (claim.verdict, claim.method) == ("certified", "crown-ibp")
    assert claim.margin_lower == pytest.approx(0.25, abs=4e-5)


def test_linear_classifiers_agree_with_exact_arithmetic(write: Callable[..., Path], digits: Dataset) -> None:
    train = load(Data(), None, 0).train
    fit = LogisticRegression(max_iter=200).fit(train.inputs().reshape(len(train), -1), train.labels)
    graph = dense_graph(64, (fit.coef_.tolist(), fit.intercept_.tolist()))
    test = dataset_of(digits.inputs(slice(0, 80)).reshape(80, 64), digits.labels[:80].tolist(), 10)
    radius = Fraction(1, 20)
    verdicts = Counter()
    for claim in certificate_of(write(graph), test, "0.05").claims:
        x = [Fraction(float(value)) for value in test.inputs(slice(claim.id, claim.id + 1)).reshape(-1)]
        low, high = [max(v - radius, Fraction(0)) for v in x], [min(v + radius, Fraction(1)) for v in x]
        margins = []
        for other in set(range(10)) - {claim.label}:
            row = [
                Fraction(float(a)) - Fraction(float(b))
                for a, b in zip(graph.params["w0"][claim.label], graph.params["w0"][other], strict=True)
            ]
            shift = Fraction(float(graph.params["b0"][claim.label])) - Fraction(float(graph.params["b0"][other]))
            margins.append(shift + sum(w * (a if w > 0 else b) for w, a, b in zip(row, low, high, strict=True)))
        exact = min(margins)
        verdicts[claim.verdict] += 1
        if claim.verdict == "certified":
            assert 0 < claim.margin_lower <= exact
        assert claim.verdict == ("certified" if exact > 0.001 else "falsified" if exact < -0.001 else claim.verdict)
    assert verdicts["certified"] > 20
    assert verdicts["falsified"] > 5


def test_no_certified_sample_is_broken_by_attack_or_chance(digits_conv: Path, digits: Dataset) -> None:
    certificate = certify(digits_conv, digits, PerturbationSet(epsilon="0.04"), FP32, Verify(), samples=120)
    certified = [claim.id for claim in certificate.claims if claim.verdict == "certified"]
    assert len(certified) > 40
    model = read_model(digits_conv)
    x, y = digits.inputs(np.array(certified)), digits.labels[certified]
    box = inner_ball_float32(torch.from_numpy(x), Fraction(1, 25))
    found = pgd(model.graph, model.graph.tensors(torch.float32), x, box, y, [(7, i) for i in certified], steps=10, restarts=100)
    runtime, rng = Runtime(model.data), np.random.default_rng(0)
    lower, upper = box[0].numpy(), box[1].numpy()
    attempts = [found.inputs.numpy()] + [np.where(rng.random(x.shape) < 0.5, lower, upper) for _ in range(20)]
    attempts += [np.clip(lower + rng.random(x.shape, dtype=np.float32) * (upper - lower), lower, upper) for _ in range(20)]
    lowest = np.array([claim.margin_lower for claim in certificate.claims if claim.verdict == "certified"])
    for points in attempts:
        logits = runtime.logits(points.astype(np.float32)).astype(np.float64)
        assert (predictions(logits.astype(np.float32)) == y).all()
        own = logits[np.arange(len(y)), y]
        logits[np.arange(len(y)), y] = -np.inf
        assert (own - logits.max(axis=1) >= lowest).all()


def test_every_counterexample_is_one(digits_conv: Path, digits: Dataset) -> None:
    certificate = certify(digits_conv, digits, PerturbationSet(epsilon="0.1"), FP32, Verify(attack_restarts=1), samples=60)
    found = certificate.counterexamples
    assert found is not None
    assert len(found) == certificate.summary.falsified > 5
    runtime = Runtime(digits_conv.read_bytes(), "disable")
    for x, point, label, predicted in zip(found.originals, found.inputs, found.labels, found.predictions, strict=True):
        assert predictions(runtime.logits(point[None]))[0] == predicted != label
        for a, b in zip(x.reshape(-1).tolist(), point.reshape(-1).tolist(), strict=True):
            assert abs(Fraction(a) - Fraction(b)) <= Fraction(1, 10)
            assert 0 <= b <= 1


def test_the_summary_is_what_the_claims_say(digits_conv: Path, digits: Dataset) -> None:
    certificate = certify(digits_conv, digits, PerturbationSet(epsilon="0.05"), FP32, Verify(), samples=50)
    summary, claims = certificate.summary, certificate.claims
    assert [claim.id for claim in claims] == list(range(50))
    assert summary.samples == 50 == summary.certified + summary.falsified + summary.unknown
    assert summary.certified_accuracy == sum(c.verdict == "certified" for c in claims) / 50
    assert summary.clean_accuracy == sum(c.predicted == c.label for c in claims) / 50
    assert summary.robust_accuracy == sum(c.predicted == c.label and c.verdict != "falsified" for c in claims) / 50
    assert summary.certified_accuracy <= summary.robust_accuracy <= summary.clean_accuracy
    assert sum(row.certified for row in summary.classes) == summary.certified
    assert sum(row.samples for row in summary.classes) == 50


def test_the_hash_names_what_is_computed(write: Callable[..., Path], difference: Path) -> None:
    data = dataset_of([[0.75, 0.25]], [0], 2)
    before = certificate_of(difference, data, "0.1")
    assert before.claims[0].model.sha256 == content_sha256(difference)
    proto = onnx.load(difference)
    onnx.helper.set_model_props(proto, {"vsparse.certificate_sha256": before.digest()})
    difference.write_bytes(proto.SerializeToString())
    assert certificate_of(difference, data, "0.1").digest() == before.digest()
    changed = write(dense_graph(2, ([[1, 0], [0, np.nextafter(np.float32(1), 2)]], [0, 0])), "model.onnx")
    assert certificate_of(changed, data, "0.1").model.sha256 != before.model.sha256


def test_real_arithmetic_says_so(difference: Path) -> None:
    data = dataset_of([[0.75, 0.25]], [0], 2)
    assert "no device" in certificate_of(difference, data, "0.1", "real").note
    assert certificate_of(difference, data, "0.1").note == ""


@pytest.mark.parametrize("contract", ["fp16", "tf32", "bf16", "real"])
def test_where_the_runtime_is_not_the_device_a_counterexample_must_hold_there_too(write: Callable[..., Path], contract: str) -> None:
    # Both samples are misclassified by ONNX Runtime, the first by less than the contract's rounding error (or by nothing in real terms).
    path = write(dense_graph(2, ([[1, 0], [0, 1]], [0, 0])))
    near = np.nextafter(np.float32(0.5), np.float32(1))
    certificate = certificate_of(path, dataset_of([[0.5, near], [0.25, 0.75]], [0, 0], 2), "0", contract)
    assert [claim.predicted for claim in certificate.claims] == [1, 1]
    assert certificate.claims[0].verdict == ("falsified" if contract == "real" else "unknown")
    assert certificate.claims[1].verdict == "falsified"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(difference: Path, value: float) -> None:
    proto = onnx.load(difference)
    weight = next(t for t in proto.graph.initializer if len(t.dims) == 2)
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0, 0] = value
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    difference.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=r"finite|NaN"):
        certificate_of(difference, dataset_of([[0.75, 0.25]], [0], 2), "0.1")


def test_overflow_is_unknown(write: Callable[..., Path]) -> None:
    # relu(3e38·x0·2) overflows float32, so z0 - z1 is a NaN or an infinity on the device, whatever real arithmetic says.
    graph = dense_graph(2, ([[3e38, 3e38], [3e38, 3e38]], [0, 0]), ([[3e38, 0], [0, -3e38]], [0, 0]))
    certificate = certificate_of(write(graph), dataset_of([[0.9, 0.9]], [0], 2), "0.01")
    assert certificate.claims[0].verdict == "unknown"
    assert certificate.claims[0].predicted == -1
    assert certificate.claims[0].margin_lower is None


def test_what_does_not_fit_is_named(difference: Path, tmp_path: Path) -> None:
    data = dataset_of([[0.75, 0.25]], [0], 2)
    with pytest.raises(InputError, match="is not there"):
        certificate_of(tmp_path / "absent.onnx", data, "0.1")
    with pytest.raises(InputError, match="samples have shape"):
        certificate_of(difference, dataset_of([[0.1, 0.2, 0.3]], [0], 2), "0.1")
    with pytest.raises(InputError, match="labels up to 2"):
        certificate_of(difference, dataset_of([[0.75, 0.25]], [2], 3), "0.1")
    with pytest.raises(InputError, match="no samples"):
        certificate_of(difference, dataset_of(np.zeros((0, 2)), [], 2), "0.1")
    with pytest.raises(InputError, match="data range"):
        certify(difference, data, PerturbationSet(epsilon="0.1", clip=(0.0, 0.5)), FP32, Verify())
    (tmp_path / "noise.onnx").write_bytes(b"\x08\x07noise")
    with pytest.raises(InputError):
        certificate_of(tmp_path / "noise.onnx", data, "0.1")


def test_an_operator_without_bounds_is_named(difference: Path) -> None:
    proto = onnx.load(difference)
    proto.graph.node[-1].output[0] = "raw"
    proto.graph.node.append(onnx.helper.make_node("Softplus", ["raw"], [proto.graph.output[0].name], name="squash"))
    difference.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=r"squash.*Softplus"):
        certificate_of(difference, dataset_of([[0.75, 0.25]], [0], 2), "0.1")
