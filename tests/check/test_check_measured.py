"""choice.json and target.toml against the artifact's files: forged files, bytes, latencies and targets are refused by name."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from forging import load, rewritten, sign

from vsparse.artifact import files_of
from vsparse.artifact.forms import FORMS
from vsparse.artifact.percentile import percentile as toolchains
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError
from vsparse.schema import validate
from vsparse.target import Target, load_target
from vsparse_check import check
from vsparse_check.measured import FILES, ROLES, TIMED, check_device_gates, check_measured, percentile
from vsparse_check.refusal import NotConfirmed
from vsparse_check.target_check import check_named_target, check_target, read_target


def judge(root: Path, choice: Any, target: Any = None, recipe: Any = None) -> None:
    check_measured(root, set(files_of(root)), choice, target or read_target(root), recipe or {})


def test_the_checker_knows_the_file_and_the_timings_of_every_form() -> None:
    assert {form.name: form.file for form in FORMS} == FILES
    assert {form.name: (form.latency, form.latency_key) for form in FORMS} == TIMED
    assert {form.name: form.device_role for form in FORMS} == ROLES


def test_percentiles_are_those_of_the_toolchain() -> None:
    for count in range(1, 260):
        runs = [float((7 * number) % count) for number in range(count)]
        assert [percentile(runs, rank) for rank in (50, 99)] == [toolchains(runs, rank) for rank in (50, 99)]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("sparse", {"bytes": 100}, "bytes of sparse are 100, and those of model/model.fp32.onnx"),
        ("sparse", {"bytes": None}, "bytes of sparse are None"),
        ("sequential", {"bytes": 1}, "bytes of sequential are 1, and those of model/model.c"),
        ("dense", {"bytes": True}, "bytes of dense are True"),
        ("dense", {"file": "model/model.fp32.onnx"}, "dense is not the file model/dense.fp32.onnx"),
        ("sequential", {"file": "model/model.fp32.onnx"}, "sequential is not the file model/model.c"),
        ("sparse", {"latency_ms_p50": 1e-5}, "latency_ms_p50 of sparse is 1e-05, and its timed runs give"),
        ("sequential", {"latency_ms_p99": 1e-5}, "latency_ms_p99 of sequential"),
        ("dense", {"latency_ms_p50": None}, "latency_ms_p50 of dense is None"),
        ("dense", {"latency_ratio": 3.0}, "latency_ratio of dense is not that of the medians"),
        ("dense", {"speed": "slower than fp32: 9.99 times its time"}, "speed of dense says other than the medians"),
        ("dense", {"speed": "much faster than fp32"}, "speed of dense says other than the medians"),
    ],
)
def test_a_forged_row_is_refused(tiny_artifact: Path, name: str, change: dict[str, Any], words: str) -> None:
    choice = load(tiny_artifact / "choice.json")
    judge(tiny_artifact, choice)
    next(row for row in choice["rows"] if row["name"] == name).update(change)
    with pytest.raises(NotConfirmed, match=words):
        judge(tiny_artifact, choice)


def test_latencies_of_another_machine_are_refused(tiny_artifact: Path) -> None:
    choice = load(tiny_artifact / "choice.json")
    with pytest.raises(NotConfirmed, match="measured_on is not what the latencies"):
        judge(tiny_artifact, {**choice, "measured_on": "another processor"})
    elsewhere = load_target("jetson-orin-nano").model_dump(mode="json")
    with pytest.raises(NotConfirmed, match="measured_on is not what the latencies"):
        judge(tiny_artifact, choice, elsewhere)
    with pytest.raises(NotConfirmed, match=r"latency_ms_p50 of sparse is .*, and its timed runs give None"):
        judge(tiny_artifact, {**choice, "measured_on": ""}, elsewhere)


@pytest.mark.parametrize(
    ("recipe", "gate", "passed"),
    [
        ({"choose": {"bytes": 10}}, "bytes", False),
        ({"choose": {"bytes": 10**9}}, "bytes", True),
        ({"choose": {"latency_ms_p50": 1e-7}}, "latency p50", False),
        ({"choose": {"latency_ms_p99": 1e5}}, "latency p99", True),
        ({"gates": {"latency_ratio": 1e5}}, "ratio to dense", True),
        ({"gates": {"latency_ratio": 1e-5}}, "ratio to dense", False),
    ],
)
def test_limits_of_bytes_and_latency_are_judged_again(tiny_artifact: Path, recipe: dict[str, Any], gate: str, passed: bool) -> None:
    choice = load(tiny_artifact / "choice.json")
    for row in choice["rows"]:
        row["gates"] = [{"name": gate, "passed": passed}]
    judge(tiny_artifact, choice, recipe=recipe)
    for wrong in ([{"name": gate, "passed": not passed}], [{"name": gate, "passed": None}], []):
        forged = copy.deepcopy(choice)
        forged["rows"][0]["gates"] = wrong
        with pytest.raises(NotConfirmed, match=f"{gate} of sparse is judged otherwise than recipe.toml asks for"):
            judge(tiny_artifact, forged, recipe=recipe)


def test_a_processor_without_vectors_compiles_the_other_text(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_artifact, tmp_path / "bare"))
    header, choice = folder / "model" / "model.h", load(folder / "choice.json")
    text = re.sub(r"Without: [0-9]+ bytes of constants", "Without: 4321 bytes of constants", header.read_text())
    header.write_text(text)
    judge(folder, choice)
    target = load_target("cortex-m4f").model_dump(mode="json")
    untimed = {"latency_ms_p50": None, "latency_ms_p99": None, "latency_ratio": None, "speed": "not measured on cortex-m4f"}
    choice |= {"measured_on": ""}
    rows = {row["name"]: row.update(untimed) or row for row in choice["rows"]}
    with pytest.raises(NotConfirmed, match=r"bytes of sequential are [0-9]+, and those of model/model\.c 4321"):
        judge(folder, choice, target)
    rows["sequential"]["bytes"] = 4321
    # Flash and RAM: not on record here, then measured, against the smaller of the two limits.
    record, path = load(folder / "model" / "c_source.json"), folder / "model" / "c_source.json"
    recipe = {"gates": {"flash_kib": 12.0, "ram_kib": 4096}}
    for flash, ram, passed in ((None, None, (None, None)), (13_000, 131_072, (False, True)), (12_288, 131_073, (True, False))):
        taken = {} if flash is None else {"footprint": {"flash_bytes": flash, "ram_bytes": ram}}
        path.write_text(json.dumps(record | taken))
        rows["sequential"]["gates"] = [{"name": name, "passed": one} for name, one in zip(("flash", "RAM"), passed, strict=True)]
        judge(folder, choice, target, recipe)
        for number, name in enumerate(("flash", "RAM")):
            if flash != 12_288 or name == "RAM":  # a limit that is met to the byte
                forged = copy.deepcopy(choice)
                told = next(row for row in forged["rows"] if row["name"] == "sequential")["gates"]
                told[number]["passed"] = not passed[number]
                with pytest.raises(NotConfirmed, match=f"{name} of sequential is judged otherwise than model/c_source.json"):
                    judge(folder, forged, target, recipe)
                del told[number]
                with pytest.raises(NotConfirmed, match=f"{name} of sequential is judged otherwise"):
                    judge(folder, forged, target, recipe)


@pytest.fixture
def measured(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy with results of a device, and the rows that follow from them."""
    folder = Path(shutil.copytree(tiny_artifact, tmp_path / "measured"))
    manifest = hashlib.sha256((folder / "device" / "manifest.json").read_bytes()).hexdigest()
    runs = {"packed": [3.0, 1.0, 2.0], "dense": [4.0, 4.0, 5.0]}
    gates = [{"name": "audit", "passed": True, "detail": ""}]
    models = [{"role": role, "latency": {"samples_ms": samples}, "gates": gates} for role, samples in runs.items()]
    results = folder / "profile" / "device" / "results.json"
    results.parent.mkdir()
    results.write_text(json.dumps({"models": models, "manifest_sha256": manifest}))

    def follow(choice: Any) -> None:
        choice["measured_on"] = "local"
        for row in choice["rows"]:
            times = runs.get(ROLES.get(row["name"], ""))
            p50, p99 = (None, None) if times is None else (percentile(times, 50), percentile(times, 99))
            row |= {"latency_ms_p50": p50, "latency_ms_p99": p99, "latency_ratio": None if p50 is None else p50 / 2, "speed": ""}
            row["gates"] = [{"name": "gates on the device", "passed": True}] if row["name"] == "sparse" else []

    rewritten(folder, "choice.json", follow)
    return folder


def test_a_devices_own_results_come_first(measured: Path) -> None:
    choice, results = load(measured / "choice.json"), measured / "profile" / "device" / "results.json"
    assert [row["latency_ms_p50"] for row in choice["rows"]] == [2.0, None, 4.0]
    judge(measured, choice)
    for path, content, words in (
        (("models", 0, "latency", "samples_ms"), [9.0, 9.0, 9.0], "latency_ms_p50 of sparse is 2.0, and its timed runs give 9.0"),
        (("models", 0, "latency", "samples_ms"), [], "latencies that are none"),
        (("models", 0, "latency", "samples_ms"), [True], "latencies that are none"),
        (("models", 0, "latency", "samples_ms"), [-1.0], "latencies that are none"),
        (("manifest_sha256",), "0" * 64, "about another device folder"),
    ):
        forged = load(results)
        place = forged
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = content
        original = results.read_text()
        results.write_text(json.dumps(forged))
        with pytest.raises(NotConfirmed, match=words):
            judge(measured, choice)
        results.write_text(original)


PROMISED = {"certificate": "fp32", "certificate/fp16": "fp16-chain", "certificate/int8": "int8"}


def about(**contracts: str) -> dict[str, Any]:
    return {folder: {"contract": {"name": contract}} for folder, contract in (PROMISED | contracts).items()}


def pi(**changes: Any) -> dict[str, Any]:
    target: dict[str, Any] = load_target("raspberry-pi-5").model_dump(mode="json")
    for key, value in changes.items():
        section, _, name = key.partition("__")
        target[section] |= {name: value}
    return target


@pytest.mark.parametrize(
    ("contract", "precision", "folder"),
    [
        ("fp16", "fp16", "certificate/fp16"),  # ONNX Runtime on aarch64 adds in float16
        ("fp16-tensorrt", "fp16", "certificate/fp16"),
        ("int8-tensorrt", "int8", "certificate/int8"),
        ("int8-exact", "int8", "certificate/int8"),
        ("real", "int8", "certificate/int8"),
        ("sequential", "fp32", "certificate"),
        ("no-such", "fp32", "certificate"),
    ],
)
def test_a_target_that_promises_what_its_runtime_does_not_keep_is_refused(contract: str, precision: str, folder: str) -> None:
    check_target(pi(), about(), {})
    forged = pi(**{f"precisions__{precision}": {"contract": contract}})
    with pytest.raises(
        NotConfirmed, match=f"promises the contract {contract} of {precision}, which onnxruntime on its device does not keep"
    ):
        check_target(forged, about(**{folder: contract}), {})


@pytest.mark.parametrize("name", ["local", "raspberry-pi-5", "jetson-orin-nano", "jetson-xavier-nx", "cortex-m4f"])
def test_the_checker_lets_a_target_promise_what_the_toolchain_does(name: str) -> None:
    """Of every contract for every precision; it is stricter nowhere, and laxer only where the processor of the host decides."""
    target = load_target(name).model_dump(mode="json")
    for contract in CONTRACTS:
        precision = contract.split("-")[0] if contract.startswith(("fp16", "bf16", "int8")) else "fp32"
        other = copy.deepcopy(target)
        other["precisions"] = {"fp32": {"contract": "fp32"}, precision: {"contract": contract}}
        try:
            validate(Target, copy.deepcopy(other), "target")
            allowed = True
        except InputError:
            allowed = False
        if name == "cortex-m4f" and precision not in ("fp32", "int8"):
            continue  # refused for the precision
        promised = {"certificate": {"contract": {"name": other["precisions"]["fp32"]["contract"]}}}
        try:
            check_target(other, promised, {})
            kept = True
        except NotConfirmed:
            kept = False
        host = name == "local" and contract in ("fp16", "fp16-chain")
        assert kept is allowed or (host and kept), contract


@pytest.mark.parametrize("asked", [["int8", "fp16"], ["auto"]])
def test_a_form_that_is_asked_for_has_a_certificate(asked: list[str]) -> None:
    check_target(pi(), about(), {"export": {"precisions": asked}})
    left = {folder: content for folder, content in about().items() if folder != "certificate/int8"}
    with pytest.raises(NotConfirmed, match=r"recipe\.toml asks for int8, and no certificate is about it"):
        check_target(pi(), left, {"export": {"precisions": asked}})


@pytest.mark.parametrize(
    ("key", "value"), [("name", "pi"), ("device__module", "another"), ("device__kind", "host"), ("runtime__name", "tensorrt")]
)
def test_the_device_folder_is_for_the_target(tiny_artifact: Path, key: str, value: str) -> None:
    target = tomllib.loads((tiny_artifact / "target.toml").read_text())
    files = set(files_of(tiny_artifact))
    check_named_target(tiny_artifact, files, target)
    section, _, name = key.partition("__")
    if name:
        target[section][name] = value if target[section][name] != value else "jetson"
    else:
        target[section] = value
    with pytest.raises(NotConfirmed, match=f"its {name or section} differs|its runtime differs"):
        check_named_target(tiny_artifact, files, target)


def test_forged_rows_and_targets_are_refuted_in_a_whole_artifact(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_artifact, tmp_path / "forged"))
    assert check(folder).passed

    def smaller(content: Any) -> None:
        content.get("choice", content)["rows"][0]["bytes"] = 7

    for name in ("choice.json", "report.json"):
        rewritten(folder, name, smaller)
    sign(folder)
    found = check(folder)
    assert (found.verdict, found.problem[:46]) == ("refuted", "choice.json: bytes of sparse are 7, and those ")
    target = folder / "target.toml"
    target.write_text(target.read_text().replace('name = "local"', 'name = "else"', 1))
    sign(folder)
    assert "device/manifest.json is for another target" in check(folder).problem


def test_what_failed_on_the_device_is_no_gate_that_was_reached(tmp_path: Path) -> None:
    gate = {"name": "contract audit", "passed": False, "detail": "12 of 80 logits outside"}
    reached = [{"name": "gates on the device", "wanted": "all passed", "got": "all passed", "passed": True}]
    path = tmp_path / "profile" / "device" / "results.json"
    path.parent.mkdir(parents=True)

    def told(models: list[Any], further: list[Any], passed: bool) -> None:
        content = {"target": "local", "models": models, "further": further, "gates": [], "passed": passed}
        path.write_text(json.dumps(content))

    def judged(gates: list[Any]) -> None:
        check_device_gates(tmp_path, {"profile/device/results.json"}, gates, {"name": "local"})

    failed = {"role": "packed", "gates": [gate], "deployed": False}
    for models, further in (([failed], []), ([], [failed | {"source_sha256": "0" * 64}])):  # whatever they call themselves
        told(models, further, False)
        judged([{**reached[0], "passed": False}])
        with pytest.raises(NotConfirmed, match="contract audit failed there"):
            judged(reached)
        told(models, further, True)
        with pytest.raises(NotConfirmed, match="passed contradicts its gates"):
            judged(reached)
    told([], [failed], True)  # an ONNX file in another runtime than the target's
    judged(reached)
    with pytest.raises(NotConfirmed, match="another target"):
        check_device_gates(tmp_path, {"profile/device/results.json"}, reached, {"name": "other"})
