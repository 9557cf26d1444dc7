"""The form bf16: weights rounded once, stored in bfloat16, computed with in float32, certified under the contract of the float32 file."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from precision_nets import random_net

from vsparse.artifact.forms import BY_NAME, SPARSE
from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.errors import GateError, InputError
from vsparse.graph import Graph, from_onnx, run
from vsparse.perturbation import PerturbationSet
from vsparse.pipeline.build import resolve
from vsparse.pipeline.wanted import wanted_forms
from vsparse.recipe import Verify
from vsparse.stages.export import content_sha256, write_onnx
from vsparse.stages.export.exporters import EXPORTERS, ExportJob
from vsparse.stages.verify.audit import audit
from vsparse.stages.verify.certify import certify
from vsparse.stages.verify.deployed import read_model

FORM = BY_NAME["bf16"]


def exported(graph: Graph, folder: Path) -> Path:
    """Returns the file that the exporter writes of a network whose float32 file lies in the folder."""
    write_onnx(graph, folder / Path(SPARSE.model).name, 17, {})
    training = Dataset(np.zeros((1, 1, 6, 6), np.float32), 1.0, np.zeros(1, np.int64), ("a", "b", "c"), None)
    EXPORTERS["bf16"](ExportJob(folder, {"sparse": graph}, training, 17, "r", {FORM: "fp32"}), FORM)
    return folder / Path(FORM.model).name


def test_it_is_certified_under_the_contract_of_the_float32_file():
    recipe, target = resolve("digits", "local", ['export.precisions=["bf16"]'])
    assert {form.name: name for form, name in wanted_forms(recipe, target).items()}["bf16"] == "fp32" == target.default_contract
    with pytest.raises(InputError, match=r"offers no bf16"):
        resolve("digits", "raspberry-pi-5", ['export.precisions=["bf16"]'])


def test_weights_are_the_nearest_bfloat16_numbers_and_take_half_the_bytes(tmp_path):
    graph = random_net(np.random.default_rng(3))
    path = exported(graph, tmp_path)
    tensors = [one for one in onnx.load(path).graph.initializer if one.data_type != TensorProto.INT64]
    assert {one.data_type for one in tensors} == {TensorProto.BFLOAT16}
    assert sum(len(one.raw_data) for one in tensors) == 2 * sum(value.size for value in graph.params.values())
    read = from_onnx(path)
    assert read.storage == "fp32"
    for name, value in graph.params.items():
        assert np.array_equal(read.params[name], torch.from_numpy(value).bfloat16().float().numpy())
        assert not read.params[name][value == 0].any()
        for before, after in zip(value.reshape(-1).tolist(), read.params[name].reshape(-1).tolist(), strict=True):
            assert abs(Fraction(after) - Fraction(before)) <= abs(Fraction(before)) / 2**8
    report = json.loads((tmp_path / Path(FORM.record("runtime_graph")).name).read_text())
    assert report["content_sha256"] == content_sha256(path)
    assert json.loads((tmp_path / Path(FORM.record("reading")).name).read_text())["values_compared"] > 0


def test_large_weights_are_refused_by_name_and_small_ones_become_zero(tmp_path):
    graph = random_net(np.random.default_rng(0))
    large = np.where(graph.params["w3"] == graph.params["w3"].max(), np.float32(3.4e38), graph.params["w3"])
    with pytest.raises(InputError, match=r'the parameter "w3" is beyond 3\.39e\+38, the largest bfloat16 number; leave bf16 out'):
        exported(graph.with_params({**graph.params, "w3": large}), tmp_path)
    assert not (tmp_path / Path(FORM.model).name).exists()
    small = {**graph.params, "b1": np.array([2.0**-134, -(2.0**-140), 2.0**-133, 1.5 * 2.0**-134], np.float32)}
    found = from_onnx(exported(graph.with_params(small), tmp_path)).params["b1"]
    assert found.tolist() == [0.0, 0.0, 2.0**-133, 2.0**-133]


def test_claims_are_about_these_very_bits(tmp_path):
    rng = np.random.default_rng(2)
    path = exported(random_net(rng), tmp_path)
    model = read_model(path)
    pixels = rng.random((8, 1, 6, 6), dtype=np.float32)
    labels = run(model.graph, model.graph.tensors(), torch.from_numpy(pixels)).argmax(dim=1).numpy().astype(np.int64)
    data = Dataset(pixels, 1.0, labels, ("a", "b", "c"), None)
    certificate = certify(path, data, PerturbationSet(epsilon="0.001"), contract("fp32"), Verify(attack_restarts=1))
    assert certificate.summary.certified > 0
    found = audit(path, data, certificate)
    assert found.passed, found.reason
    assert found.values_checked > 0
    changed = onnx.load(path)
    tensor = next(one for one in changed.graph.initializer if one.data_type == TensorProto.BFLOAT16)
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    assert content_sha256(changed) != certificate.model.sha256 == content_sha256(path)
    path.write_bytes(changed.SerializeToString())
    with pytest.raises(GateError, match="not the one that was certified"):
        audit(path, data, certificate)
