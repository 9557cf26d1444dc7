"""JSON lines of a training: each epoch and step once, what an interrupt leaves, and what is no log; TensorBoard where it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

import vsparse
from vsparse.artifact.document import read_document
from vsparse.artifact.history import History
from vsparse.artifact.stage_files import HISTORY
from vsparse.errors import InputError, UnavailableError
from vsparse.progress import Event
from vsparse.training_log import logged, read_log

QUICK = ["train.epochs=2", "train.batch_size=256", "network.architecture=mlp", "network.width=0.2"]


def test_each_epoch_and_step_is_a_line_with_the_numbers_of_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSPARSE_CACHE", str(tmp_path / "cache"))
    log, told = tmp_path / "log.jsonl", []
    result = vsparse.train("digits", out=tmp_path / "a", settings=QUICK, log=log, reporter=told.append)
    lines = read_log(log)
    assert lines[0] == {"event": "start", "time": lines[0]["time"], "recipe": "digits", "set": QUICK}
    for variant in ("sparse", "dense"):
        own = [line for line in lines if line.get("variant") == variant]
        steps, epochs = ([line for line in own if line["event"] == event] for event in ("step", "epoch"))
        assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
        assert [line["epoch"] for line in epochs] == [1, 2]
        folder = result.directory / "train" if variant == "sparse" else result.directory / "train" / "dense"
        history = read_document(History, folder / HISTORY).epochs
        assert [line["loss"] for line in epochs] == [epoch.loss for epoch in history]
        assert [line["clean_accuracy"] for line in epochs] == [epoch.clean_accuracy for epoch in history]
        # The mean of the steps, weighted by their samples, which differ by one at most.
        for number, epoch in enumerate(epochs, 1):
            losses = [line["loss"] for line in steps if line["epoch"] == number]
            assert sum(losses) / len(losses) == pytest.approx(epoch["loss"], rel=0.01)
        assert all(line["gradient_norm"] > 0 and line["learning_rate"] > 0 for line in steps)
        assert steps[-1]["epsilon"] == epochs[-1]["epsilon"] > 0
    # What is at hand already is said to be so, and the log goes on.
    vsparse.train("digits", out=tmp_path / "b", settings=QUICK, log=log)
    assert read_log(log)[len(lines) + 1 :] == [{"event": "reused", "variant": "sparse"}, {"event": "reused", "variant": "dense"}]
    assert any(event.kind == "record" for event in told)


def steps(loss: float) -> Event:
    data = {"event": "steps", "epoch": 1, "epochs": 2, "phase": "train", "first": 4, "learning_rate": 0.1}
    return Event("record", "train sparse", data={**data, "loss": [loss], "gradient_norm": [1.0], "epsilon": [0.1]})


def test_a_line_that_an_interrupt_cut_off_is_ended_and_numbers_are_strict_json(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with logged(lambda event: None, log) as reporter:
        reporter(steps(float("inf")))
        reporter(Event("record", "train sparse"))
        reporter(Event("note", "build", "text"))
    log.write_text(log.read_text() + '{"event": "st')
    with logged(lambda event: None, log) as reporter:
        reporter(steps(2.5))
    lines = read_log(log)
    assert [line["event"] for line in lines] == ["start", "step", "start", "step"]
    assert (lines[1]["loss"], lines[3]["loss"], lines[3]["step"]) == (None, 2.5, 4)


def test_what_is_no_log_stays(tmp_path: Path) -> None:
    for name, content in (("notes.txt", "mine\n"), ("other.jsonl", '{"log": "vsparse training log", "schema_version": 9}\n')):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(InputError, match="is no training log of this version"), logged(lambda event: None, path):
            pass
        assert path.read_text() == content
    with pytest.raises(InputError, match="is no file"), logged(lambda event: None, tmp_path):
        pass
    with pytest.raises(InputError, match="cannot be written"), logged(lambda event: None, tmp_path / "absent" / "log.jsonl"):
        pass
    with pytest.raises(InputError, match="is no training log"):
        read_log(tmp_path / "notes.txt")


def test_event_files_of_tensorboard_or_one_sentence(tmp_path: Path) -> None:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        with pytest.raises(UnavailableError, match=r"pip install 'vsparse\[tensorboard\]'"), logged(lambda event: None, None, tmp_path):
            pass
        return
    with logged(lambda event: None, None, tmp_path / "runs") as reporter:
        reporter(steps(2.5))
    found = EventAccumulator(str(tmp_path / "runs" / "sparse"))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("step/loss")] == [(4, 2.5)]
