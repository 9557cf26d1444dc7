"""`vsparse profile ARTIFACT --host`: what is printed was done, nothing harms the artifact, every option does something."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loopback import NEEDED, Loopback
from test_profile_remote import returning

from vsparse import artifact, cli
from vsparse.artifact.device import DEVICE_RESULTS
from vsparse.files import sha256_file
from vsparse.stages.profile import read_results, remote

QUICKLY = ["--runs", "20", "--seconds", "0.05", "--warmup", "3"]


@pytest.fixture
def copied(tiny_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "art"))


@NEEDED
def test_every_form_is_measured_and_kept(loopback: Loopback, copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["profile", str(copied), "--host", "device", *QUICKLY]) == 0
    said = capfd.readouterr().out
    found = read_results(copied / DEVICE_RESULTS)
    artifact.require_intact(copied)
    assert [one.role for one in found.measurements] == ["packed", "dense", "sequential"]
    audited = [gate.passed for one in found.measurements for gate in one.gates]
    assert audited == [True, None, True]
    assert "ratio of medians, in alternating blocks" in said
    for one in found.measurements:
        assert one.latency is not None
        assert f"{one.latency.runs_timed:,}" in said
    assert loopback.left() == ([], [])
    # One runtime alone is shown, and the artifact keeps what it has.
    before = (copied / "manifest.json").read_bytes()
    assert cli.run(["profile", str(copied), "--host", "device", "--runtime", "c", "--json", *QUICKLY]) == 0
    content = json.loads(capfd.readouterr().out)
    assert (content["models"], content["further"][0]["role"], content["asked"]["runtime"]) == ([], "sequential", "c")
    assert (copied / "manifest.json").read_bytes() == before


@NEEDED
def test_what_a_device_says_of_itself_is_text_alone(
    loopback: Loopback, copied: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hostile = "[red]x[/red] <script>alert(1)</script> \\x1b[2J"
    change = f'found["device"]["model"] = "{hostile}"; found["models"][0]["runtime"]["version"] = "{hostile}"'
    monkeypatch.setattr(remote, "agent_script", lambda: returning(change))
    assert cli.run(["profile", str(copied), "--host", "device", *QUICKLY]) == 0
    said = capfd.readouterr()
    assert "[red]x[/red] <script>" in said.out
    assert "\x1b[2J" not in said.out + said.err
    assert "<script>alert(1)" not in (copied / "report.html").read_text()
    artifact.require_intact(copied)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@NEEDED
def test_ctrl_c_and_a_killed_command_leave_nothing_there(loopback: Loopback, copied: Path, number: signal.Signals) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "vsparse", "profile", str(copied), "--host", "device", "--seconds", "60", "--warmup", "3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    loopback.await_processes("--worker", 60)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(
        path.read_text().count("latency_ms_p50") == 3 for path in loopback.home.glob("vsparse-run-*/results.partial.json")
    ):
        time.sleep(0.05)
    time.sleep(1.5)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert loopback.left() == ([], [])
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    if number == signal.SIGINT:
        assert process.returncode == 130
        partial = copied.with_name("art.partial-results.json")
        assert f"interrupted: the agent was ended there, and its folder removed; what was measured until then is in {partial}" in said
        assert [one.latency is not None for one in read_results(partial).measurements] == [True] * 3
        assert cli.run(["profile", str(copied), "--results", str(partial)]) == 2
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keep"], "--keep is for a device, and no --host is given"),
        (["--timeout", "5"], "--timeout is for a device, and no --host is given"),
        (["--any-device"], "--any-device is for a device"),
        (["--remote-dir", "/tmp"], "--remote-dir is for a device"),
        (["--runtime", "c"], 'runtime "c" is measured on a device (--host); on this machine there is onnxruntime'),
        (["--host", "device", "--runtime", "tensorrt", "--threads", "2"], "--runtime tensorrt runs on the GPU; leave --threads out"),
        (["--results", "r.json", "--timeout", "5"], "--results takes what a device measured, and --timeout is for measuring; leave it out"),
        (["--results", "r.json", "--remote-dir", "x"], "and --remote-dir is for measuring; leave it out"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_by_name(
    tiny_artifact: Path, arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["profile", str(tiny_artifact), *arguments]) == 2
    assert words in capfd.readouterr().err


@NEEDED
def test_what_was_measured_is_not_lost_with_an_artifact_that_cannot_take_it(
    loopback: Loopback, copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (copied / "train/history.json").write_text("{}")
    content = json.loads((copied / "manifest.json").read_text())
    content["files"]["train/history.json"] = sha256_file(copied / "train/history.json")
    (copied / "manifest.json").write_text(json.dumps(content))
    assert cli.run(["profile", str(copied), "--host", "device", *QUICKLY]) == 2
    kept = copied.with_name("art.partial-results.json")
    assert f"; what device measured is in {kept}" in capfd.readouterr().err
    assert read_results(kept).complete
    assert not (copied / DEVICE_RESULTS).exists()
