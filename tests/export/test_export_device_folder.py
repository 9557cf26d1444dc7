"""The device folder and its script, run against a pretended Jetson: what it holds, measures and refuses."""

import ast
import json
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from device_folders import QUICK, probe_of, sha256
from fake_device import FAULTS, FP32_LAYER, FakeJetson

from vsparse.errors import InputError
from vsparse.stages.export import Probe, write_device_folder
from vsparse.stages.export.bundle import agent_script
from vsparse.target import load_target

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


def test_the_script_is_one_file_of_standard_library_for_python_3_8(tmp_path: Path) -> None:
    source = agent_script()
    tree = ast.parse(source, feature_version=(3, 8))
    path = tmp_path / "agent.py"
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
    tree = ast.parse(agent_script())
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert [alias.name for node in future for alias in node.names] == ["annotations"]
    for node in ast.walk(tree):  # `X | Y` and `list[str]` are fine in annotations alone
        if isinstance(node, ast.Call):
            unions = [a for a in node.args if isinstance(a, ast.BinOp) and isinstance(a.op, ast.BitOr)]
            assert not [a for a in unions if not isinstance(a.left, ast.Attribute)]  # os.O_RDWR | os.O_CREAT are numbers


def test_the_folder_holds_what_its_manifest_says(folder: Path, model: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["README", "agent.py", "manifest.json", "model.fp32.onnx", "run_on_device.py"]
    assert len((folder / "README").read_text().splitlines()) == 3
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["models"][0]["sha256"] == sha256(model)
    assert manifest["script_sha256"] == sha256(folder / "run_on_device.py")
    assert manifest["agent_sha256"] == sha256(folder / "agent.py")
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
    assert not (folder / "results.json").exists()  # what a failed run leaves is not taken for its own
    assert (folder / "results.previous.json").read_bytes() == before


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


def test_a_batch_is_audited_row_by_row(tmp_path: Path, model: Path, jetson: FakeJetson) -> None:
    probe, folder = probe_of(model), tmp_path / "device"
    orin = load_target("jetson-orin-nano")
    write_device_folder(folder, {"packed": model}, orin, "c" * 64, timing=QUICK, probes={"packed": [probe]})
    middle = ((probe.lower + probe.upper) / 2).tolist()
    outside = [*middle[:3], probe.upper[3] + 0.01, *middle[4:]]
    for rows, code, words in (([middle] * 3, 0, "1 probe(s)"), ([middle, middle, outside], 1, "logit 3"), ([middle[:4]], 1, "4 logits")):
        jetson.setup["logits"] = [value for row in rows for value in row]
        done = jetson.run(folder / "run_on_device.py", "--batch", "3")
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
