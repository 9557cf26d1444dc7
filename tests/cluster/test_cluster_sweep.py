"""A sweep on two workers trains the networks of one machine, and its data travel once to each worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vsparse.cli import run
from vsparse.cluster.engine import Engine
from vsparse.data import load
from vsparse.data.packed import pack_splits, unpack_splits
from vsparse.errors import ClusterError, InputError
from vsparse.progress import Event
from vsparse.recipe import Data, load_recipe
from vsparse.sweep import train_sweep
from vsparse.sweep.on_cluster import require_travels

SMALL = ["network.architecture=mlp", "network.width=0.25", "train.epochs=1", "train.ramp=0.3", "property.epsilon='0.01'"]
SWEEP = ["train.sparsity=[0, 0.5]"]


def numbers(directory: Path) -> list[Any]:
    """Returns what the trainings reached, their times left out."""
    content = json.loads((directory / "sweep.json").read_text())
    return [{**run["measured"], "train_seconds": 0} for row in content["configurations"] for run in row["runs"]]


def test_a_sweep_on_two_workers(two_workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supplied: list[str] = []
    plain: Callable[[Engine, str, list[str]], None] = Engine._supply

    def counted(engine: Engine, worker: str, hashes: list[str]) -> None:
        supplied.extend(name for name, sha256 in engine.hashes.items() if sha256 in hashes)
        plain(engine, worker, hashes)

    monkeypatch.setattr(Engine, "_supply", counted)
    events: list[Event] = []
    train_sweep("digits", SWEEP, settings=SMALL, out=tmp_path / "there", cluster=two_workers, reporter=events.append)
    assert 1 <= supplied.count("splits") <= 2, "the data go once to each worker"
    assert any("loss" in event.text for event in events), "how far a training is, is told"
    found = numbers(tmp_path / "there")
    assert [run["epochs_trained"] for run in found] == [1, 1]
    assert found[1]["nonzero_weights"] < found[0]["nonzero_weights"]


@pytest.mark.slow
def test_a_sweep_on_two_workers_finds_what_one_machine_finds(two_workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cluster in (("there", two_workers), ("here", None)):
        monkeypatch.setenv("VSPARSE_CACHE", str(tmp_path / f"cache-{name}"))
        train_sweep("digits", SWEEP, settings=SMALL, out=tmp_path / name, jobs=2, cluster=cluster)
    assert numbers(tmp_path / "there") == numbers(tmp_path / "here")


def test_a_lost_cluster_ends_a_sweep_and_is_no_rows_failure(two_workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(engine: Engine, *work: object) -> None:
        raise ClusterError("the cluster was lost")

    monkeypatch.setattr(Engine, "run", lose)
    monkeypatch.setenv("VSPARSE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ClusterError):
        train_sweep("digits", SWEEP, settings=SMALL, out=tmp_path / "lost", cluster=two_workers)
    assert not (tmp_path / "lost" / "sweep.json").exists()


def test_splits_travel_whole(tmp_path: Path) -> None:
    splits = load(Data(), None, 3)
    (tmp_path / "splits.npz").write_bytes(pack_splits(splits))
    found = unpack_splits(tmp_path / "splits.npz")
    assert (found.name, found.sha256, found.origins, found.notes) == (splits.name, splits.sha256, splits.origins, splits.notes)
    for name in ("train", "validation", "test"):
        mine, theirs = getattr(found, name), getattr(splits, name)
        assert (mine.scale, mine.classes) == (theirs.scale, theirs.classes)
        assert mine.pixels.dtype == theirs.pixels.dtype
        assert (mine.pixels == theirs.pixels).all()
        assert (mine.labels == theirs.labels).all()
    assert pack_splits(found) == pack_splits(splits)
    (tmp_path / "splits.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="cannot be read"):
        unpack_splits(tmp_path / "splits.npz")


def test_code_of_ones_own_does_not_travel() -> None:
    with pytest.raises(InputError, match="code of your own"):
        require_travels(load_recipe("digits", ["train.objective=mine:Objective"]))


def test_an_address_that_is_none_and_a_missing_extra_are_told_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = str(tmp_path / "absent.onnx")
    ask = ["verify", network, "--data", "digits", "--epsilon", "0.1", "--cluster"]
    for address in ("foo", "local:0", "local:999", "local:x", "tcp://host", "tcp://host:0", "http://host:80", "tcp://:1", ""):
        assert run([*ask, address]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert "--cluster" in err
        assert len(err.splitlines()) == 1
    assert run(["verify", network, "--property", "x.vnnlib", "--cluster", "local:2"]) == 2
    assert run(["train", "digits", "--cluster", "local:2"]) == 2
    assert "goes with --sweep" in capfd.readouterr().err
    monkeypatch.setattr("vsparse.cluster.opened.find_spec", lambda name: None)
    for command in (ask, ["build", "digits", "--cluster"], ["train", "digits", "--sweep", "train.sparsity=[0]", "--cluster"]):
        assert run([*command, "local:2"]) == 3
        assert "pip install 'vsparse[cluster]'" in capfd.readouterr().err
