"""Data parallelism in two gloo processes: the results of one, the same weights in both, one report, errors, and nobody left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import group_member
import pytest
import torch

from vsparse.errors import GateError, InputError
from vsparse.recipe import Recipe, load_recipe
from vsparse.schema import validate
from vsparse.stages.train.parallel import TASK, train_in_processes
from vsparse.worker import WorkerError, Workers

Found = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What two processes found, and where they left their weights."""
    folder = tmp_path_factory.mktemp("pair")
    script = [sys.executable, str(Path(group_member.__file__))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    members = [subprocess.Popen([*script, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE) for rank in (0, 1)]
    for member in members:
        _, said = member.communicate(timeout=300)
        assert member.returncode == 0, said.decode()
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_shares_sums_and_what_the_leader_says(pair: Found) -> None:
    for rank, found in enumerate(pair[1]):
        assert found["rank"] == rank
        assert found["sum"] == [[0.25 * 1 + 0.75 * 2, 10.0], [3.0]]
        assert found["heard"] == [1 / 3, 5.0]
    first, second = (found["parts"] for found in pair[1])
    assert first == [[0, 15], [0, 1], [0, 3]]
    assert second == [[15, 31], [1, 2], [3, 7]]


def test_weights_that_differ_in_the_last_bit_stop_every_process(pair: Found) -> None:
    for found in pair[1]:
        assert "no longer hold the same weights" in found["differ"]
        assert "train.processes = 1" in found["differ"]


def test_processes_on_different_devices_are_refused_in_each(pair: Found) -> None:
    for rank, found in enumerate(pair[1]):
        assert "are on different devices" in found["mixed"]
        assert f"of rank {rank}, on {('cpu', 'cuda')[rank]})" in found["mixed"]
        assert "set train.device" in found["mixed"]


def test_batches_too_small_to_share_are_refused(pair: Found) -> None:
    for found in pair[1]:
        assert found["too few"] == "batches of 1 samples cannot be shared by 2 processes; lower train.processes"
    with pytest.raises(InputError, match=r"batch_size = 3 cannot be shared by train\.processes = 4"):
        validate(Recipe, {"name": "x", "train": {"batch_size": 3, "processes": 4}}, "recipe x")


@pytest.mark.parametrize("name", [*group_member.ALIKE, *group_member.ANY])
def test_both_processes_hold_the_same_bits_and_know_the_same_history(pair: Found, name: str) -> None:
    folder, (first, second) = pair
    assert first[name] == second[name]
    one, other = (torch.load(folder / f"{name}.{rank}.pt") for rank in (0, 1))
    for kind in (0, 1):
        assert one[kind].keys() == other[kind].keys()
        assert all(torch.equal(value, other[kind][key]) for key, value in one[kind].items())


@pytest.mark.parametrize("name", group_member.ALIKE)
def test_two_processes_train_what_one_trains_up_to_rounding(pair: Found, tmp_path: Path, name: str) -> None:
    architecture, settings = group_member.ALIKE[name]
    alone = group_member.trained(architecture, settings, tmp_path)
    together, best = torch.load(pair[0] / f"{name}.0.pt")
    moved = {key: value.detach() for key, value in alone.state.params.items()}
    torch.testing.assert_close({key: value.detach() for key, value in together.items()}, moved, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(best, alone.best_params, rtol=1e-3, atol=1e-5)
    for row, wanted in zip(pair[1][0][name]["history"], alone.history, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)


def payload(folder: Path, *settings: str) -> dict[str, Any]:
    wanted = load_recipe("digits", ["network.architecture=mlp", "network.width=0.1", "train.processes=2", "train.sparsity=0", *settings])
    for name in ("scratch", "output"):
        (folder / name).mkdir()
    places = {"scratch": str(folder / "scratch"), "output": str(folder / "output")}
    return {"recipe": wanted.model_dump(mode="json"), "data": None, "sparse": False, **places}


def test_under_torchrun_an_error_comes_back_as_its_one_sentence(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    wanted = payload(tmp_path, "train.optimizer=sgd", "train.learning_rate=10", "train.gradient_clip=1e38", "train.regulariser=1e30")
    with pytest.raises(GateError, match=r"training diverged in epoch 1 of .*lower train\.learning_rate \(now 10\)"):
        train_in_processes(wanted, 2, said.append)
    assert not said


def running(task: Path) -> list[int]:
    """Returns the processes whose command line names the task."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(task).encode() in place.read_bytes():
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


def test_a_worker_that_is_killed_takes_torchrun_and_its_processes_along_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    wanted = payload(tmp_path, "train.epochs=2000")
    task = tmp_path / "scratch" / TASK
    epochs: list[int] = []
    with Workers() as workers:

        def count(news: dict[str, Any]) -> None:
            if "within" in news or "steps" in news:  # from inside an epoch
                return
            epochs.append(news["epoch"])
            if len(epochs) == 3:
                assert len(running(task)) == 3  # torchrun and the two
                threading.Thread(target=workers.stop).start()

        with pytest.raises(WorkerError, match="run the same command again"):
            workers.run("train", wanted, count)
    assert epochs[:3] == [1, 2, 3]  # one report an epoch
    deadline = time.monotonic() + 20
    while running(task) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(task)
    assert (tmp_path / "scratch" / "checkpoint.safetensors").is_file()
