"""Stages side by side: the processes of a build are shared out once, whatever runs at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vsparse.errors import InputError
from vsparse.pipeline.build import resolve
from vsparse.pipeline.cache import StageCache
from vsparse.pipeline.plan import Plan, make_plan
from vsparse.pipeline.stage import Stage, run_stages
from vsparse.progress import Reporter, silent
from vsparse.worker import WorkerError, Workers

Work = Callable[[Path, Path, Workers, Reporter, int], None]


class Counted:
    """Work that ends when `at_once` stages are at it, and counts how many processes are in use while it runs."""

    def __init__(self, at_once: int) -> None:
        self.lock, self.barrier = threading.Lock(), threading.Barrier(at_once)
        self.now = self.most = 0
        self.given: list[int] = []

    def __call__(self, scratch: Path, output: Path, workers: Workers, report: Reporter, jobs: int) -> None:
        with self.lock:
            self.given.append(jobs)
            self.now += jobs
            self.most = max(self.most, self.now)
        self.barrier.wait(timeout=60)
        with self.lock:
            self.now -= jobs


def stages(work: Work, count: int, processes: int = 1, shares: bool = True) -> list[Stage]:
    return [Stage(f"s{i}", f"s{i}", f"{i:064d}", "", work, processes, shares) for i in range(count)]


def digits(jobs: int, *settings: str) -> Plan:
    recipe, target = resolve("digits", "local", ["network.architecture=mlp", "network.width=0.1", *settings])
    return make_plan(recipe, target, None, jobs)


@pytest.mark.parametrize(
    ("jobs", "count", "given"),
    [(16, 4, [4, 4, 4, 4]), (3, 2, [1, 2]), (2, 4, [1, 1, 1, 1]), (1, 3, [1, 1, 1]), (8, 1, [8])],
)
def test_jobs_are_shared_out_among_stages_that_run_at_once(tmp_path: Path, jobs: int, count: int, given: list[int]) -> None:
    counted = Counted(min(jobs, count))
    run_stages(StageCache(tmp_path), stages(counted, count), jobs, silent)
    assert sorted(counted.given) == given
    assert counted.most == jobs


def test_a_stage_is_given_what_it_needs_and_one_that_needs_more_than_there_are_runs_alone(tmp_path: Path) -> None:
    counted = Counted(2)
    run_stages(StageCache(tmp_path), stages(counted, 4, processes=2, shares=False), 5, silent)
    assert counted.given == [2, 2, 2, 2]
    assert counted.most == 4
    counted = Counted(1)
    run_stages(StageCache(tmp_path / "alone"), stages(counted, 3, processes=8, shares=False), 5, silent)
    assert counted.given == [5, 5, 5]
    assert counted.most == 5


def test_an_error_ends_what_waits_for_processes(tmp_path: Path) -> None:
    begun: list[int] = []

    def fails(scratch: Path, output: Path, workers: Workers, report: Reporter, jobs: int) -> None:
        begun.append(jobs)
        raise InputError("no good")

    with pytest.raises((InputError, WorkerError)):
        run_stages(StageCache(tmp_path), stages(fails, 4, processes=2, shares=False), 2, silent)
    assert 1 <= len(begun) <= 4


def test_the_forms_of_a_build_are_verified_within_its_jobs(tmp_path: Path) -> None:
    # Seen: 32 processes planned for --jobs 16, where two precisions were asked for.
    plan, counted = digits(16, 'export.precisions=["fp16", "int8"]'), Counted(4)
    group = plan.groups("report")[-2]
    assert [stage.name for stage in group] == ["verify-sparse", "verify-fp16", "verify-int8", "verify-dense"]
    run_stages(StageCache(tmp_path), [replace(stage, work=counted) for stage in group], plan.jobs, silent)
    assert sorted(counted.given) == [4, 4, 4, 4]
    assert counted.most == 16


def test_networks_that_are_trained_in_several_processes_each_are_trained_within_the_jobs(tmp_path: Path) -> None:
    plan, counted = digits(2, "train.processes=2"), Counted(1)
    group = plan.groups("train")[0]
    assert [stage.name for stage in group] == ["train-sparse", "train-dense"]
    run_stages(StageCache(tmp_path), [replace(stage, work=counted) for stage in group], plan.jobs, silent)
    assert counted.given == [2, 2]
    assert counted.most == 2
