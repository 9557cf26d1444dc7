"""The contract int8-tensorrt in the checker: its derivations agree with the toolchain's, its claims are confirmed, others are refused."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from check_artifacts import build, graph_of, samples, sign
from onnx import numpy_helper
from test_check_bounds import by_the_toolchain, derive

from vsparse.artifact.certificate import read_certificate
from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.graph import to_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.pipeline.deploy import device_probes
from vsparse.recipe import Verify
from vsparse.stages.export import CertifiedModel, write_device_folder, write_onnx
from vsparse.stages.export.quantise import layers_in_float, quantise
from vsparse.stages.verify import certify, write_certificate
from vsparse.target import load_target
from vsparse_check import check
from vsparse_check.artifact import content_sha256
from vsparse_check.certificate import digest
from vsparse_check.contracts import CONTRACTS
from vsparse_check.errors import ErrorTerms
from vsparse_check.model import Model
from vsparse_check.refusal import NotConfirmed

KINDS = ("plain", "residual")
NAME = "int8-tensorrt"
MODEL, CERTIFICATE = "model/model.int8.onnx", "certificate/int8/certificate.json"


def for_tensorrt(kind, seed):
    """Returns a graph in TensorRT's form, inputs and its own predictions."""
    graph = quantise(graph_of(kind, seed), samples(graph_of(kind, seed), 64, seed + 1)[0], NAME)
    return graph, *samples(graph, 12, seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rules", [NAME, "real"])
def test_two_derivations_of_a_margin_agree(kind, rules):
    graph, x, labels = for_tensorrt(kind, 1)
    for method, values in by_the_toolchain(graph, x, labels, rules, PerturbationSet(epsilon=Fraction("1/200"))).items():
        found = derive(graph, x, labels, "1/200", method, rules=rules)
        assert np.isfinite(found).all()
        assert np.allclose(found, values.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("floats", [("first",), ("last",), ("first", "last")])
def test_two_derivations_agree_where_layers_stay_in_float(floats):
    plain = graph_of("residual", 1)
    graph = quantise(plain, samples(plain, 64, 2)[0], NAME, floats=layers_in_float(plain, floats))
    x, labels = samples(graph, 12, 1)
    for method, values in by_the_toolchain(graph, x, labels, NAME, PerturbationSet(epsilon=Fraction("1/200"))).items():
        found = derive(graph, x, labels, "1/200", method, rules=NAME)
        assert np.isfinite(found).all()
        assert np.allclose(found, values.numpy(), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    folder = build(tmp_path_factory.mktemp("tensorrt"), "residual", epsilon="0.01")
    graph, _, _ = for_tensorrt("residual", 0)
    write_onnx(graph, folder / MODEL, 17, {})
    pixels, labels = samples(graph, 16, 0)
    settings = Verify(contract=NAME, methods=("interval", "crown"), attack_steps=2, attack_restarts=1)
    data = Dataset(pixels, 1.0, labels, tuple("abcd"), None)
    made = certify(folder / MODEL, data, PerturbationSet(epsilon="0.01"), contract(NAME), settings, file=MODEL, data_name="random")
    assert made.replay["graph_optimization_level"] == "disable"
    write_certificate(folder / CERTIFICATE, made)
    ids = np.array([claim.id for claim in made.claims if claim.verdict != "falsified"])
    np.savez(folder / "certificate/int8/inputs.npz", ids=ids, inputs=pixels[ids])
    main = read_certificate(folder / "certificate/certificate.json").digest()
    write_device_folder(
        folder / "device",
        {"packed": folder / "model/model.fp32.onnx", "int8": folder / MODEL},
        load_target("jetson-orin-nano"),
        main,
        probes={"int8": device_probes(folder / MODEL, made, folder / "certificate/int8/inputs.npz")},
        certified={"int8": CertifiedModel("int8", NAME, made.digest())},
    )
    return sign(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entry: entry.update(contract="int8"), "judged by another contract"),
        (lambda entry: entry.update(certificate_sha256="0" * 64), "another contract or certificate"),
        (lambda entry: entry["probes"][0].update(lower=[-1e9] * 4, upper=[1e9] * 4), "that is none, or says nothing"),
        (lambda entry: entry["probes"][0].update(lower=[9.0] * 4, upper=[10.0] * 4), "that is none, or says nothing"),
    ],
)
def test_what_a_device_folder_says_of_a_form_is_checked(artifact, change, words):
    path = artifact / "device/manifest.json"
    before = path.read_bytes()
    assert check(artifact).status == 0
    content = json.loads(before)
    entry = next(one for one in content["models"] if one["role"] == "int8")
    assert len(entry["probes"]) > 2
    change(entry)
    try:
        path.write_text(json.dumps(content))
        found = check(sign(artifact))
    finally:
        path.write_bytes(before)
        sign(artifact)
    assert found.status == 1
    assert words in found.problem


def forged(artifact, change):
    """Changes certificate and model, makes all hashes fit, and returns what the checker says; puts everything back."""
    before = {path: path.read_bytes() for path in (artifact / CERTIFICATE, artifact / MODEL)}
    content, model = json.loads(before[artifact / CERTIFICATE]), onnx.load_from_string(before[artifact / MODEL])
    try:
        change(content, model)
        (artifact / MODEL).write_bytes(model.SerializeToString(deterministic=True))
        content["model"]["sha256"] = content_sha256(model)
        for claim in content["claims"]:
            claim["model"], claim["contract"] = content["model"], content["contract"]["name"]
        content["certificate_sha256"] = digest(content)
        (artifact / CERTIFICATE).write_text(json.dumps(content))
        return check(sign(artifact))
    finally:
        for path, data in before.items():
            path.write_bytes(data)
        sign(artifact)


def test_claims_are_confirmed_and_those_under_int8_refused(artifact):
    found = check(artifact)
    assert (found.status, found.problem) == (0, "")
    assert found.confirmed == found.certified > 5
    wrong = forged(artifact, lambda content, model: content.update(contract=dict(CONTRACTS["int8"])))
    assert wrong.status == 1
    assert wrong.confirmed < found.confirmed


def biases(model):
    """Returns the initializer of the first convolution's bias."""
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    return next(tensor for tensor in model.graph.initializer if tensor.name == conv.input[2])


def edited(tensor, change):
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor).copy())), tensor.name))


def zero_points(model, kind):
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".zero") and not tensor.dims:
            edited(tensor, lambda v: v.astype(kind))


REFUSED = {
    "a tiny bias": (lambda m: edited(biases(m), lambda v: np.full_like(v, 2.0**-41)), "float32 bias"),
    "a huge bias": (lambda m: edited(biases(m), lambda v: np.full_like(v, 2.0**41)), "float32 bias"),
    "a bias that is no number": (lambda m: edited(biases(m), lambda v: np.full_like(v, np.nan)), "bias|finite"),
    "unsigned steps": (lambda m: zero_points(m, np.uint8), "zero point 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_tensorrt_reads_otherwise_is_refused(name):
    change, reason = REFUSED[name]
    model = to_onnx(for_tensorrt("residual", 0)[0])
    ErrorTerms(Model(model), CONTRACTS[NAME])
    change(model)
    with pytest.raises(NotConfirmed, match=reason), np.errstate(all="ignore"):
        ErrorTerms(Model(model), CONTRACTS[NAME])


def test_each_contract_refuses_the_others_files():
    ours, theirs = graph_of("residual", 0), samples(graph_of("residual", 0), 64, 1)[0]
    for name, other in ((NAME, "int8"), ("int8", NAME)):
        with pytest.raises(NotConfirmed, match=f"which the contract {other} is not about"):
            ErrorTerms(Model(to_onnx(quantise(ours, theirs, name))), CONTRACTS[other])
