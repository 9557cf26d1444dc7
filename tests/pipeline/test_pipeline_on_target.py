"""An artifact for a device: its gates on latency, energy and memory judge the target's own numbers, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_pipeline_choose import aimed, audited, by_name, results

from vsparse import cli
from vsparse.artifact import read_manifest
from vsparse.artifact.checks import Gate
from vsparse.artifact.facts import gather
from vsparse.cli.results import show_build
from vsparse.pipeline.build import _result
from vsparse.pipeline.choose import GATE, choose
from vsparse.recipe import load_recipe
from vsparse.target import load_target

__all__ = ["aimed"]  # a fixture


def changed(directory: Path, path: Path, change: Callable[[dict[str, Any]], object], **p50: float) -> Path:
    """Results of a device, changed."""
    results(directory, path, packed=0.4, dense=1.0, **p50)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def in_c(directory: Path, ms: float) -> Callable[[dict[str, Any]], None]:
    """Adds what a device measured of the C source."""
    source = json.loads((directory / "device" / "manifest.json").read_text())["c_sources"][0]
    entry = {"file": source["file"], "role": source["role"], "source_sha256": source["sha256"], "runtime": {"name": "c", "version": "gcc"}}
    entry |= {"gates": [audited(len(source["probes"]))], "latency": {"samples_ms": [ms]}, "settings": {"call": "vsparse_logits"}}
    return lambda content: content.setdefault("further", []).append(entry)


def test_c_that_the_device_timed_takes_part_with_the_devices_time(aimed: Path, tmp_path: Path) -> None:
    assert cli.run(["profile", str(aimed), "--results", str(changed(aimed, tmp_path / "r.json", in_c(aimed, 0.125)))]) == 0
    choice = gather(aimed).choice
    assert choice is not None
    assert (choice.chosen, by_name(choice)["sequential"].latency_ms_p50) == ("sequential", 0.125)
    # What it left out does not compete, for the reason that it gave.
    skipped = {"role": "sequential", "runtime": "c", "reason": "there is no C compiler here"}
    path = changed(aimed, tmp_path / "r.json", lambda content: content.update(skipped=[skipped]))
    assert cli.run(["profile", str(aimed), "--results", str(path)]) == 0
    choice = gather(aimed).choice
    assert choice is not None
    assert by_name(choice)["sequential"].why_not == "not timed on jetson-orin-nano (there is no C compiler here)"


OPEN_GATES = {GATE: None, "gates on the device": None, "packed latency as a fraction of dense": None}


def open_in(directory: Path) -> tuple[dict[str, bool | None], dict[str, str]]:
    gates = gather(directory).gates
    return {one.name: one.passed for one in gates if one.name in OPEN_GATES}, {one.name: one.got for one in gates}


def test_before_the_target_is_reached_its_gates_are_open_and_the_command_is_said(
    aimed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    passed, got = open_in(aimed)
    assert passed == OPEN_GATES
    for name in OPEN_GATES:
        assert "not measured on the target yet; `vsparse profile ARTIFACT --host user@address` measures there" in got[name]
    assert gather(aimed).verdict == "open"
    words = "not measured on the target yet"
    assert words in (aimed / "report.html").read_text()
    assert words in json.dumps(json.loads((aimed / "report.json").read_text())["gates"])
    show_build(_result(aimed, read_manifest(aimed)), json=False)
    said = capfd.readouterr().out
    assert f"to measure there: vsparse profile {aimed} --host user@address" in said
    assert said.count(f"{words}; `vsparse profile {aimed} --host user@address` measures there") == 3
    show_build(_result(aimed, read_manifest(aimed)), json=True)
    content = json.loads(capfd.readouterr().out)
    assert content["advice"] == f"vsparse profile {aimed} --host user@address"
    assert [gate["name"] for gate in content["gates"] if words in gate["got"]] == [*list(OPEN_GATES)[1:], GATE]
    # And once it is, the same gates pass or fail.
    for packed, state in ((0.4, True), (0.6, False)):
        cli.run(["profile", str(aimed), "--results", str(results(aimed, tmp_path / "r.json", packed=packed, dense=1.0))])
        assert open_in(aimed)[0] == {**dict.fromkeys(OPEN_GATES, state), "gates on the device": True}


def test_an_emulators_numbers_pass_no_gate(aimed: Path, tmp_path: Path) -> None:
    path = changed(aimed, tmp_path / "r.json", lambda content: content["device"].update(emulated=True))
    assert cli.run(["profile", str(aimed), "--results", str(path)]) == 0
    passed, got = open_in(aimed)
    assert passed == OPEN_GATES
    assert "emulated: not the target's numbers" in got["gates on the device"]
    assert "(emulated: not the target's numbers)" in got["packed latency as a fraction of dense"]
    choice, facts = gather(aimed).choice, gather(aimed)
    assert choice is not None
    assert (choice.measured_on, {row.latency_ms_p50 for row in choice.rows}) == ("", {None})
    assert (facts.not_measured[0], facts.verdict) == ("latency on jetson-orin-nano", "open")
    # What fails there fails.
    path = changed(aimed, path, lambda content: (content["device"].update(emulated=True), refuted(content)))
    assert cli.run(["profile", str(aimed), "--results", str(path)]) == 1
    assert open_in(aimed)[0]["gates on the device"] is False


def test_times_of_another_batch_judge_no_gate(aimed: Path, tmp_path: Path) -> None:
    path = changed(aimed, tmp_path / "r.json", lambda content: content.update(timing={"batch": 8, "threads": 1}))
    assert cli.run(["profile", str(aimed), "--results", str(path)]) == 0
    passed, got = open_in(aimed)
    assert passed == {**OPEN_GATES, "gates on the device": True}
    assert "(timed with a batch of 8, and the recipe asks for 1)" in got["packed latency as a fraction of dense"]


def refuted(content: dict[str, Any]) -> None:
    """Lets the audit of the packed network fail."""
    packed = next(one for one in content["models"] if one["role"] == "packed")
    packed["gates"] = [{"name": "audit", "passed": False, "detail": "p0.bin: logit 1 is 9, outside [0, 1]\x1b[2J" + "x" * 5000}]
    content["passed"] = False


@pytest.mark.parametrize("json_wanted", [False, True])
def test_an_audit_that_failed_there_is_said_everywhere(
    aimed: Path, tmp_path: Path, json_wanted: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    path = changed(aimed, tmp_path / "r.json", refuted)
    assert cli.run(["profile", str(aimed), "--results", str(path), *(["--json"] if json_wanted else [])]) == 1
    said = capfd.readouterr()
    assert "not certified on this device: a gate failed on the device (audit: p0.bin: logit 1 is 9, outside [0, 1]" in said.err
    assert "\x1b" not in said.out + said.err
    if json_wanted:
        (told,) = json.loads(said.out)["not_certified_on_this_device"]
        assert told.startswith("model.fp32.onnx (packed), audit: p0.bin: logit 1 is 9")
        return
    assert "NOT CERTIFIED ON THIS DEVICE (local: made by hand): model.fp32.onnx (packed), audit: p0.bin" in said.out
    got = open_in(aimed)[1]["gates on the device"]
    assert got.startswith("not certified on this device: audit: p0.bin: logit 1 is 9")
    assert len(got) < 500
    show_build(_result(aimed, read_manifest(aimed)), json=False)
    assert "NOT CERTIFIED ON THIS DEVICE (local: made by hand)" in capfd.readouterr().out
    show_build(_result(aimed, read_manifest(aimed)), json=True)
    assert len(json.loads(capfd.readouterr().out)["not_certified_on_this_device"]) == 1
    page = (aimed / "report.html").read_text()
    assert "Not certified on this device: local: made by hand" in page
    assert "\x1b" not in page
    report = json.loads((aimed / "report.json").read_text())
    assert len(report["device"]["not_certified_on_this_device"]) == 1


@pytest.mark.parametrize(
    ("setting", "name", "passed", "got"),
    [
        ("choose.energy_mj=2.5", "energy", True, "2 mJ"),
        ("choose.energy_mj=1.5", "energy", False, "2 mJ"),
        ("choose.memory_mib=100", "memory", True, "64 MiB"),
        ("choose.memory_mib=50", "memory", False, "64 MiB"),
    ],
)
def test_energy_and_memory_are_judged_on_the_devices_numbers(
    aimed: Path, tmp_path: Path, setting: str, name: str, passed: bool, got: str
) -> None:
    recipe, target = load_recipe(str(aimed / "recipe.toml"), [setting]), load_target("jetson-orin-nano")

    def judged() -> Gate:
        row = by_name(choose(recipe, target, gather(aimed), aimed))["sparse"]
        return next(gate for gate in row.gates if gate.name == name)

    assert judged().passed is None
    assert "not measured on the target yet" in judged().got

    def costs(content: dict[str, Any]) -> None:
        for one in content["models"]:
            one["memory"] = {"process_peak_bytes": 64 * 2**20}
            one["power"] = {"power_mw_mean": 4000.0, "readings": 3, "ms_per_run": 0.5, "energy_mj_per_run_estimate": 2.0}

    assert cli.run(["profile", str(aimed), "--results", str(changed(aimed, tmp_path / "r.json", costs))]) == 0
    assert (judged().passed, judged().got) == (passed, got)
    row = by_name(choose(recipe, target, gather(aimed), aimed))["sparse"]
    assert (row.energy_mj, row.peak_bytes) == (2.0, 64 * 2**20)
