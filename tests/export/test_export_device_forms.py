"""Every form of a device folder on a pretended Jetson: built as its contract wants, read back layer by layer, and audited."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_folders import QUICK, sha256
from fake_device import FAULTS, FP32_LAYER, FakeJetson, changed, layer_in
from test_export_runtime_graph import conv_graph

from vsparse.stages.export import CertifiedModel, Probe, write_device_folder, write_onnx
from vsparse.stages.export.half import half
from vsparse.stages.export.quantise import quantise
from vsparse.target import load_target


@pytest.mark.parametrize(
    ("version", "build", "never", "timing"),
    [
        (
            "8502",
            {"--buildOnly", "--noTF32", "--tacticSources=-CUDNN"},
            {"--stronglyTyped"},
            {"--useCudaGraph", "--noDataTransfers", "--useSpinWait"},
        ),
        (
            "100300",
            {"--stronglyTyped", "--noTF32", "--skipInference"},
            {"--fp16"},
            {"--useCudaGraph", "--noDataTransfers", "--useSpinWait"},
        ),
        (
            "101602",
            {"--stronglyTyped", "--noTF32", "--skipInference"},
            {"--fp16"},
            {"--useCudaGraph", "--noDataTransfers", "--useSpinWait"},
        ),
        ("110400", {"--stronglyTyped", "--noTF32", "--skipInference"}, {"--fp16"}, set()),
    ],
)
def test_options_follow_the_version(
    folder: Path, jetson: FakeJetson, version: str, build: set[str], never: set[str], timing: set[str]
) -> None:
    jetson.setup["version"] = version
    assert jetson.run(folder / "run_on_device.py").returncode == 0
    calls = jetson.calls()
    assert build <= set(calls[1])
    assert not never & set(calls[1])
    assert {"--profilingVerbosity=detailed", "--optShapes=input:1x1x8x8"} <= set(calls[1])
    assert not [option for call in calls for option in call if "sparsity" in option]
    timed = next(set(call) for call in calls if any(option.startswith("--exportTimes") for option in call))
    assert timing == {"--useCudaGraph", "--noDataTransfers", "--useSpinWait"} & timed
    assert ("--percentile=50,90,95,99" in timed) == (version != "8502")
    jetson.setup["layers"] = FAULTS["winograd"]
    assert jetson.run(folder / "run_on_device.py").returncode == 1


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Path]:
    folder, graph = tmp_path_factory.mktemp("forms"), conv_graph()
    paths = {"packed": model, "fp16": folder / "model.fp16.onnx", "int8": folder / "model.int8.onnx"}
    write_onnx(half(graph), paths["fp16"], 17, {})
    samples = np.random.default_rng(0).random((16, 1, 8, 8), dtype=np.float32)
    write_onnx(quantise(graph, samples, "int8-tensorrt"), paths["int8"], 17, {})
    return paths


CERTIFIED = {"fp16": CertifiedModel("fp16", "fp16-accumulate", "a" * 64), "int8": CertifiedModel("int8", "int8-tensorrt", "b" * 64)}


def test_every_form_is_built_read_back_probed_and_timed(tmp_path: Path, forms: dict[str, Path], jetson: FakeJetson) -> None:
    folder, orin = tmp_path / "device", load_target("jetson-orin-nano")
    probes = {name: [Probe(np.zeros((1, 8, 8), np.float32), np.full(10, -1.0), np.full(10, 1.0))] for name in forms}
    write_device_folder(folder, forms, orin, "c" * 64, timing=QUICK, probes=probes, certified=CERTIFIED)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [(one["role"], one["precision"], one.get("contract")) for one in manifest["models"]] == [
        ("packed", "fp32", None),
        ("fp16", "fp16", "fp16-accumulate"),
        ("int8", "int8", "int8-tensorrt"),
    ]
    jetson.setup["layers_of"] = {
        "model.fp16.onnx": [layer_in("FP16", "f16f16_f16f16_f16")],
        "model.int8.onnx": [layer_in("Int8", "i8i8_i8i32_f32")],
    }
    done = jetson.run(folder / "run_on_device.py")
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads((folder / "results.json").read_text())["models"]
    assert [one["role"] for one in measured] == list(forms)
    assert [gate["passed"] for one in measured for gate in one["gates"]] == [True] * 6
    assert measured[2]["certificate_sha256"] == "b" * 64
    cache = folder / "timing-10.3.0.cache"
    assert measured[0]["timing_cache"] is not None
    assert measured[2]["timing_cache"] == {"file": cache.name, "sha256": sha256(cache)}
    builds = [call for call in jetson.calls() if any(option.startswith("--onnx=") for option in call)]
    assert all(f"--timingCacheFile={cache}" in call and "--stronglyTyped" in call for call in builds)
    assert not {"--fp16", "--int8"} & {option for call in builds for option in call}
    jetson.setup["logits"] = [2.0] * 10
    assert jetson.run(folder / "run_on_device.py").returncode == 1


def named(layer: dict[str, Any], source: str, made: str) -> dict[str, Any]:
    """Returns a layer that reads and makes tensors of these names."""
    sides = {side: [{**one, "Name": name} for one in layer[side]] for side, name in (("Inputs", source), ("Outputs", made))}
    return {**layer, **sides}


HALF, FLOAT = layer_in("FP16", "f16f16_f16f32_f32"), layer_in("FP32", "f32f32_f32f32_f32")
REFORMAT = {"Name": "r", "LayerType": "Reformat", "Inputs": FLOAT["Inputs"], "Outputs": FLOAT["Outputs"]}
TO_HALF = {**REFORMAT, "Outputs": HALF["Outputs"]}


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([named(REFORMAT, "input", "moved"), named(FLOAT, "moved", "c"), named(HALF, "c", "d"), named(FLOAT, "d", "logits")], ""),
        ([named(TO_HALF, "input", "moved"), named(HALF, "moved", "c"), named(FLOAT, "d", "logits")], '"moved" in another format than fp32'),
        ([named({**FLOAT, "TacticName": HALF["TacticName"]}, "input", "c"), named(FLOAT, "d", "logits")], 'multiplies "input" in another'),
        ([named(FLOAT, "input", "c"), named(HALF, "c", "logits")], '"logits" in another format than fp32'),
        ([named(FLOAT, "input", "c"), named({**REFORMAT, "Inputs": HALF["Inputs"]}, "c", "logits")], '"c" in another format than fp32'),
        ([named(FLOAT, "x", "c"), named(FLOAT, "c", "logits")], 'no layer names "input"'),
        ([named(layer_in("FP16", "f16f16_f16f16_f16"), "input", "logits")], "adds in f16"),
    ],
)
def test_ends_that_the_file_keeps_in_float32_stay_so(tmp_path: Path, jetson: FakeJetson, layers: list[dict[str, Any]], words: str) -> None:
    path, folder = tmp_path / "model.fp16.onnx", tmp_path / "device"
    graph = conv_graph()
    first, *others = graph.nodes[2:]  # without the normalisation, which reads the input in float16
    params = {name: value for name, value in graph.params.items() if name not in ("mean", "std")}
    bare = replace(graph, nodes=(replace(first, inputs=(graph.input,)), *others), params=params)
    write_onnx(half(bare, wide_sums=True), path, 17, {})
    certified = {"fp16": CertifiedModel("fp16", "fp16-tensorrt", "a" * 64)}
    made = write_device_folder(folder, {"fp16": path}, load_target("jetson-orin-nano"), "c" * 64, timing=QUICK, certified=certified)
    assert made.models[0].unrounded == ("input", "logits")
    jetson.setup["layers"] = layers
    done = jetson.run(folder / "run_on_device.py")
    assert done.returncode == (1 if words else 0), done.stdout
    assert words in done.stdout


@pytest.mark.parametrize(
    ("file", "layer", "words"),
    [
        ("model.fp16.onnx", layer_in("FP32", "f32f32_f32f32_f32"), "multiplies in f32"),
        ("model.fp16.onnx", layer_in("FP16", "0x9f5c1e"), "does not say how"),
        ("model.int8.onnx", layer_in("FP16", "f16f16_f16f16_f16"), "tensor in fp16"),
        ("model.int8.onnx", changed(LayerType="kgen", TacticName="__myl_MulSum_0xfa6c"), "Myelin's generator"),
    ],
)
def test_a_form_that_runs_otherwise_fails_the_run(
    tmp_path: Path, forms: dict[str, Path], jetson: FakeJetson, file: str, layer: dict[str, Any], words: str
) -> None:
    folder, role = tmp_path / "device", file.split(".")[1]
    write_device_folder(folder, {role: forms[role]}, load_target("jetson-orin-nano"), "c" * 64, timing=QUICK, certified=CERTIFIED)
    jetson.setup["layers"] = [layer]
    done = jetson.run(folder / "run_on_device.py")
    assert done.returncode == 1
    assert words in done.stdout


def test_before_strong_typing_the_precision_is_an_option(tmp_path: Path, forms: dict[str, Path], jetson: FakeJetson) -> None:
    folder = tmp_path / "device"
    write_device_folder(folder, forms, load_target("jetson-xavier-nx"), "c" * 64, timing=QUICK, certified=CERTIFIED)
    jetson.compatible("nvidia,p3668-0000", "nvidia,tegra194")
    jetson.setup["version"] = "8502"
    jetson.run(folder / "run_on_device.py")
    builds = [set(call) for call in jetson.calls() if any(option.startswith("--onnx=") for option in call)]
    assert not {"--fp16", "--int8"} & builds[0]
    assert {"--fp16", "--precisionConstraints=obey", "--layerPrecisions=*:fp16", "--layerOutputTypes=*:fp16"} <= builds[1]
    assert "--int8" in builds[2]
    assert "--fp16" not in builds[2]


@pytest.mark.parametrize(("target", "wanted"), [("jetson-orin-nano", True), ("jetson-xavier-nx", False)])
def test_sparse_kernels_are_asked_for_where_weights_and_target_have_the_pattern(tmp_path: Path, target: str, wanted: bool) -> None:
    graph, orin, path = conv_graph(), load_target(target), tmp_path / "sparse.onnx"
    name = next(key for key, value in graph.params.items() if value.ndim == 2 and value.shape[1] % 4 == 0)
    weight = graph.params[name].copy()
    for zeros, sparse in (((0,), False), ((0, 3), True)):
        for one in zeros:
            weight[:, one::4] = 0
        write_onnx(graph.with_params({**graph.params, name: weight}), path, 17, {})
        made = write_device_folder(tmp_path / f"device{sparse}", {"packed": path}, orin, "c" * 64, timing=QUICK)
        assert made.models[0].structured_sparsity == (sparse and wanted)
    (tmp_path / "jetson").mkdir()
    jetson = FakeJetson(tmp_path / "jetson")
    assert wanted == (jetson.run(tmp_path / "deviceTrue" / "run_on_device.py").returncode == 0)
    assert (["--sparsity=enable"] if wanted else []) == [o for call in jetson.calls() for o in call if "sparsity" in o]


@pytest.mark.parametrize("name", FAULTS)
def test_an_engine_that_does_not_honour_the_contract_fails(folder: Path, jetson: FakeJetson, name: str) -> None:
    jetson.setup["layers"] = FAULTS[name]
    done = jetson.run(folder / "run_on_device.py")
    assert done.returncode == 1, (done.stdout, done.stderr)
    results = json.loads((folder / "results.json").read_text())
    assert results["passed"] is False
    assert {g["name"]: g["passed"] for g in results["models"][0]["gates"]}["arithmetic"] is False
    assert "A GATE FAILED" in done.stdout


def test_layers_without_dot_products_need_no_tactic_name(folder: Path, jetson: FakeJetson) -> None:
    jetson.setup["layers"] = [
        FP32_LAYER,
        {"Name": "p", "LayerType": "TiledPooling", "TacticValue": "0x50"},
        {"Name": "r", "LayerType": "Reformat"},
    ]
    assert jetson.run(folder / "run_on_device.py").returncode == 0
