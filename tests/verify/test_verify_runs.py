"""Runs: the same certificate for any number of processes and after any interruption; nothing outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.verify import Certificate, certify
from vsparse.stages.verify.pool import judge_in_processes
from vsparse.worker import WorkerError

SETTINGS = Verify(batch_size=8, attack_steps=5, attack_restarts=2)
PERTURBATION, SAMPLES = PerturbationSet(epsilon="0.06"), 60
SCRIPT = """
import sys
from pathlib import Path
from vsparse.contract import CONTRACTS
from vsparse.data import load
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Data, Verify
from vsparse.stages.verify import certify
certify(Path(sys.argv[1]), load(Data(), None, 0).test, PerturbationSet(epsilon="0.06"), CONTRACTS["fp32"],
        Verify(batch_size=8, attack_steps=int(sys.argv[4]), attack_restarts=2), jobs=int(sys.argv[3]), state_directory=Path(sys.argv[2]),
        samples=60)
"""


def certificate_of(model: Path, data: Dataset, state: Path | None = None, jobs: int = 1, **changes: object) -> Certificate:
    """Certifies 60 digits in eight batches."""
    settings = SETTINGS.model_copy(update=changes)
    return certify(model, data, PERTURBATION, CONTRACTS["fp32"], settings, samples=SAMPLES, jobs=jobs, state_directory=state)


def test_the_number_of_processes_changes_nothing(digits_conv: Path, digits: Dataset) -> None:
    alone, together = certificate_of(digits_conv, digits), certificate_of(digits_conv, digits, jobs=2)
    assert alone.digest() == together.digest()
    assert [claim.verdict for claim in alone.claims] == [claim.verdict for claim in together.claims]


def test_a_killed_run_takes_up_where_it_stopped(digits_conv: Path, digits: Dataset, tmp_path: Path) -> None:
    state = tmp_path / "state"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(digits_conv), str(state), "1", "5"])
    deadline = time.monotonic() + 120
    while not list(state.glob("batch-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in state.glob("batch-*")}
    assert kept
    done: list[int] = []
    resumed = certify(
        digits_conv,
        digits,
        PERTURBATION,
        CONTRACTS["fp32"],
        SETTINGS,
        samples=SAMPLES,
        state_directory=state,
        progress=lambda count, total: done.append(count),
    )
    assert {name: (state / name).stat().st_mtime_ns for name in kept} == kept
    assert done[0] >= 8
    assert done == sorted(done)
    assert done[-1] == 60
    assert resumed.digest() == certificate_of(digits_conv, digits).digest()


def test_damaged_answers_are_judged_again(digits_conv: Path, digits: Dataset, tmp_path: Path) -> None:
    before = certificate_of(digits_conv, digits, tmp_path)
    answers = sorted(tmp_path.glob("batch-*"))
    assert len(answers) == 8
    answers[0].write_bytes(answers[0].read_bytes()[:100])
    answers[1].write_bytes(b"")
    answers[2].unlink()
    answers[3].write_bytes(answers[4].read_bytes()[:-30])
    assert certificate_of(digits_conv, digits, tmp_path).digest() == before.digest()


def test_answers_to_another_question_are_not_used(digits_conv: Path, digits: Dataset, tmp_path: Path) -> None:
    certificate_of(digits_conv, digits, tmp_path)
    other = certify(digits_conv, digits, PerturbationSet(epsilon="0.2"), CONTRACTS["fp32"], SETTINGS, state_directory=tmp_path, samples=60)
    assert other.digest() == certify(digits_conv, digits, PerturbationSet(epsilon="0.2"), CONTRACTS["fp32"], SETTINGS, samples=60).digest()


def test_an_answer_with_another_key_is_not_used(digits_conv: Path, digits: Dataset, tmp_path: Path) -> None:
    certificate_of(digits_conv, digits, tmp_path)
    answer = tmp_path / "batch-000000.npz"
    with np.load(answer) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["verdict"][:] = 0
    arrays["key"] = np.array("0" * 64)
    np.savez(answer, **arrays)
    assert certificate_of(digits_conv, digits, tmp_path).digest() == certificate_of(digits_conv, digits).digest()


def test_a_worker_that_dies_is_an_error_with_a_way_out(digits_conv: Path, digits: Dataset, tmp_path: Path) -> None:
    certificate_of(digits_conv, digits, tmp_path)
    (tmp_path / "samples.npz").write_bytes(b"not an archive")  # what a full disk may leave; the workers fail on it
    with pytest.raises(WorkerError, match="resume"):
        judge_in_processes(tmp_path, [0, 1, 2], 2, lambda batch: None)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to look for processes")
def test_workers_die_with_their_parent(digits_conv: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(digits_conv), str(state), "2", "5000"])
    deadline = time.monotonic() + 60
    while len(_workers(state)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(_workers(state)) == 2
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _workers(state) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _workers(state)


def _workers(state: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"vsparse.stages.verify.pool" in words and os.fsencode(state) in words:
                found.append(int(entry.name))
    return found
