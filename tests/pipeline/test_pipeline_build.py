"""The pipeline: what is kept, what is run again, and what a killed or interrupted build leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tiny_build import TINY
from vsparse.artifact import CERTIFICATE, MODEL, files_of, read_manifest, require_intact
from vsparse.artifact.certificate import read_certificate
from vsparse.errors import GateError, InputError
from vsparse.pipeline.build import build, rewrite_report
from vsparse.progress import Event
from vsparse.stages.export import content_sha256, read_metadata
from vsparse.standalone import continue_artifact


def ran(events: list[Event]) -> set[str]:
    return {event.stage for event in events if event.kind == "start"}


def test_artifact_holds_what_the_contract_promises(tiny_artifact: Path) -> None:
    manifest = require_intact(tiny_artifact)
    assert set(manifest.files) == set(files_of(tiny_artifact))
    promised = (
        "recipe.toml",
        "target.toml",
        "train/weights.safetensors",
        "train/history.json",
        MODEL,
        CERTIFICATE,
        "report.html",
        "report.json",
    )
    assert set(promised) <= set(manifest.files)
    assert {record.stage for record in manifest.lineage} == {
        "train-sparse", "train-dense", "compress", "export", "verify-sparse", "verify-dense", "profile"
    }  # fmt: skip


def test_model_and_certificate_are_bound_to_each_other(tiny_artifact: Path) -> None:
    certificate = read_certificate(tiny_artifact / CERTIFICATE)
    assert certificate.model.file == MODEL
    assert certificate.model.sha256 == content_sha256(tiny_artifact / MODEL)
    metadata = read_metadata(tiny_artifact / MODEL)
    assert metadata["certificate"] == certificate.digest()
    assert metadata["contract"] == "fp32"
    assert metadata["recipe"] == "digits"


def test_second_build_does_nothing(tiny_artifact: Path) -> None:
    before = files_of(tiny_artifact)
    events: list[Event] = []
    build("digits", settings=list(TINY), out=tiny_artifact, reporter=events.append)
    assert ran(events) == set()
    assert files_of(tiny_artifact) == before


def test_another_target_trains_and_verifies_nothing_again(tiny_artifact: Path, tmp_path: Path) -> None:
    """What the same runtime reads is the same file, and its certificate the same; TensorRT is given another one (1×1 convolutions)."""
    events: list[Event] = []
    result = build("digits", settings=list(TINY), target="raspberry-pi-5", out=tmp_path / "pi", reporter=events.append)
    assert not {stage for stage in ran(events) if stage.startswith(("train", "compress"))}
    own = read_certificate(tiny_artifact / CERTIFICATE)
    assert read_certificate(result.directory / CERTIFICATE).digest() == own.digest()
    assert (result.directory / "device" / "run_on_device.py").is_file()
    events.clear()
    result = build("digits", settings=list(TINY), target="jetson-orin-nano", out=tmp_path / "jetson", reporter=events.append)
    assert not {stage for stage in ran(events) if stage.startswith(("train", "compress"))}
    other = read_certificate(result.directory / CERTIFICATE)
    assert other.model.sha256 != own.model.sha256
    assert (result.directory / "device" / "run_on_device.py").is_file()


def test_a_change_runs_again_only_what_depends_on_it(tiny_artifact: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    build("digits", settings=[*TINY, "verify.attack_steps=6"], out=tmp_path / "a", reporter=events.append)
    assert ran(events) == {"verify sparse", "verify dense"}


def test_one_stage_after_another_gives_the_same_model(tiny_artifact: Path, tmp_path: Path) -> None:
    directory = tmp_path / "steps"
    build("digits", settings=list(TINY), out=directory, until="train")
    assert not (directory / "model").exists()
    continue_artifact(directory, "compress")
    assert (directory / "compress" / "layers.json").exists()
    continue_artifact(directory, "export")
    assert content_sha256(directory / MODEL) == content_sha256(tiny_artifact / MODEL)


def test_trained_networks_are_taken_from_the_artifact(tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSPARSE_CACHE", str(tmp_path / "empty-cache"))
    directory = Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))
    events: list[Event] = []
    continue_artifact(directory, "compress", reporter=events.append)
    assert ran(events) == {"compress"}


def test_an_artifact_that_was_changed_is_not_continued(tiny_artifact: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))
    (directory / "train" / "trained.onnx").write_bytes(b"other weights")
    with pytest.raises(GateError, match=r"trained\.onnx was changed"):
        continue_artifact(directory, "export")


def test_report_again_changes_no_other_file(tiny_artifact: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))
    before = files_of(directory)
    rewrite_report(directory)
    after = files_of(directory)
    assert {name for name in before if before[name] != after.get(name)} <= {"report.html", "report.json"}
    require_intact(directory)


def test_a_folder_of_the_user_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no artifact"):
        build("digits", out=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def command(folder: Path, epochs: int) -> list[str]:
    settings = [part for setting in (*TINY, f"train.epochs={epochs}") for part in ("--set", setting)]
    return [sys.executable, "-m", "vsparse", "build", "digits", "--out", str(folder / "artifact"), *settings]


def workers_with(cache: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(cache).encode() in (entry / "environ").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_build_leaves_nothing_half_done_and_resumes(tmp_path: Path, number: signal.Signals) -> None:
    cache = tmp_path / "cache"
    environment = {**os.environ, "VSPARSE_CACHE": str(cache)}
    # A shell that starts the tests in the background has them, and all that they start, ignore SIGINT.
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command(tmp_path, 2000), env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=heeded)
    deadline = time.monotonic() + 120
    while not list(cache.glob("work/train-*/*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 130, err
        assert b"resume" in err
        assert b"Traceback" not in err
    assert not (tmp_path / "artifact").exists()
    while workers_with(cache):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list(cache.glob("work/train-*/*")), "the checkpoint must outlive the build"


def test_manifest_of_the_tiny_build_names_versions(tiny_artifact: Path) -> None:
    tools = read_manifest(tiny_artifact).tools
    assert all(tools[name] != "absent" for name in ("torch", "onnx", "onnxruntime", "auto_LiRPA"))
