"""A real run on another processor: every form is measured, audited and certifies live on 64-bit Arm under emulation."""

from __future__ import annotations

import html
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from emulated import NAME, TARGET, Emulated
from live_there import answers_there

import vsparse
from tiny_build import TINY
from vsparse import artifact, cli
from vsparse.artifact.device import DEVICE_RESULTS
from vsparse.stages.profile import read_results
from vsparse.target import load_target

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
QUICKLY = ["--runs", "20", "--seconds", "0.2", "--warmup", "2"]
EMPTY: tuple[list[str], list[str]] = ([], [])
FORMS = {
    ("packed", "onnxruntime"),
    ("fp16", "onnxruntime"),
    ("int8", "onnxruntime"),
    ("dense", "onnxruntime"),
    ("certifying", "onnxruntime"),
    ("sequential", "c"),
    ("int8-c", "c"),
}


@pytest.fixture(scope="module")
def device() -> Iterator[Emulated]:
    found = Emulated()
    if found.refused:
        pytest.skip(f"no emulated device: {found.refused.splitlines()[-1]}")
    yield found
    found.ended()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with every form that the device's target offers, each of which certifies live."""
    out = tmp_path_factory.mktemp("emulated") / "artifact"
    given = (*TINY, "deploy.live=true", 'export.precisions=["auto"]')
    settings = [part for one in given for part in ("--set", one)]
    assert cli.run(["build", "digits", "--target", str(TARGET), *settings, "--out", str(out)]) == 0
    return out


def test_it_is_another_processor_and_says_so(device: Emulated) -> None:
    begin = time.monotonic()
    assert device.script("start").returncode == 0
    assert time.monotonic() - begin < 10
    assert device.ssh("uname -m; exit 7").returncode == 7
    assert device.ssh("uname -m").stdout == b"aarch64\n"
    assert device.ssh("ls /sys").stdout == b""
    assert device.left() == EMPTY
    told = device.script("status")
    assert told.returncode == 0
    assert "onnxruntime-" in told.stdout
    assert "under qemu-aarch64 version" in told.stdout


def test_one_command_measures_and_audits_every_form(
    device: Emulated, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(built, tmp_path / "artifact"))
    monkeypatch.setenv("VSPARSE_SSH", device.command)
    assert cli.run(["profile", str(copied), "--host", NAME, *QUICKLY]) == 0
    said = capfd.readouterr().out
    assert "this device is emulated" in said
    artifact.require_intact(copied)
    found = read_results(copied / DEVICE_RESULTS)
    assert (found.device["architecture"], found.device["emulated"]) == ("aarch64", True)
    assert str(found.device["emulator"]).startswith("qemu-user, qemu-aarch64 version")
    assert {(one.role, one.runtime.name) for one in found.measurements if one.runtime} == FORMS
    assert not (found.model_extra or {})["skipped"]
    for one in found.measurements:
        assert one.latency is not None, one.role
        assert one.latency.samples_ms
        audits = [gate.passed for gate in one.gates if gate.name == "audit"]
        assert audits == [None if one.role == "dense" else True], one.role  # the parent is no form that is deployed
    assert found.passed
    compiled = [one.settings["compiled"] for one in found.measurements if one.source_sha256]
    assert compiled == ["on this device"] * 2
    report = (copied / "report.html").read_text(encoding="utf-8")
    target = load_target(str(TARGET))
    for name in (target.name, html.escape(target.description), html.escape(target.device.module)):  # which say it of themselves
        report = report.replace(name, "")
    assert "emulated" in report
    assert device.left() == EMPTY
    # The artifact with these results in it is still one that both checkers confirm.
    assert cli.run(["check", str(copied)]) == 0
    alone = [sys.executable, "-m", "vsparse_check", str(copied)]
    assert subprocess.run(alone, capture_output=True, check=False).returncode == 0
    capfd.readouterr()


def test_by_hand_the_agent_certifies_there_beside_inference(device: Emulated, built: Path) -> None:
    device.copy_there(built / "device")
    try:
        done = device.ssh("TMPDIR=~/device python3 device/agent.py --certify --runs 20 --seconds 0.2 --warmup 2 2>&1")
        assert done.returncode == 0, done.stdout.decode()
        found = json.loads(device.ssh("cat device/results-certify.json").stdout)
    finally:
        device.ssh("rm -r device")
    assert found["device"]["emulated"] is True
    assert {one["name"]: one["passed"] for one in found["gates"]} == {"device": True, "audit": True, "refusal": True}
    assert "margins of 32 probe(s)" in next(one["detail"] for one in found["gates"] if one["name"] == "audit")
    assert found["latency"]["runs_timed"] >= 20
    assert device.left() == EMPTY


@pytest.mark.parametrize(("form", "name", "prefix"), [("sequential", "model", "vsparse"), ("int8-c", "model.int8", "vsparse_int8")])
def test_the_c_certifies_there_with_the_bits_that_it_has_here(
    device: Emulated, built: Path, tmp_path: Path, form: str, name: str, prefix: str
) -> None:
    """Compiled there by its own compiler; frames of the audit, and noise, at radii around those that the network reaches."""
    probes = [np.fromfile(path, "<f4") for path in sorted((built / "device").glob(f"probe-{form}-*.bin"))]
    noise = np.random.default_rng(5).random((40, probes[0].size), np.float32)
    frames = np.concatenate([np.stack(probes), np.clip(np.repeat(probes, 4, axis=0)[:32] + 0.1 * noise[:32], 0, 1), noise])
    here = vsparse.live(built, form=form)
    shaped = frames.astype(np.float32).reshape(len(frames), *here.shape)
    epsilons = [float(np.float32(one)) for one in (0.0, 0.01, 0.03)]
    there = answers_there(device, built / "device", tmp_path, name, prefix, shaped, *epsilons)
    expected = [(v.label, v.certified, v.margin, v.radius) for epsilon in epsilons for v in here(shaped, epsilon, radius=True)]
    assert there == expected
    assert 0 < sum(one[1] for one in there) < len(there)
    assert device.left() == EMPTY


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_nothing_there(device: Emulated, built: Path, tmp_path: Path, number: signal.Signals) -> None:
    copied = Path(shutil.copytree(built, tmp_path / "artifact"))
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "vsparse", "profile", str(copied), "--host", NAME, "--seconds", "60", "--warmup", "3"]
    environment = dict(os.environ, VSPARSE_SSH=device.command)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and sum("--worker" in text for text in device.processes()) < 4:
        time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert device.left(60) == EMPTY
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_after_stop_nothing_of_it_runs(device: Emulated) -> None:
    """The last test: what it stops is started anew where it ran before."""
    config = str(device.run)
    assert device.script("stop").returncode == 0
    try:
        assert device.script("status").returncode == 3
        assert not device.run.exists()
        running = []
        for entry in Path("/proc").iterdir():
            try:
                text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace") if entry.name.isdigit() else ""
            except OSError:
                continue
            if config in text or str(device.run.parent / "root") in text:
                running.append(text)
        assert running == []
        assert device.script("shell", "true").returncode == 3
    finally:
        if device.ran_before:
            device.script("start")
