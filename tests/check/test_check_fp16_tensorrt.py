"""The contract fp16-tensorrt in the checker: two derivations agree, claims are confirmed for their target, forgeries are not."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from check_artifacts import build, graph_of, samples, sign
from test_check_bounds import by_the_toolchain, derive

from vsparse.artifact.certificate import read_certificate
from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.graph import from_onnx, to_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.pipeline.deploy import device_probes
from vsparse.recipe import Verify
from vsparse.stages.export import CertifiedModel, as_convolutions, write_device_folder, write_onnx
from vsparse.stages.export.half import half
from vsparse.stages.verify import certify, write_certificate
from vsparse.target import Target, load_target
from vsparse_check import check
from vsparse_check.artifact import content_sha256
from vsparse_check.certificate import digest
from vsparse_check.contracts import CONTRACTS
from vsparse_check.errors import ErrorTerms
from vsparse_check.model import Model

NAME = "fp16-tensorrt"
MODEL, CERTIFICATE = "model/model.fp16.onnx", "certificate/fp16/certificate.json"


def as_read(kind: str, seed: int):
    """Returns a network as a file for TensorRT types it, read back, inputs and its predictions."""
    graph = from_onnx(to_onnx(half(as_convolutions(graph_of(kind, seed)), wide_sums=True)).SerializeToString())
    return graph, *samples(graph, 12, seed)


@pytest.mark.parametrize("kind", ["plain", "residual", "clip", "pad"])
def test_the_checker_loses_no_more_than_the_toolchain(kind):
    graph, x, labels = as_read(kind, 1)
    for method, values in by_the_toolchain(graph, x, labels, NAME, PerturbationSet(epsilon=Fraction("1/200"))).items():
        found = derive(graph, x, labels, "1/200", method, rules=NAME)
        assert np.isfinite(found).all()
        # Fused sums and the last layer cost the toolchain a little more (test_check_bounds.py); the checker may not lose more.
        assert (found >= values.numpy() - 1e-6).all()
        assert np.allclose(found, values.numpy(), atol=5e-3)


def made(folder: Path, rules: str, target: Target) -> Path:
    """Returns an artifact whose fp16 form is certified under a contract, for a target."""
    folder = build(folder, "residual", epsilon="0.01")
    graph, pixels, labels = as_read("residual", 0)
    write_onnx(graph, folder / MODEL, 17, {})
    data, wanted = Dataset(pixels, 1.0, labels, tuple("abcd"), None), PerturbationSet(epsilon="0.01")
    settings = Verify(contract=rules, methods=("interval", "crown"), attack_steps=2, attack_restarts=1)
    found = certify(folder / MODEL, data, wanted, contract(rules), settings, file=MODEL, data_name="random")
    write_certificate(folder / CERTIFICATE, found)
    ids = np.array([claim.id for claim in found.claims if claim.verdict != "falsified"])
    np.savez(folder / "certificate/fp16/inputs.npz", ids=ids, inputs=pixels[ids])
    (folder / "target.toml").write_text(target.to_toml())
    write_device_folder(
        folder / "device",
        {"packed": folder / "model/model.fp32.onnx", "fp16": folder / MODEL},
        target,
        read_certificate(folder / "certificate/certificate.json").digest(),
        probes={"fp16": device_probes(folder / MODEL, found, folder / "certificate/fp16/inputs.npz")},
        certified={"fp16": CertifiedModel("fp16", rules, found.digest())},
    )
    return sign(folder)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("typed"), NAME, load_target("jetson-orin-nano"))


def test_claims_are_confirmed(artifact):
    found = check(artifact)
    assert (found.status, found.problem) == (0, "")
    assert found.confirmed == found.certified > 5
    entry = json.loads((artifact / "device/manifest.json").read_text())["models"][1]
    assert entry["unrounded"] == ["input", "logits"]


def test_a_device_folder_that_lets_a_kernel_round_the_input_is_refuted(artifact):
    path = artifact / "device/manifest.json"
    before = path.read_bytes()
    content = json.loads(before)
    content["models"][1]["unrounded"] = ["logits"]
    try:
        path.write_text(json.dumps(content))
        found = check(sign(artifact))
    finally:
        path.write_bytes(before)
        sign(artifact)
    assert (found.status, found.verdict) == (1, "refuted")
    assert "other tensors of model/model.fp16.onnx that they stay in float32" in found.problem


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"probes": [], "unrounded": []}, "other tensors of model/model.fp16.onnx that they stay in float32"),
        ({"contract": "", "probes": []}, "lets model.fp16.onnx be judged by another contract"),
    ],
)
def test_a_device_folder_without_probes_still_says_what_no_kernel_may_round(artifact, change, words):
    path = artifact / "device/manifest.json"
    before, probes = path.read_bytes(), {one: one.read_bytes() for one in (artifact / "device").glob("*.bin")}
    content = json.loads(before)
    content["models"][1] |= change
    content["contract"] = {"name": "fp16-accumulate"}
    content["models"][0]["contract"] = "fp32"
    try:
        path.write_text(json.dumps(content))
        for one in probes:
            one.unlink()
        found = check(sign(artifact))
    finally:
        path.write_bytes(before)
        for one, data in probes.items():
            one.write_bytes(data)
        sign(artifact)
    assert (found.status, found.verdict) == (1, "refuted")
    assert words in found.problem


def signed_again(artifact: Path, rules: str) -> Path:
    """Lets a certificate, and all that names it, be under another contract: a theorem of its own, where that errs no more."""
    path, model = artifact / CERTIFICATE, artifact / MODEL
    content, file = json.loads(path.read_text()), onnx.load(model)
    content["contract"] = dict(CONTRACTS[rules])
    for claim in content["claims"]:
        claim["contract"] = rules
    content["certificate_sha256"] = digest(content)
    path.write_text(json.dumps(content))
    for place in (model, artifact / "device/model.fp16.onnx"):
        onnx.helper.set_model_props(file, {"vsparse.certificate": content["certificate_sha256"]})
        place.write_bytes(file.SerializeToString(deterministic=True))
    manifest = artifact / "device/manifest.json"
    folder = json.loads(manifest.read_text())
    entry = folder["models"][1]
    entry |= {"contract": rules, "certificate_sha256": content["certificate_sha256"], "content_sha256": content_sha256(file)}
    entry["sha256"] = hashlib.sha256((artifact / "device/model.fp16.onnx").read_bytes()).hexdigest()
    manifest.write_text(json.dumps(folder))
    return sign(artifact)


def test_a_certificate_that_is_signed_again_under_a_contract_that_the_target_does_not_keep_is_refuted(tmp_path):
    artifact = made(tmp_path, "fp16-accumulate", load_target("jetson-xavier-nx"))
    assert check(artifact).status == 0
    found = check(signed_again(artifact, "fp16"))
    assert found.confirmed == found.certified > 5  # each claim is true, of other devices
    assert (found.status, found.verdict) == (1, "refuted")
    assert "certificate/fp16 is under the contract fp16, and target.toml promises the contract fp16-accumulate" in found.problem


def test_a_form_that_the_target_does_not_offer_is_refuted(tmp_path):
    target = load_target("jetson-orin-nano")
    less = target.model_copy(update={"precisions": {"fp32": target.precisions["fp32"]}})
    found = check(made(tmp_path, NAME, less))
    assert (found.status, found.verdict) == (1, "refuted")
    assert "promises no such form" in found.problem


def test_what_ends_in_float32_is_charged_less_by_both(artifact):
    model = Model(onnx.load(artifact / MODEL))
    assert model.unrounded == {model.input, model.output}
    assert ErrorTerms(model, CONTRACTS[NAME]).unrounded == model.unrounded
    assert ErrorTerms(model, CONTRACTS["fp16"]).unrounded == set()
