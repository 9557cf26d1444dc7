"""Worker processes: answers, errors by kind, and no orphans."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from vsparse import worker
from vsparse.errors import InputError
from vsparse.recipe import load_recipe
from vsparse.worker import WorkerError, Workers


def payload(**changes: Any) -> dict[str, Any]:
    recipe = load_recipe("digits", ["network.architecture=mlp", "train.epochs=1"]).model_dump(mode="json")
    return {"recipe": recipe, "data": None, "sparse": True, "scratch": "/nonexistent/scratch", "output": "/nonexistent/output", **changes}


def test_errors_of_a_worker_keep_their_kind() -> None:
    wanted = payload()
    wanted["recipe"]["network"]["architecture"] = "no-such-network"
    with Workers() as workers, pytest.raises(InputError, match="no-such-network"):
        workers.run("train", wanted, lambda message: None)


def test_a_worker_that_is_killed_is_an_error_not_a_result() -> None:
    with Workers() as workers:
        killer = threading.Timer(2.0, workers.stop)
        killer.start()
        started = time.monotonic()
        slow = payload()
        slow["recipe"]["train"]["epochs"] = 100_000
        with pytest.raises((WorkerError, InputError)):
            workers.run("train", slow, lambda message: None)
        assert time.monotonic() - started < 60
        with pytest.raises(WorkerError, match="resume"):
            workers.run("train", payload(), lambda message: None)


def test_a_worker_that_is_just_starting_when_all_are_stopped_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers()

    def stopped_meanwhile(task: str) -> subprocess.Popen[str]:
        sleeper = [sys.executable, "-c", "import time; time.sleep(30)"]
        process = subprocess.Popen(sleeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        workers.stop()
        return process

    monkeypatch.setattr(worker, "start", stopped_meanwhile)
    with pytest.raises(WorkerError, match="it was killed"):
        workers.run("train", {}, lambda message: None)
