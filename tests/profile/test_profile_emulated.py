"""A real run on another processor: every form is measured, audited and certifies live on 64-bit Arm under emulation."""

from __future__ import annotations

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

import vsparse
from tiny_build import TINY
from vsparse import artifact, cli
from vsparse.artifact.device import DEVICE_RESULTS
from vsparse.stages.profile import read_results

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
# Reads frames, and writes what the C answers about each: label, verdict, and the bits of margin and radius.
MAIN = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "HEADER.h"
static unsigned bits(float value)
{
    unsigned found;
    memcpy(&found, &value, sizeof found);
    return found;
}
int main(int count, char **given)
{
    static float frame[INPUTS];
    float epsilon = count > 1 ? strtof(given[1], NULL) : 0.f;
    while (fread(frame, sizeof(float), INPUTS, stdin) == INPUTS) {
        struct PREFIX_verdict verdict;
        PREFIX_certify(frame, epsilon, &verdict);
        printf("%d %d %08x %08x\n", verdict.label, verdict.certified, bits(verdict.margin), bits(PREFIX_radius(frame)));
    }
    return 0;
}
"""


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
    assert "emulated" in report
    assert "qemu" in report or NAME in report
    assert device.left() == EMPTY
    # The artifact with these results in it is still one that both checkers confirm.
    assert cli.run(["check", str(copied)]) == 0
    alone = [sys.executable, "-m", "vsparse_check", str(copied)]
    assert subprocess.run(alone, capture_output=True, check=False).returncode == 0
    capfd.readouterr()


def test_by_hand_the_agent_certifies_there_beside_inference(device: Emulated, built: Path) -> None:
    device.copy_there(built / "device")
    try:
        done = device.ssh("python3 device/agent.py --certify --runs 20 --seconds 0.2 --warmup 2 2>&1")
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
    place = Path(shutil.copytree(built / "device", tmp_path / "live"))
    probes = [np.fromfile(path, "<f4") for path in sorted(place.glob(f"probe-{form}-*.bin"))]
    noise = np.random.default_rng(5).random((40, probes[0].size), np.float32)
    frames = np.concatenate([np.stack(probes), np.clip(np.repeat(probes, 4, axis=0)[:32] + 0.1 * noise[:32], 0, 1), noise])
    frames = frames.astype("<f4")
    text = MAIN.replace("HEADER", name).replace("PREFIX", prefix).replace("INPUTS", str(frames.shape[1]))
    (place / "main.c").write_text(text)
    here = vsparse.live(built, form=form)
    shaped = frames.reshape(len(frames), *here.shape)
    device.copy_there(place)
    try:
        command = f"cd live && gcc -O3 -std=c99 -ffp-contract=off main.c {name}.c -o main 2>&1"
        done = device.ssh(command)
        assert done.returncode == 0, done.stdout.decode()
        certified = 0
        for epsilon in (0.0, 0.01, 0.03):
            lines = device.ssh(f"live/main {float(np.float32(epsilon)).hex()}", frames.tobytes()).stdout.decode().splitlines()
            expected = here(shaped, float(np.float32(epsilon)), radius=True)
            assert len(lines) == len(expected)
            for line, verdict in zip(lines, expected, strict=True):
                label, sure, margin, radius = line.split()
                assert (int(label), int(sure)) == (verdict.label, verdict.certified)
                value = float(np.uint32(int(margin, 16)).view(np.float32))
                assert (value if value > -3e38 else None) == verdict.margin
                assert float(np.uint32(int(radius, 16)).view(np.float32)) == verdict.radius
                certified += verdict.certified
        assert 0 < certified < 3 * len(frames)
    finally:
        device.ssh("rm -r live")
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
