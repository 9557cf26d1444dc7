"""The command line: help for everything, JSON on stdout, nothing on stderr where it is no terminal, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tiny_build import TINY
from vsparse.cli import run

COMMANDS = ("build", "train", "compress", "export", "verify", "check", "profile", "report", "targets", "models", "doctor")


def settings() -> list[str]:
    return [part for setting in TINY for part in ("--set", setting)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Usage" in out
    assert len(out.splitlines()) > 5


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_build_prints_json_on_stdout_and_nothing_on_stderr(tiny_artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert run(["build", "digits", "--out", str(tmp_path / "a"), "--json", *settings()]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert err == ""
    assert result["passed"] is True
    assert result["figures"]["sparse"]["weights"] < result["figures"]["dense"]["weights"]
    assert {"contract audit", "cross-check with auto_LiRPA"} <= {gate["name"] for gate in result["gates"]}


def test_a_gate_that_fails_is_exit_code_1_and_leaves_the_artifact(
    tiny_artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", "digits", "--out", str(tmp_path / "a"), *settings(), "--set", "gates.certified_accuracy=0.999"]
    assert run(arguments) == 1
    out = capfd.readouterr().out
    assert "FAILED" in out
    assert (tmp_path / "a" / "report.html").exists()
    assert run(arguments) == 1, "an up-to-date artifact keeps its failed gate"


def test_check_confirms_the_artifact(tiny_artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(tiny_artifact)]) == 0, capfd.readouterr()


def test_verify_certifies_a_model_file(tiny_artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    model = tiny_artifact / "model" / "model.fp32.onnx"
    arguments = ["verify", str(model), "--data", "digits", "--epsilon", "1/100", "--samples", "5", "--out", str(tmp_path / "c"), "--json"]
    assert run(arguments) == 0
    out, err = capfd.readouterr()
    summary = json.loads(out)["summary"]
    assert err == ""
    assert summary["certified"] + summary["falsified"] + summary["unknown"] == summary["samples"] == 5
    assert (tmp_path / "c" / "certificate.json").exists()


def test_real_arithmetic_says_so(tiny_artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_artifact / "model" / "model.fp32.onnx"
    assert run(["verify", str(model), "--data", "digits", "--epsilon", "0.01", "--samples", "2", "--contract", "real"]) == 0
    assert "not for any device" in capfd.readouterr().out


def test_profile_keeps_raw_samples(tiny_artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    arguments = [
        "profile",
        str(tiny_artifact),
        "--runs",
        "20",
        "--seconds",
        "0.05",
        "--warmup",
        "2",
        "--json",
        "--save",
        str(tmp_path / "p.json"),
    ]
    assert run(arguments) == 0
    printed = json.loads(capfd.readouterr().out)
    assert len(printed["packed"]["samples_ms"]) >= 20
    assert json.loads((tmp_path / "p.json").read_text()) == printed


def test_report_is_written_again(tiny_artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copied = Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))
    page = (copied / "report.html").read_bytes()
    assert run(["report", str(copied)]) == 0
    assert capfd.readouterr().out.strip() == str(copied / "report.html")
    assert (copied / "report.html").read_bytes() == page


def test_an_onnx_file_of_ones_own_is_compressed_and_exported(
    tiny_artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    model = tiny_artifact / "train" / "trained.onnx"
    assert run(["compress", str(model), "--out", str(tmp_path / "p.onnx"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["removed_share"] > 0.5
    assert run(["export", str(tmp_path / "p.onnx"), "--target", "jetson-orin-nano", "--out", str(tmp_path / "deployed")]) == 0
    assert (tmp_path / "deployed" / "device" / "run_on_device.py").exists()


@pytest.mark.parametrize("command", ["targets", "models", "doctor"])
def test_lists_are_json_too(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert run([command, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)


def test_a_bug_is_one_sentence_without_a_traceback(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("vsparse.api.targets", broken)
    assert run(["targets"]) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert run(["targets", "--json"]) == 2


def test_stages_alone_print_each_layer_before_and_after(tiny_artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copied = Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))
    capfd.readouterr()
    assert run(["compress", str(copied), "--out", str(tmp_path / "compressed")]) == 0
    out = capfd.readouterr().out
    rows = json.loads((tmp_path / "compressed" / "compress" / "layers.json").read_text())["rows"]
    assert all(row["name"] in out for row in rows)
    assert "→" in out
    assert "weights removed physically" in out
    assert run(["compress", str(copied / "train" / "trained.onnx"), "--out", str(tmp_path / "p.onnx")]) == 0
    assert "weights removed physically" in capfd.readouterr().out
