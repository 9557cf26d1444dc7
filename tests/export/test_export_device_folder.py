"""The device folder and its script, run against a pretended Jetson."""

import ast
import hashlib
import json
import py_compile
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_device import FP32_LAYER, FakeJetson
from test_export_runtime_graph import conv_graph

from vsparse.artifact.device_folder import DeviceTiming
from vsparse.errors import InputError
from vsparse.stages.export import CertifiedModel, Probe, write_device_folder, write_onnx
from vsparse.stages.export.bundle import device_script
from vsparse.stages.export.half import half
from vsparse.stages.export.quantise import quantise
from vsparse.target import load_target

QUICK = DeviceTiming(runs=20, seconds=0.05, warmup_ms=10)
# Standard library that is younger than Python 3.8.
YOUNGER = {
    "removeprefix",
    "removesuffix",
    "file_digest",
    "is_relative_to",
    "pairwise",
    "cache",
    "UTC",
    "tomllib",
    "zoneinfo",
    "bit_count",
    "batched",
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.fp32.onnx"
    write_onnx(conv_graph(), path, 17, {"recipe": "test"})
    return path


def probe_of(model: Path, room: float = 1e-4) -> Probe:
    x = np.random.default_rng(1).random((1, 8, 8), dtype=np.float32)
    logits = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"input": x[None]})[0][0].astype(float)
    return Probe(x, logits - room, logits + room)


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    write_device_folder(tmp_path / "device", {"packed": model}, load_target("jetson-orin-nano"), "c" * 64, timing=QUICK)
    return tmp_path / "device"


@pytest.fixture
def jetson(tmp_path: Path) -> FakeJetson:
    (tmp_path / "jetson").mkdir()
    return FakeJetson(tmp_path / "jetson")


def changed(**fields: Any) -> dict[str, Any]:
    return {**FP32_LAYER, **fields}


def test_the_script_is_one_file_of_standard_library_for_python_3_8(tmp_path: Path) -> None:
    source = device_script()
    tree = ast.parse(source, feature_version=(3, 8))
    path = tmp_path / "run_on_device.py"
    path.write_text(source)
    py_compile.compile(str(path), doraise=True)
    top = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    top += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert top
    assert {name.split(".")[0] for name in top} <= set(sys.stdlib_module_names)
    assert "vsparse." not in source
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert not YOUNGER & (set(names) | set(top))
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(defined) == len(set(defined))


def test_annotations_are_never_evaluated_so_that_3_8_accepts_them() -> None:
    tree = ast.parse(device_script())
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert [alias.name for node in future for alias in node.names] == ["annotations"]
    for node in ast.walk(tree):  # `X | Y` and `list[str]` are fine in annotations alone
        if isinstance(node, ast.Call):
            assert not [a for a in node.args if isinstance(a, ast.BinOp) and isinstance(a.op, ast.BitOr)]


def test_the_folder_holds_what_its_manifest_says(folder: Path, model: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["README", "manifest.json", "model.fp32.onnx", "run_on_device.py"]
    assert len((folder / "README").read_text().splitlines()) == 3
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["models"][0]["sha256"] == sha256(model)
    assert manifest["script_sha256"] == sha256(folder / "run_on_device.py")
    assert manifest["certificate_sha256"] == "c" * 64
    assert manifest["contract"]["name"] == "fp32"


def test_a_good_run_binds_latency_to_model_and_engine(folder: Path, jetson: FakeJetson) -> None:
    done = jetson.run(folder / "run_on_device.py")
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text())
    measured = results["models"][0]
    assert measured["onnx_sha256"] == sha256(folder / "model.fp32.onnx")
    assert measured["engine_sha256"] == sha256(folder / measured["engine_file"])
    assert results["manifest_sha256"] == sha256(folder / "manifest.json")
    assert results["passed"] is True
    latency = measured["latency"]
    assert latency["runs"] == len(latency["samples_ms"]) == 200
    # sorted[max(n - 1 - int((1 - p) n), 0)] of 0.400, 0.401, …, 0.599
    assert latency["latency_ms_p50"] == pytest.approx(0.4 + 0.099)
    assert latency["latency_ms_p90"] == pytest.approx(0.4 + (199 - 20) / 1000)
    assert latency["latency_ms_p99"] == pytest.approx(0.4 + (199 - 2) / 1000)
    assert results["device"]["power_mode"] == "15W"
    assert results["device"]["tegra_release"].startswith("R36")
    assert measured["power"]["power_mw_mean"] == 4500
    assert measured["power"]["energy_mj_per_run_estimate"] == pytest.approx(4500 * latency["latency_ms_mean"] / 1000)
    assert measured["layer_times"][0]["name"] == "c1"
    assert "p50 0.499 ms" in done.stdout
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


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


@pytest.mark.parametrize("name", ["python3.8", "python3.10", "python3.12"])
def test_jetpacks_own_pythons_run_the_script(folder: Path, jetson: FakeJetson, name: str) -> None:
    python = shutil.which(name)
    if python is None or subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{name} is not on the PATH")
    done = jetson.run(folder / "run_on_device.py", python=python)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text())
    assert results["device"]["python"].startswith(name.removeprefix("python"))
    assert results["passed"] is True
    jetson.setup["layers"] = FAULTS["winograd"]
    assert jetson.run(folder / "run_on_device.py", python=python).returncode == 1
    (folder / "manifest.json").write_text("{}")
    assert jetson.run(folder / "run_on_device.py", python=python).returncode == 2


def layer_in(kind: str, tactic: str) -> dict[str, Any]:
    tensor = {"Name": "x", "Format/Datatype": f"Row major linear {kind}"}
    return changed(Inputs=[tensor], Outputs=[tensor], Weights={"Type": kind, "Count": 72}, TacticName=f"sm80_xmma_fprop_{tactic}_nhwc")


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


FAULTS = {
    "winograd": [changed(TacticName="ampere_scudnn_winograd_128x128_ldg1_ldg4_relu_tile148t_nt_v1")],
    "tf32": [changed(TacticName="sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16_tensor16x8x8")],
    "half": [changed(TacticName="sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc")],
    "hmma": [changed(TacticName="turing_h1688cudnn_256x64_ldg8_relu_exp_small_nhwc_tn_v1")],
    "tensor core": [changed(TacticName="ampere_s16816gemm_64x64_tn")],
    "fft": [changed(TacticName="fft2d_r2c_32x32")],
    "int8": [changed(TacticName="trt_volta_int8x4_icudnn_int8x4_128x64_relu")],
    "half tensor": [changed(Outputs=[{"Name": "r1", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}])],
    "half tensor, newer form": [changed(Inputs=[{"Name": "x", "Format": "Row major linear", "DataType": "Half"}])],
    "half weights": [changed(Weights={"Type": "Half", "Count": 72})],
    "unnamed tactic": [changed(TacticName="", TacticValue="0x1")],
    "names only": ["c1 + r1", "fc"],
    "no layers": [],
    "not JSON": '{"Layers": [',
}


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


def test_failures_of_trtexec_are_sentences(folder: Path, jetson: FakeJetson) -> None:
    for setup, words in (
        ({"build_fails": True}, "no implementation for node c1"),
        ({"no_engine": True}, "wrote no engine"),
        ({"times": "[]"}, "times are empty"),
        ({"times": "not json"}, "no readable times"),
        ({"times": '[{"latencyMs": -1}]'}, "not positive"),
        ({"times": '[{"computeMs": 1}]'}, "no readable times"),
    ):
        jetson.setup = {"version": "100300", "layers": [FP32_LAYER], **setup}
        done = jetson.run(folder / "run_on_device.py")
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert not (folder / "results.json").exists()
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_an_earlier_result_survives_a_run_that_fails(folder: Path, jetson: FakeJetson) -> None:
    assert jetson.run(folder / "run_on_device.py").returncode == 0
    before = (folder / "results.json").read_bytes()
    jetson.setup["build_fails"] = True
    assert jetson.run(folder / "run_on_device.py").returncode == 1
    assert (folder / "results.json").read_bytes() == before


def test_another_device_is_refused_unless_asked_for(folder: Path, jetson: FakeJetson) -> None:
    for compatible, words in (
        (("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"), "p3701-0005, not p3767-0003 or p3767-0005"),
        (("nvidia,p3768-0000+p3767-0000", "nvidia,tegra234"), "p3767-0000, not"),
        (("nvidia,p3509-0000+p3668-0000", "nvidia,tegra194"), "not nvidia,tegra234"),
    ):
        jetson.compatible(*compatible)
        done = jetson.run(folder / "run_on_device.py")
        assert done.returncode == 3
        assert words in done.stderr
    done = jetson.run(folder / "run_on_device.py", "--any-device")
    results = json.loads((folder / "results.json").read_text())
    assert done.returncode == 1  # measured, and never passed for the target's
    assert results["gates"][0]["passed"] is False
    (jetson.root / "etc/nv_tegra_release").unlink()
    assert jetson.run(folder / "run_on_device.py").returncode == 3


def test_a_carrier_board_of_another_maker_is_no_fault(folder: Path, jetson: FakeJetson) -> None:
    jetson.compatible("maker,board", "nvidia,tegra234")
    assert jetson.run(folder / "run_on_device.py").returncode == 0


def test_without_trtexec_meter_or_power_mode(folder: Path, jetson: FakeJetson) -> None:
    shutil.rmtree(jetson.bin)
    assert jetson.run(folder / "run_on_device.py").returncode == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["models"][0]["power"] is None
    assert results["device"]["power_mode"] is None
    shutil.rmtree(jetson.root / "usr")
    done = jetson.run(folder / "run_on_device.py")
    assert done.returncode == 3
    assert "trtexec is not in /usr/src/tensorrt/bin" in done.stderr


def test_a_trtexec_that_says_no_version_is_refused(folder: Path, jetson: FakeJetson) -> None:
    jetson.setup["version"] = "?"
    done = jetson.run(folder / "run_on_device.py")
    assert done.returncode == 3
    assert "does not say its TensorRT version" in done.stderr


def test_damage_to_the_folder_is_named(folder: Path, jetson: FakeJetson) -> None:
    manifest = folder / "manifest.json"
    good = json.loads(manifest.read_text())
    model = good["models"][0]
    for change, words in (
        ({"schema_version": 2}, "schema_version is not 1"),
        ({"kind": "other"}, "kind is not"),
        ({"models": []}, "models is not a list of 1 to 16"),
        ({"models": [{**model, "sha256": "abc"}]}, "models[0].sha256 is not 64 hexadecimal digits"),
        ({"models": [{**model, "file": "../../etc/passwd"}]}, "models[0].file is not a plain name"),
        ({"models": [{**model, "input_shape": [0]}]}, "models[0].input_shape"),
        ({"models": [{**model, "precision": "fp4"}]}, "models[0].precision"),
        ({"models": [{**model, "sha256": "0" * 64}]}, "not the file that was exported"),
        ({"models": [{**model, "file": "absent.onnx"}]}, "is not there"),
        ({"timing": {**good["timing"], "seconds": "ten"}}, "timing.seconds is not a number"),
        ({"target": {**good["target"], "runtime": "tflite"}}, "target.runtime"),
        ({"target": None}, "target is not a table"),
    ):
        manifest.write_text(json.dumps({**good, **change}))
        done = jetson.run(folder / "run_on_device.py")
        assert done.returncode == 2, (change, done.stderr)
        assert words in done.stderr
    for text in ("", "[]", '{"schema_version":'):
        manifest.write_text(text)
        done = jetson.run(folder / "run_on_device.py")
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_probes_outside_their_enclosure_void_the_certificate(tmp_path: Path, model: Path, jetson: FakeJetson) -> None:
    probe = probe_of(model)
    write_device_folder(
        tmp_path / "device", {"packed": model}, load_target("jetson-orin-nano"), "c" * 64, timing=QUICK, probes={"packed": [probe]}
    )
    middle = ((probe.lower + probe.upper) / 2).tolist()
    outside = [*middle[:3], probe.upper[3] + 0.01, *middle[4:]]
    for logits, code, words in (
        (middle, 0, "1 probe(s)"),
        (outside, 1, "logit 3"),
        (middle[:5], 1, "5 logits, not 10"),
        ("text", 1, "no readable output"),
    ):
        jetson.setup["logits"] = logits
        done = jetson.run(tmp_path / "device" / "run_on_device.py")
        assert done.returncode == code, done.stderr
        assert words in done.stdout


def test_on_a_target_with_onnx_runtime_the_script_times_through_it(tmp_path: Path, model: Path) -> None:
    for room, code in ((1e-4, 0), (0.0, 0)):
        folder = tmp_path / f"device{room}"
        write_device_folder(folder, [model], load_target("local"), "", timing=QUICK, probes={"model": [probe_of(model, room)]})
        done = run_here(folder)
        assert done.returncode == code, done.stderr
        results = json.loads((folder / "results.json").read_text())
        assert results["runtime"] == {"name": "onnxruntime", "version": onnxruntime.__version__}
        assert results["models"][0]["latency"]["runs"] >= 20
        assert results["models"][0]["gates"][0]["passed"] is True
    shifted = probe_of(model)
    write_device_folder(
        folder, [model], load_target("local"), "", timing=QUICK, probes={"model": [Probe(shifted.x, shifted.upper, shifted.upper + 1)]}
    )
    assert run_here(folder).returncode == 1


def run_here(folder: Path) -> Any:
    return subprocess.run([sys.executable, str(folder / "run_on_device.py")], capture_output=True, text=True, timeout=60, check=False)


def test_without_onnxruntime_a_sentence_says_so(tmp_path: Path, model: Path) -> None:
    write_device_folder(tmp_path / "d", [model], load_target("local"), "", timing=QUICK)
    hide = (
        "import sys, runpy; sys.modules['onnxruntime'] = None; sys.argv = [sys.argv[1]]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", hide, str(tmp_path / "d/run_on_device.py")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert "does not import onnxruntime" in done.stderr


def test_a_pi_folder_is_refused_elsewhere(tmp_path: Path, model: Path) -> None:
    write_device_folder(tmp_path / "d", [model], load_target("raspberry-pi-5"), "", timing=QUICK)
    done = run_here(tmp_path / "d")
    assert done.returncode == 3
    assert "brcm,bcm2712" in done.stderr


def test_what_cannot_be_a_device_folder_is_refused(tmp_path: Path, model: Path) -> None:
    target = load_target("local")
    with pytest.raises(InputError, match="at least one model"):
        write_device_folder(tmp_path / "d", {}, target, "")
    with pytest.raises(InputError, match="at least one model"):
        write_device_folder(tmp_path / "d", {"packed": model, "dense": model}, target, "")
    probe = probe_of(model)
    with pytest.raises(InputError, match="does not fit"):
        write_device_folder(tmp_path / "d", [model], target, "", probes={"model": [Probe(probe.x[:, :4], probe.lower, probe.upper)]})
    with pytest.raises(InputError, match="does not fit"):
        write_device_folder(tmp_path / "d", [model], target, "", probes={"model": [Probe(probe.x, probe.upper + 1, probe.lower)]})
    assert not (tmp_path / "d").exists()
