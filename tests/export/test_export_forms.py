"""Deployed forms: which are offered, what is written beside the float32 model, and what is refused before training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from precision_nets import random_net

from vsparse.artifact.forms import BY_NAME, FORMS, PRECISIONS, SPARSE
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph import from_onnx
from vsparse.graph.quantised import check_integer_execution, is_quantised
from vsparse.pipeline.build import resolve
from vsparse.pipeline.wanted import wanted_forms
from vsparse.recipe import load_recipe
from vsparse.stages.export import content_sha256, read_metadata, write_onnx
from vsparse.stages.export.exporters import EXPORTERS, ExportJob
from vsparse.target import load_target
from vsparse_check import gate_check, layout


def test_each_form_has_files_of_its_own_an_exporter_and_a_contract():
    assert list(EXPORTERS) == [form.name for form in FORMS] == list(BY_NAME)
    for field in ("name", "file", "folder"):
        assert len({getattr(form, field) for form in FORMS}) == len(FORMS)
    timed = [(form.latency, form.latency_key) for form in FORMS if form.latency]
    assert len(set(timed)) == len(timed)
    for name, form in ((form.name, form) for form in PRECISIONS):
        assert (form.model, form.certificate) == (f"model/model.{name}.onnx", f"certificate/{name}/certificate.json")
        assert form.record("reading") == f"model/reading.{name}.json"
    for form in FORMS:  # a form that follows another is certified in that one's stage, and its folder lies in that one's
        assert not form.follows or form.folder.startswith(BY_NAME[form.follows].folder + "/")
    local = load_target("local")
    assert {local.precisions[form.name].contract for form in PRECISIONS} <= set(CONTRACTS)
    assert local.default_contract == "fp32"


def test_the_checker_knows_every_form_and_where_its_certificate_lies():
    assert {form.folder: form.model for form in FORMS} == layout.CERTIFICATES
    needed = {form.file: form.folder for form in FORMS if form is not SPARSE}
    assert needed.items() <= layout.FORMS.items()
    gates = {form.gate for form in FORMS if form.gate}
    assert gates <= {key for key, _ in gate_check.ASKED.values()}


def test_forms_are_wanted_by_recipe_and_target_each_with_its_contract():
    wanted = wanted_forms(*resolve("digits", "local"))
    assert {form.name: contract for form, contract in wanted.items()} == {"sparse": "fp32", "sequential": "sequential", "dense": "fp32"}
    recipe, target = resolve("digits", "local", ['export.precisions=["int8"]', "train.baseline=false", "gates={}"], contract="real")
    assert wanted_forms(recipe, target)[BY_NAME["int8-c"]] == "int8"
    assert BY_NAME["int8-c"] not in wanted_forms(*resolve("digits", "jetson-orin-nano", ['export.precisions=["int8"]']))
    assert BY_NAME["int8-c"] in wanted_forms(*resolve("digits", "cortex-m55", ['export.precisions=["int8"]']))
    other = wanted_forms(recipe, target.model_copy(update={"c_source": False}))
    assert {form.name: contract for form, contract in other.items()} == {"sparse": "real", "int8": "int8"}


def test_a_recipe_names_them_and_a_target_must_offer_them():
    assert resolve("digits", "local")[0].export.precisions == ()
    recipe, _ = resolve("digits", "local", ['export.precisions=["int8"]'])
    assert recipe.export.precisions == ("int8",)
    assert recipe.verify.contract == "fp32"
    with pytest.raises(InputError, match=r"offers no bf16 \(it offers fp32, fp16, int8\)"):
        resolve("digits", "raspberry-pi-5", ['export.precisions=["bf16"]'])
    resolve("digits", "raspberry-pi-5", ['export.precisions=["fp16", "int8"]'])
    with pytest.raises(InputError, match="twice"):
        load_recipe("digits", ['export.precisions=["int8", "int8"]'])
    with pytest.raises(InputError, match=r"export\.precisions"):
        load_recipe("digits", ['export.precisions=["int4"]'])


@pytest.mark.parametrize("name", [form.name for form in PRECISIONS])
def test_contracts_of_their_own_are_not_those_of_the_float32_model(name):
    chosen = load_target("local").precisions[name].contract
    if chosen == load_target("local").default_contract:
        assert resolve("digits", "local", contract=chosen)[0].verify.contract == chosen
        return
    with pytest.raises(InputError, match="a model file of its own"):
        resolve("digits", "local", contract=chosen)


@pytest.mark.parametrize("integers", ["int8", "int8-tensorrt"])
def test_the_files_are_written_beside_the_model_and_are_the_same_each_time(integers, tmp_path):
    rng = np.random.default_rng(0)
    training = Dataset(rng.random((700, 1, 6, 6), dtype=np.float32), 1.0, np.zeros(700, np.int64), ("a", "b", "c"), None)
    path = tmp_path / Path(SPARSE.model).name
    graph = random_net(rng)
    write_onnx(graph, path, 17, {})
    contracts = {form: integers if form.name == "int8" else "c" for form in PRECISIONS}
    job = ExportJob(tmp_path, {"sparse": graph}, training, 17, "r", contracts)
    hashes = []
    for _ in range(2):
        for form in PRECISIONS:
            EXPORTERS[form.name](job, form)
        files = {form.name: tmp_path / f"model.{form.name}.onnx" for form in PRECISIONS}
        hashes.append({name: content_sha256(file) for name, file in files.items()})
    assert hashes[0] == hashes[1]
    assert from_onnx(files["fp16"]).storage == "fp16"
    assert is_quantised(from_onnx(files["int8"]))
    for name, file in files.items():
        report = json.loads((tmp_path / f"runtime_graph.{name}.json").read_text())
        assert report["content_sha256"] == content_sha256(file)
        assert read_metadata(file) == {"recipe": "r", "contract": integers if name == "int8" else "c"}
    check_integer_execution(from_onnx(files["int8"]), integers)
