"""results.json of a device, forged: what any gate, the choice or the report takes from it is held against the folder and its runs."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forging import load, sign

from vsparse import cli
from vsparse.artifact import files_of
from vsparse.artifact.device import EMULATED, NOT_CERTIFIED, OF_CERTIFICATE
from vsparse.artifact.device_latency import TimeCounts
from vsparse.files import sha256_file
from vsparse.pipeline.gates import ON_DEVICE
from vsparse_check import check, device_results
from vsparse_check.device_results import TimedRuns
from vsparse_check.measured import check_device_gates
from vsparse_check.refusal import NotConfirmed
from vsparse_check.results_check import check_results
from vsparse_check.target_check import read_target

RESULTS = "profile/device/results.json"


def stand_in(root: Path) -> dict[str, Any]:
    """What the agent would write for the device folder of an artifact."""
    folder = load(root / "device" / "manifest.json")

    def measured(one: dict[str, Any], runtime: str, ms: float) -> dict[str, Any]:
        probes = len(one["probes"])
        detail = f"the logits of {probes} probe(s) lie inside their certified enclosures" if probes else "the folder holds no probes"
        samples = [ms, ms, 2 * ms]
        return {
            "role": one["role"],
            "file": one["file"],
            "source_sha256" if runtime == "c" else "onnx_sha256": one["sha256"],
            "runtime": {"name": runtime, "version": "1"},
            "settings": {"batch": 1},
            "gates": [{"name": "audit", "passed": True if probes else None, "detail": detail}],
            "latency": {
                "samples_ms": samples,
                "runs": 3,
                "runs_timed": 5,
                "latency_ms_p50": ms,
                "latency_ms_max": 2 * ms,
                "all_runs_ns": {"values": [round(1e6 * ms), round(2e6 * ms)], "counts": [4, 1]},
            },
            "memory": {"process_peak_bytes": 2**26},
            "power": {"power_mw_mean": 4000.0, "readings": 3, "ms_per_run": 0.5, "energy_mj_per_run_estimate": 2.0},
        }

    return {
        "schema_version": 1,
        "kind": "vsparse-device-results",
        "target": folder["target"]["name"],
        "device": {"model": "a stand-in", "emulated": False},
        "timing": {"batch": 1, "threads": 1},
        "models": [measured(one, folder["target"]["runtime"], 0.5) for one in folder["models"]],
        "further": [measured(one, "c", 0.125) for one in folder["c_sources"]],
        "gates": [{"name": "device", "passed": True, "detail": "this is the target's device"}],
        "manifest_sha256": sha256_file(root / "device" / "manifest.json"),
        "passed": True,
    }


@pytest.fixture(scope="module")
def measured(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that took in the results of a device."""
    root = Path(shutil.copytree(tiny_artifact, tmp_path_factory.mktemp("device") / "measured"))
    path = root.with_name("r.json")
    path.write_text(json.dumps(stand_in(root)))
    assert cli.run(["profile", str(root), "--results", str(path)]) == 0
    return root


def test_what_failed_there_is_one_document(tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))
    content = stand_in(root)
    packed(content)["gates"][0].update(passed=False, detail="logit 1 is 9")
    (tmp_path / "r.json").write_text(json.dumps(content | {"passed": False}))
    capsys.readouterr()
    assert cli.run(["profile", str(root), "--results", str(tmp_path / "r.json"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def packed(content: dict[str, Any]) -> Any:
    return content["models"][0]


FORGED: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: packed(c).update(gates=[]), "was not audited, and the device folder has 8 inputs"),
    (lambda c: packed(c)["gates"][0].update(passed=None), "was not audited"),
    (lambda c: packed(c)["gates"][0].update(name="Audit"), "was not audited"),
    (lambda c: packed(c)["gates"][0].update(passed=1), "a gate that is neither passed nor failed"),
    (lambda c: packed(c)["gates"][0].update(detail="all well"), "passed its audit on other inputs than the 8"),
    (lambda c: packed(c)["gates"][0].update(detail="the logits of 0 probe(s)"), "passed its audit on other inputs"),
    (lambda c: packed(c)["gates"].append(packed(c)["gates"][0]), "two gates of one name"),
    (lambda c: c["further"][0].update(gates=[]), r"model\.c was not audited"),
    (lambda c: c["further"][0].update(deployed=False), r"model\.c is deployed, and denies that"),
    (lambda c: packed(c).update(deployed=False), "is deployed, and denies that"),
    (lambda c: c["further"][0].update(runtime={"name": "onnxruntime"}), "executed by what does not run it"),
    (lambda c: packed(c).update(runtime={"name": "tensorrt"}), "another runtime than the target's"),
    (lambda c: packed(c).update(onnx_sha256="0" * 64), "other models than the device folder's"),
    (lambda c: c["further"][0].update(source_sha256="0" * 64), "other files than the device folder's"),
    (lambda c: c["further"].append(copy.deepcopy(c["further"][0])), "measures a form twice"),
    (lambda c: c["further"][0].update(contract="fp32"), "another contract than the device folder names"),
    (lambda c: c["further"][0].update(certificate_sha256="0" * 64), "another certificate_sha256"),
    (lambda c: c["further"][0]["settings"].update(call="vsparse_certify"), "another function than its inference"),
    (lambda c: packed(c).pop("latency"), "has neither runs nor a fault"),
    (lambda c: packed(c).update(fault="x"), "a fault and no failed gate"),
    (lambda c: packed(c)["latency"].update(samples_ms=[1e-6] * 3), "holds runs that it does not count"),
    (lambda c: packed(c)["latency"]["all_runs_ns"].update(counts=[4, 2]), "counts other timed runs"),
    (lambda c: packed(c)["latency"]["all_runs_ns"].update(counts=[5, 0]), "counts runs by times that are none"),
    (lambda c: packed(c)["latency"].update(latency_ms_p50=1e-9), "latency_ms_p50 is not that of the timed runs"),
    (lambda c: packed(c)["latency"].update(latency_ms_max=0.5), "latency_ms_max is not that"),
    (lambda c: packed(c)["latency"].update(runs=2), "counts other runs than it holds"),
    (lambda c: packed(c)["settings"].update(batch=8), "was timed with another batch"),
    (lambda c: packed(c)["memory"].update(process_peak_bytes=-1), "process_peak_bytes is no size"),
    (lambda c: packed(c)["power"].update(energy_mj_per_run_estimate=0.1), "not its power over its time"),
    (lambda c: packed(c)["power"].update(power_mw_mean=True), "power_mw_mean is no such number"),
    (lambda c: c["device"].update(emulated=0), r"device\.emulated is no value of its kind"),
    (lambda c: c["device"].update(emulator="qemu"), "names an emulator, and is not said to be emulated"),
    (lambda c: c["gates"][0].update(passed=None), "does not say whether this is the target's device"),
    (lambda c: packed(c)["settings"].update(threads_intra_op=4), "was timed with more threads"),
    (lambda c: packed(c)["memory"].update(process_bytes_before=2**30), "took less at its peak than before"),
    (lambda c: packed(c)["power"].update(ms_per_run=None, energy_mj_per_run_estimate=1e-9), "not its power over its time"),
    (lambda c: packed(c)["power"].update(ms_per_run=1e-9, energy_mj_per_run_estimate=4e-9), "the runs for the meter took less time"),
    (lambda c: packed(c)["latency"].update(samples_ms=[1.7e308] * 3), "holds latencies that are none"),
    (lambda c: c["timing"].update(batch=0), "timing is no value of its kind"),
    (lambda c: c.update(gates=[]), "does not say whether this is the target's device"),
    (lambda c: c.update(target="else"), "another target"),
    (lambda c: c.update(manifest_sha256="0" * 64), "another device folder"),
    (lambda c: c.update(complete=False), "cut short"),
    (lambda c: c.update(kind="else"), "of another kind"),
    (lambda c: c.update(passed=False), "passed contradicts its gates"),
]


@pytest.mark.parametrize(("forge", "words"), FORGED)
def test_forged_results_are_refuted(measured: Path, tmp_path: Path, forge: Callable[[dict[str, Any]], object], words: str) -> None:
    files, target = set(files_of(measured)), read_target(measured)
    check_results(measured, files, target)
    root = tmp_path / "forged"
    for name in ("device/manifest.json", RESULTS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(measured / name, root / name)
    content = load(root / RESULTS)
    forge(content)
    (root / RESULTS).write_text(json.dumps(content))
    with pytest.raises(NotConfirmed, match=words):
        check_results(root, files, target)


def test_the_words_are_those_of_the_toolchain() -> None:
    assert (device_results.ON_DEVICE, device_results.NOT_CERTIFIED, device_results.OF_CERTIFICATE) == (
        ON_DEVICE,
        NOT_CERTIFIED,
        OF_CERTIFICATE,
    )
    assert device_results.EMULATED in EMULATED


def test_percentiles_of_counted_runs_are_those_of_the_toolchain_and_of_the_list() -> None:
    for seed in range(1, 200):
        counts = [(value, (value * seed) % 7 + 1) for value in range(1, seed % 9 + 2)]
        whole = TimedRuns([value / 1e6 for value, count in counts for _ in range(count)])
        counted = TimedRuns([counts[0][0] / 1e6], [(value / 1e6, count) for value, count in counts])
        toolchains = TimeCounts(values=tuple(value for value, _ in counts), counts=tuple(count for _, count in counts))
        for rank in (50, 90, 99):
            assert whole.percentile(rank) == counted.percentile(rank) == toolchains.percentile(rank)


def judge(root: Path, results: dict[str, Any], gates: Any, recipe: Any = None) -> None:
    (root / RESULTS).parent.mkdir(parents=True, exist_ok=True)
    (root / RESULTS).write_text(json.dumps(results))
    (root / "device").mkdir(exist_ok=True)
    check_device_gates(root, {RESULTS, "device/manifest.json"}, gates, {"name": "local", "device": {"kind": "jetson"}}, recipe)


def test_gates_that_wait_for_the_target_are_not_left_out(tmp_path: Path) -> None:
    files, recipe = {"device/manifest.json"}, {"gates": {"latency_ratio": 0.9}}
    jetson, local = ({"name": kind, "device": {"kind": kind}} for kind in ("jetson", "host"))
    names = ("certificates", ON_DEVICE, "packed latency as a fraction of dense")
    gates = [{"name": name, "wanted": "", "got": "", "passed": None} for name in names]
    check_device_gates(tmp_path, files, gates, jetson, recipe)
    check_device_gates(tmp_path, files, gates[:1], local, {})  # the build measured on its target
    check_device_gates(tmp_path, files, [{"name": "collapse"}], jetson, recipe)  # which was trained alone
    for left, name in ((gates[:2], names[2]), (gates[::2], ON_DEVICE)):
        with pytest.raises(NotConfirmed, match=f"leaves out a gate that only the target settles: {name}"):
            check_device_gates(tmp_path, files, left, jetson, recipe)


def test_gates_are_judged_as_the_results_say(measured: Path, tmp_path: Path) -> None:
    good, emulated, failed = (stand_in(measured) for _ in range(3))
    shutil.copytree(measured / "device", tmp_path / "device")
    emulated["device"]["emulated"] = True
    failed["models"][0]["gates"][0].update(passed=False, detail="logit 1 is 9")
    failed["passed"] = False

    def gate(passed: bool | None, got: str) -> dict[str, Any]:
        return {"name": ON_DEVICE, "wanted": "all passed", "got": got, "passed": passed}

    right = {
        "good": (good, gate(True, "all passed")),
        "emulated": (emulated, gate(None, f"{EMULATED}; there: all passed")),
        "failed": (failed, gate(False, f"{NOT_CERTIFIED}: audit: logit 1 is 9")),
    }
    for results, said in right.values():
        judge(tmp_path, results, [said])
        for passed in {True, False, None} - {said["passed"]}:
            with pytest.raises(NotConfirmed, match="gates on the device"):
                judge(tmp_path, results, [said | {"passed": passed}])
        with pytest.raises(NotConfirmed, match=r"gates\.json leaves out the gates on the device"):
            judge(tmp_path, results, [])
        if results is not good:
            with pytest.raises(NotConfirmed, match=r"gates\.json does not say that"):
                judge(tmp_path, results, [said | {"got": "all is well"}])
    # The ratio to the dense parent: 0.5 / 0.5.
    recipe = {"gates": {"latency_ratio": 1.5}}
    ratio = {"name": "packed latency as a fraction of dense", "wanted": "at most 1.5", "got": "", "passed": True}
    judge(tmp_path, good, [right["good"][1], ratio], recipe)
    with pytest.raises(NotConfirmed, match="is judged otherwise than"):
        judge(tmp_path, good, [right["good"][1], ratio | {"passed": False}], recipe)
    with pytest.raises(NotConfirmed, match="is judged, and nothing was measured on the target"):
        judge(tmp_path, emulated, [right["emulated"][1], ratio], recipe)
    other = good | {"timing": {"batch": 8, "threads": 1}}
    with pytest.raises(NotConfirmed, match="is judged, and nothing was measured on the target"):
        judge(tmp_path, other, [right["good"][1], ratio], recipe)


def test_a_whole_artifact_is_confirmed_and_what_it_repeats_is_held(measured: Path, tmp_path: Path) -> None:
    found = check(measured)
    assert (found.verdict, found.problem, found.device, found.not_certified_on_this_device) == ("confirmed", "", "local: a stand-in", ())
    root = Path(shutil.copytree(measured, tmp_path / "forged"))
    report = load(root / "report.json")
    assert [one["latency_ms_p50"] for one in report["device"]["forms"]] == [0.5, 0.5, 0.125]
    report["device"]["forms"][2]["latency_ms_p50"] = 1e-9
    (root / "report.json").write_text(json.dumps(report))
    sign(root)
    assert check(root).problem == "report.json: device, forms is not what the claims and the other files say"


def test_an_audit_that_failed_is_said_by_the_checker_too(tiny_artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = Path(shutil.copytree(tiny_artifact, tmp_path / "failed"))
    content = stand_in(root)
    content["further"][0]["gates"][0].update(passed=False, detail="p0.bin: logit 1 is 9, outside [0, 1]\x1b[2J")
    (tmp_path / "r.json").write_text(json.dumps(content | {"passed": False}))
    assert cli.run(["profile", str(root), "--results", str(tmp_path / "r.json")]) == 1
    found = check(root)
    assert found.verdict == "confirmed"
    line = "  NOT CERTIFIED ON THIS DEVICE (local: a stand-in): model.c (sequential), audit: p0.bin: logit 1 is 9, outside [0, 1]"
    assert any(text.startswith(line) for text in found.sentence.splitlines())
    assert found.as_dict()["not_certified_on_this_device"][0].startswith("model.c (sequential), audit: p0.bin")
    assert "\x1b" not in found.sentence + json.dumps(found.as_dict(), ensure_ascii=False)
