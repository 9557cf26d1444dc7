"""Progress on stderr: lines where it is no terminal, bars that move within an epoch where it is; and what `train` calls certified."""

from __future__ import annotations

import json
import re
from pathlib import Path
from time import sleep

import pytest

from vsparse import cli
from vsparse.cli import progress
from vsparse.cli.progress import _Lines, shown_progress
from vsparse.progress import BUILD, Event


def test_lines_from_inside_an_epoch_come_once_in_ten_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "monotonic", lambda: now)
    lines = _Lines()
    for tick in range(100):
        now = 100.0 + tick / 4  # 25 seconds
        lines(Event("progress", "train sparse", "ε 0.01  left about 9 min", 0, 5, part=(tick + 1) / 200))
        lines(Event("progress", BUILD, "time left unknown", 0, 7))
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.splitlines().count("train sparse: 0/5 ε 0.01  left about 9 min") == 3
    assert found.err.splitlines().count("build: 0/7 time left unknown") == 3


def test_without_a_terminal_and_verbose_only_warnings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(False) as reporter:
        reporter(Event("progress", "train sparse", "ε 0.01", 0, 5, part=0.5))
        reporter(Event("warning", "data", "a warning"))
    assert capsys.readouterr().err == "vsparse: a warning\n"


def test_without_a_terminal_a_line_now_and_then_says_where_the_work_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.02)
    with shown_progress(False) as reporter:
        reporter(Event("progress", "verify", "", 3, 100))
        sleep(0.2)
    told = capsys.readouterr().err.splitlines()
    assert told
    assert set(told) == {"vsparse: verify 3/100 (0 s)"}
    sleep(0.1)
    assert capsys.readouterr().err == ""


def test_bars_move_within_an_epoch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    completed = []
    update = progress.Progress.update
    monkeypatch.setattr(
        progress.Progress, "update", lambda self, bar, **values: (completed.append(values["completed"]), update(self, bar, **values))
    )
    with shown_progress(False) as reporter:
        reporter(Event("progress", "train sparse", "ε 0.01", 2, 5, part=0.25))
        reporter(Event("progress", "train sparse", "ε 0.01", 2, 5, part=0.75))
    assert completed == [2.25, 2.75]


def test_train_names_what_it_prints_as_certified(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = ("train.epochs=20", "network.architecture=mlp", "network.width=0.5", "train.baseline=false")
    command = ["train", "digits", "--out", str(tmp_path / "a"), *(part for setting in settings for part in ("--set", setting))]
    assert cli.run([*command, "--verbose"]) == 0
    found = capfd.readouterr()
    words = " ".join(re.sub(r"[│┃]", " ", found.out).split())
    assert "certified by interval bounds on 145" in words
    assert "ε 0.08  loss " in found.err
    # How soon there is an estimate depends on the machine; its words have tests of their own.
    assert re.search(r"^build: \d/1 (left about|time left unknown)", found.err, re.M)
    assert "1,293 training samples in batches of at most 128: 11 steps an epoch, 20 epochs, 220 steps" in found.err
    assert cli.run([*command, "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)["figures"]["sparse"]
    history = json.loads((tmp_path / "a" / "train" / "history.json").read_text())
    assert (figures["measured_by"], figures["split"], figures["samples"], figures["robust_samples"]) == (
        "interval bounds",
        "validation",
        145,
        145,
    )
    kept = history["sparse"][history["kept_epoch"] - 1]
    assert (figures["epoch"], figures["clean_accuracy"], figures["certified_accuracy"]) == (kept["epoch"], kept["clean"], kept["certified"])
    assert figures["clean_accuracy"] == pytest.approx(history["validation"]["correct"] / 145)
