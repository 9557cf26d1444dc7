"""Results of a device that contradict themselves, or the folder that they are about, are refused with the key that they do in."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vsparse.artifact.device_folder import DeviceFolder, DeviceFolderModel, DeviceProbe, DeviceTarget, DeviceTiming
from vsparse.artifact.document import write_document
from vsparse.artifact.percentile import percentile
from vsparse.cli.results import show_measurements
from vsparse.errors import InputError
from vsparse.files import sha256_file
from vsparse.stages.export.device.audit import audit
from vsparse.stages.profile import copied_results, read_results
from vsparse_check.device_results import label_of

DIGEST = "a" * 64
PROBES = tuple(DeviceProbe(file=f"p{i}.bin", sha256=DIGEST, lower=(0.0,), upper=(1.0,)) for i in range(2))


def passed_audit(count: int) -> dict[str, Any]:
    """What the script itself says of so many probes."""
    return audit({"probes": [one.model_dump() for one in PROBES][:count]}, [[0.5]] * count, 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artifact's device folder with one model and two probes."""
    model = DeviceFolderModel(
        role="packed", file="m.onnx", sha256=DIGEST, content_sha256=DIGEST, input="x", input_shape=(1,), output="y", probes=PROBES
    )
    target = DeviceTarget(name="t", kind="host", module="", runtime="onnxruntime", soc="", modules=(), power_rails=())
    manifest = DeviceFolder(
        recipe="r",
        contract={"name": "fp32"},
        certificate_sha256=DIGEST,
        script_sha256=DIGEST,
        target=target,
        timing=DeviceTiming(),
        models=(model,),
    )
    (tmp_path / "device").mkdir()
    write_document(tmp_path / "device" / "manifest.json", manifest)
    return tmp_path


def written(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Writes results that a device would give, changed."""
    latency = {"samples_ms": [3.0, 1.0, 2.0], "runs": 3, "runs_timed": 3}
    model = {"file": "m.onnx", "role": "packed", "onnx_sha256": DIGEST, "gates": [passed_audit(2)], "latency": latency}
    content = {
        "schema_version": 1,
        "kind": "vsparse-device-results",
        "target": "t",
        "device": {},
        "models": [model],
        "gates": [{"name": "device", "passed": True, "detail": "this is the target's device"}],
        "manifest_sha256": sha256_file(folder / "device" / "manifest.json"),
        "passed": True,
    }
    change(content)
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return path


def model_of(content: dict[str, Any]) -> dict[str, Any]:
    return content["models"][0]  # type: ignore[no-any-return]  # a document made by hand


def failed(name: str, detail: str) -> dict[str, Any]:
    return {"name": name, "passed": False, "detail": detail}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: None,
        lambda content: content.update(passed=False, gates=[failed("device", "another board")]),
        lambda content: model_of(content)["latency"].update(runs_timed=300),
        lambda content: [model_of(content)["latency"].pop(key) for key in ("runs", "runs_timed")],
    ],
)
def test_what_a_device_may_say_is_read(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = written(folder, change)
    found = read_results(path)
    assert found.latencies()["packed"].samples_ms == (3.0, 1.0, 2.0)
    if found.passed:
        assert copied_results(path, folder) == found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(passed=False), "passed: it is false, and no gate failed"),
        (lambda content: content.update(gates=[failed("clock", "x")]), r"passed: it is true, and clock failed \(x\)"),
        (lambda content: model_of(content).update(gates=[failed("audit", "x")]), r"passed: it is true, and audit failed \(x\)"),
        (
            lambda content: model_of(content).update(gates=[passed_audit(0)]),
            r"models\.0\.gates\.0: passed: it is true, and .* 0 probes were compared",
        ),
        (
            lambda content: model_of(content).update(gates=[passed_audit(1)]),
            r"models\.0\.gates\.0\.detail: .* passed on 1 probe\(s\), .* has 2",
        ),
        (
            lambda content: model_of(content)["gates"][0].update(detail="the logits of 9 probe(s) lie inside"),
            r"models\.0\.gates\.0\.detail: .* passed on 9 probe\(s\), and the device folder has 2 of it",
        ),
        (lambda content: model_of(content)["latency"].update(runs=0), r"models\.0\.latency: runs: it is 0, and samples_ms has 3"),
        (lambda content: model_of(content)["latency"].update(runs=300), r"models\.0\.latency: runs: it is 300, and samples_ms has 3"),
        (
            lambda content: model_of(content)["latency"].update(runs_timed=2),
            r"models\.0\.latency: runs_timed: it is 2, and samples_ms has 3",
        ),
        (lambda content: model_of(content)["latency"].update(runs=True), r"models\.0\.latency\.runs: "),
        (lambda content: model_of(content)["latency"].update(samples_ms=[True]), r"models\.0\.latency\.samples_ms\.0: "),
        (lambda content: content.update(passed=1), "passed: "),
        (lambda content: model_of(content).update(gates=[]), r"models\.0\.gates: there is no audit of m\.onnx, .* has 2 probe\(s\)"),
        (
            lambda content: model_of(content).update(gates=[{"name": "audit", "passed": None, "detail": "x"}]),
            r"models\.0\.gates\.0\.passed: it is null, and the device folder has 2 probe\(s\) of m\.onnx",
        ),
        (
            lambda content: model_of(content).update(gates=[passed_audit(2) | {"detail": "all is well"}]),
            r"models\.0\.gates\.0\.detail: .* passed without a word on how many",
        ),
        (lambda content: model_of(content)["gates"].append(passed_audit(2)), "audit is among them twice"),
        (lambda content: content.update(target="another"), "target: it is another, and the device folder is for t"),
        (lambda content: content.update(gates=[]), "gates: they do not say, once, whether this is the target's device"),
        (lambda content: content.update(script_sha256="b" * 64), "script_sha256: it is that of another agent"),
        (lambda content: content["device"].update(emulated=0), r"device\.emulated: it is neither true, false nor null"),
        (lambda content: content["device"].update(emulated="no"), r"device\.emulated: it is neither true, false nor null"),
        (lambda content: content.update(timing={"batch": True}), r"timing\.batch: it is no number from 1 to 65536"),
        (lambda content: model_of(content).update(runtime={"name": "tensorrt"}), r"runtime\.name: it is tensorrt, which does not run"),
        (lambda content: model_of(content).update(deployed=False), "deployed: it is false, and m.onnx is what is deployed"),
        (lambda content: model_of(content).pop("latency"), r"latency: there is none of m\.onnx, and no fault that says why"),
        (lambda content: model_of(content).update(fault="it crashed"), "fault: it says why the form did not run, and no gate failed"),
        (lambda content: model_of(content).update(settings={"batch": 8}), r"settings\.batch: it is 8, and 1 was asked for"),
        (lambda content: model_of(content)["latency"].update(latency_ms_p50=0.1), r"latency_ms_p50: it is 0\.1, and the timed runs give 2"),
        (lambda content: model_of(content)["latency"].update(latency_ms_max=1.0), r"latency_ms_max: it is 1, and the timed runs give 3"),
        (lambda content: model_of(content)["latency"].update(latency_ms_mean=1.0), "latency_ms_mean: it is 1, and the timed runs give 2"),
        (
            lambda content: model_of(content)["latency"].update(all_runs_ns={"values": [1_000_000], "counts": [3]}),
            "samples_ms: 3 is there 1 times, and in all_runs_ns 0 times",
        ),
        (
            lambda content: model_of(content)["latency"].update(all_runs_ns={"values": [1_000_000], "counts": [4]}),
            "all_runs_ns: it counts 4 runs, and 3 were timed",
        ),
        (
            lambda content: model_of(content)["latency"].update(all_runs_ns={"values": [2, 1], "counts": [1, 2]}),
            "values: they are not in order, each once",
        ),
        (lambda content: model_of(content).update(memory={"process_peak_bytes": -1}), r"memory\.process_peak_bytes: "),
        (lambda content: model_of(content).update(power={"power_mw_mean": -1.0, "readings": 1}), r"power\.power_mw_mean: "),
        (
            lambda content: model_of(content).update(
                power={"power_mw_mean": 4000.0, "readings": 1, "ms_per_run": 0.5, "energy_mj_per_run_estimate": 0.1}
            ),
            "energy_mj_per_run_estimate: it is 0.1, and the power over the time of a run gives 2",
        ),
        (
            lambda content: model_of(content).update(power={"power_mw_mean": 4000.0, "readings": 1, "energy_mj_per_run_estimate": 0.1}),
            r"energy_mj_per_run_estimate: it is 0\.1, and the power over the mean run gives 8",
        ),
        (
            lambda content: model_of(content).update(
                power={"power_mw_mean": 4000.0, "readings": 1, "ms_per_run": 0.01, "energy_mj_per_run_estimate": 0.04}
            ),
            r"power\.ms_per_run: it is 0\.01, and the least of the timed runs took 1",
        ),
        (
            lambda content: model_of(content).update(memory={"process_bytes_before": 2, "process_peak_bytes": 1}),
            "process_peak_bytes: it is 1, and process_bytes_before 2",
        ),
        (
            lambda content: model_of(content).update(settings={"threads_intra_op": 4}),
            r"settings\.threads_intra_op: it is 4, and 1 was asked",
        ),
        (lambda content: content["gates"][0].update(passed=None), "gates: they do not say, once, whether this is the target's device"),
        (
            lambda content: content["device"].update(emulated=False, emulator="qemu"),
            r"device\.emulated: it is not true, and .*emulator names",
        ),
        (lambda content: model_of(content)["latency"].update(samples_ms=[1.7e308] * 3), r"samples_ms\.0: .* less than or equal to"),
    ],
)
def test_results_that_contradict_themselves_are_refused_by_key(
    folder: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        copied_results(written(folder, change), folder)
    assert "\n" not in str(refused.value)
    assert "run it again on the device" in str(refused.value)


def test_another_device_is_not_called_the_target(folder: Path) -> None:
    def elsewhere(content: dict[str, Any]) -> None:
        content.update(passed=False, gates=[failed("device", "another board")], device={"processor": "a PC"})

    assert read_results(written(folder, elsewhere)).label == "a PC, not t"
    assert label_of(json.loads((folder / "results.json").read_text())) == "a PC, not t"


def test_a_batch_is_shown_beside_each_sample(folder: Path) -> None:
    def of_four(content: dict[str, Any]) -> None:
        content.update(timing={"batch": 4})
        model_of(content).update(settings={"batch": 4})

    shown = io.StringIO()
    show_measurements(copied_results(written(folder, of_four), folder), Console(file=shown, width=300))
    assert "2.0000 a batch of 4, 0.5 a sample" in shown.getvalue()
    assert "3.0000 a batch of 4, 0.75 a sample" in shown.getvalue()


def test_what_tensorrt_built_must_have_been_read_back(folder: Path) -> None:
    path = folder / "device" / "manifest.json"
    content = json.loads(path.read_text())
    content["target"] |= {"runtime": "tensorrt", "kind": "jetson"}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"models\.0\.gates: arithmetic of m\.onnx was not examined"):
        copied_results(written(folder, lambda content: None), folder)
    shown = {"name": "arithmetic", "passed": True, "detail": "every layer shows fp32"}
    copied_results(written(folder, lambda content: model_of(content)["gates"].append(shown)), folder)


def test_percentiles_are_of_all_runs_where_all_are_counted(folder: Path) -> None:
    counts = {"values": [1_000_000, 2_000_000, 3_000_000, 90_000_000], "counts": [1, 1, 9, 1]}
    path = written(folder, lambda content: model_of(content)["latency"].update(runs_timed=12, all_runs_ns=counts))
    found = copied_results(path, folder).latencies()["packed"]
    whole = [1.0, 2.0, *[3.0] * 9, 90.0]
    assert (found.p50, found.p90, found.p99) == tuple(percentile(whole, rank) for rank in (50, 90, 99))
    assert (found.largest, found.mean, found.runs) == (90.0, sum(whole) / 12, 12)
