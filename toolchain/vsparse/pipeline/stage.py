"""A stage of the pipeline, and how stages run side by side: within one number of processes that is shared out among them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vsparse.pipeline.cache import StageCache
from vsparse.progress import Event, Reporter
from vsparse.worker import Workers


@dataclass(frozen=True)
class Stage:
    """One stage: its name in cache and lineage, its title for a person, its key, its folder in the artifact, and its work.

    `work(scratch, output, workers, reporter, jobs)` may compute in `jobs` processes at once. `processes` is how many it needs; a stage that
    `shares` is given more where there are more. `start_sha256` is the hash of the file that a training starts from.
    """

    name: str
    title: str
    key: str
    folder: str
    work: Callable[[Path, Path, Workers, Reporter, int], None]
    processes: int = 1
    shares: bool = False
    start_sha256: str = ""


class Allotment:
    """So many processes, shared out among the tasks that run side by side; what one gives back, the next to start can have."""

    def __init__(self, jobs: int, tasks: int) -> None:
        self._jobs = self._free = max(1, jobs)
        self._waiting = tasks
        self._changed = threading.Condition()

    @contextmanager
    def take(self, processes: int, shares: bool = False) -> Iterator[int]:
        """Waits until so many processes are free, and yields how many a task may use until the block is left: more where it `shares`.

        A task that needs more than there are altogether (train.processes says so) runs alone.
        """
        with self._changed:
            needed = min(processes, self._jobs)
            self._changed.wait_for(lambda: self._free >= needed)
            fair = self._free // min(self._waiting, self._free) if shares else needed
            given = max(needed, fair)
            self._waiting -= 1
            self._free -= given
        try:
            yield given
        finally:
            with self._changed:
                self._free += given
                self._changed.notify_all()


def run_stages(cache: StageCache, stages: list[Stage], jobs: int, reporter: Reporter) -> None:
    """Runs stages side by side in at most `jobs` processes altogether; the first error ends the others, and so does an interrupt."""
    lock, allotment = threading.Lock(), Allotment(jobs, len(stages))

    def report(event: Event) -> None:
        with lock:
            reporter(event)

    def one(stage: Stage, workers: Workers) -> None:
        with allotment.take(stage.processes, stage.shares) as given:
            report(Event("start", stage.title))
            directory, _ = cache.run(stage.name, stage.key, lambda scratch, output: stage.work(scratch, output, workers, report, given))
            report(Event("done", stage.title, seconds=cache.seconds(directory)))

    with Workers() as workers, ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        futures = [pool.submit(one, stage, workers) for stage in stages]
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=0.2)
                for future in done:
                    future.result()
        except BaseException:
            workers.stop()
            for future in futures:
                future.cancel()
            raise
