"""Further precisions of a build: which are offered, what is written beside the float32 model, and what is refused before training."""

from __future__ import annotations

import json

import numpy as np
import pytest
from precision_nets import random_net

from vsparse.artifact import PRECISIONS, precision_certificate, precision_model
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph import from_onnx
from vsparse.graph.quantised import is_quantised
from vsparse.pipeline.build import resolve
from vsparse.recipe import load_recipe
from vsparse.stages.export import content_sha256, write_onnx
from vsparse.stages.export.precisions import write_precision
from vsparse.target import load_target


def test_each_precision_has_a_contract_of_its_name_and_a_place():
    assert set(PRECISIONS) <= set(CONTRACTS)
    assert [precision_model(name) for name in PRECISIONS] == ["model/model.fp16.onnx", "model/model.int8.onnx"]
    assert precision_certificate("int8") == "certificate/int8/certificate.json"
    local = load_target("local")
    assert {name: local.precisions[name].contract for name in PRECISIONS} == {"fp16": "fp16", "int8": "int8"}
    assert local.default_contract == "fp32"


def test_a_recipe_names_them_and_a_target_must_offer_them():
    assert resolve("digits", "local")[0].export.precisions == ()
    recipe, _ = resolve("digits", "local", ['export.precisions=["int8"]'])
    assert recipe.export.precisions == ("int8",)
    assert recipe.verify.contract == "fp32"
    with pytest.raises(InputError, match=r"offers no fp16 \(it offers fp32, int8\)"):
        resolve("digits", "raspberry-pi-5", ['export.precisions=["fp16"]'])
    with pytest.raises(InputError, match="twice"):
        load_recipe("digits", ['export.precisions=["int8", "int8"]'])
    with pytest.raises(InputError, match=r"export\.precisions"):
        load_recipe("digits", ['export.precisions=["int4"]'])


@pytest.mark.parametrize("name", PRECISIONS)
def test_their_contracts_are_not_those_of_the_float32_model(name):
    with pytest.raises(InputError, match="a model file of its own"):
        resolve("digits", "local", contract=name)


def test_the_files_are_written_beside_the_model_and_are_the_same_each_time(tmp_path):
    rng = np.random.default_rng(0)
    training = Dataset(rng.random((700, 1, 6, 6), dtype=np.float32), 1.0, np.zeros(700, np.int64), ("a", "b", "c"), None)
    path = tmp_path / "model.fp32.onnx"
    write_onnx(random_net(rng), path, 17, {})
    hashes = []
    for _ in range(2):
        files = {name: write_precision(path, name, 17, {"recipe": "r"}, training) for name in PRECISIONS}
        hashes.append({name: content_sha256(file) for name, file in files.items()})
    assert hashes[0] == hashes[1]
    assert from_onnx(files["fp16"]).storage == "fp16"
    assert is_quantised(from_onnx(files["int8"]))
    for name, file in files.items():
        report = json.loads((tmp_path / f"runtime_graph.{name}.json").read_text())
        assert report["content_sha256"] == content_sha256(file)
    with pytest.raises(InputError, match="no precision"):
        write_precision(path, "fp8", 17, {}, training)
