"""Units of work on a cluster: few at a time on their way, answers taken as they come, what a worker loses given to another.

What a unit answers depends on the unit alone, so that it does not matter where, how often, or in which order units are worked on.
"""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from statistics import median
from time import monotonic
from typing import Any

from distributed import Future, KilledWorker

from vsparse.cluster.client import Cluster, require_same
from vsparse.cluster.remote import keep, perform, release
from vsparse.cluster.versions import fingerprint
from vsparse.errors import ClusterError, InputError
from vsparse.files import sha256_bytes
from vsparse.worker import ERRORS, WorkerError

# How often a unit is given to another worker after one was lost with it.
TRIES = 3
LOOK_SECONDS = 1.0
THREADS_SECONDS = 5.0
# No work can go on for so long without any worker.
ALONE_SECONDS = 60.0
# A unit is given to a second worker once it has taken so long, and so many times the median, while workers are idle.
SLOW_SECONDS, SLOW_TIMES = 30.0, 3.0
AGAIN = "what is finished is kept, run the same command again to go on"


@dataclass(frozen=True)
class Unit:
    """One unit of work: what a worker is told, and the files that only this unit takes, read when it is sent."""

    name: str
    request: dict[str, Any]
    attached: Callable[[], dict[str, bytes]] = dict


@dataclass(frozen=True)
class UnitAnswer:
    """The answer to a unit: files by name, and a result of plain values."""

    files: dict[str, bytes]
    result: dict[str, Any]


@dataclass(frozen=True)
class Shared:
    """What all units of a run have in common: its id, the kind of process that works on them, and files that every worker keeps.

    `folders` are made anew for each unit of a kind that is a task of `vsparse.worker`. `remedy` ends the sentence about memory.
    """

    run: str
    kind: str
    kept: Mapping[str, bytes]
    folders: tuple[str, ...] = ()
    remedy: str = "give the workers more memory"


@dataclass
class Flight:
    """A unit on its way: when it was last sent, how often it was lost, and its futures."""

    unit: Unit
    sent: float
    lost: int = 0
    futures: list[Future] = field(default_factory=list)
    avoid: list[str] = field(default_factory=list)


class Engine:
    """Works through the units of one run; use it once."""

    def __init__(self, cluster: Cluster, shared: Shared, stopped: Callable[[], bool] = lambda: False) -> None:
        self.cluster, self.client, self.shared, self.stopped = cluster, cluster.client, shared, stopped
        self.hashes = {name: sha256_bytes(data) for name, data in shared.kept.items()}
        self.flights: dict[str, Flight] = {}
        self.of_future: dict[str, str] = {}
        self.arrived: SimpleQueue[Future] = SimpleQueue()
        self.took: deque[float] = deque(maxlen=200)
        self.threads, self.looked, self.alone_since = max(1, cluster.threads()), monotonic(), monotonic()
        self.count = 0
        self.refusing: set[str] = set()

    def run(self, units: Iterable[Unit], done: Callable[[Unit, UnitAnswer], Iterable[Unit]]) -> None:
        """Works through units and those that `done(unit, answer)` returns, which are taken first; `done` is called from this thread.

        Raises the user's errors that a unit met; InputError for a unit whose workers were killed and for a worker of another version,
        ClusterError where the cluster is lost, WorkerError where the run is stopped. Whatever ends it, nothing of it goes on.
        """
        waiting = deque(units)
        try:
            while waiting or self.flights:
                while waiting and len(self.flights) < 2 * self.threads + 2:
                    unit = waiting.popleft()
                    self.flights[unit.name] = Flight(unit, monotonic())
                    self._send(self.flights[unit.name])
                if not waiting:
                    self._send_slow_ones_again()
                self._look()
                with suppress(Empty):
                    found = self._finished(self.arrived.get(timeout=LOOK_SECONDS))
                    if found is not None:
                        waiting.extendleft(reversed(list(done(*found))))
        finally:
            self._end()

    def _send(self, flight: Flight) -> None:
        """Sends a unit to a worker, to one that has not lost it before where there is another."""
        self.count += 1
        shared, unit = self.shared, flight.unit
        text = json.dumps(
            {
                "run": shared.run,
                "kind": shared.kind,
                "kept": self.hashes,
                "folders": shared.folders,
                "unit": unit.request,
                "fingerprint": fingerprint(),
                "topic": topic(shared.run),
            }
        )
        others = self._others(flight)
        flight.sent = monotonic()
        attached = unit.attached()
        with self._losing(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the size of what is attached
            future = self.client.submit(
                perform,
                text,
                attached,
                key=f"vsparse-{shared.run[:16]}-{id(self):x}-{self.count}",
                pure=False,
                workers=others,
                allow_other_workers=others is not None,
            )
        flight.futures.append(future)
        self.of_future[future.key] = unit.name
        future.add_done_callback(self.arrived.put)

    def _others(self, flight: Flight) -> list[str] | None:
        """Returns the workers that have not lost the unit and refuse none; None where all may take it, or there are no such workers."""
        avoided = {*flight.avoid, *self.refusing}
        if not avoided:
            return None
        with suppress(Exception):
            return [worker for worker in self.client.nthreads() if worker not in avoided] or None
        return None

    def _finished(self, future: Future) -> tuple[Unit, UnitAnswer] | None:
        """Returns the unit that a future has answered, with its answer; None where it goes on, or another was quicker."""
        flight = self.flights.get(self.of_future.pop(future.key, ""))
        if flight is None:
            return None
        flight.futures = [one for one in flight.futures if one.key != future.key]
        answer = self._answer(flight, future)
        future.release()
        if answer is None:
            return None
        if "files" in answer:
            self.took.append(monotonic() - flight.sent)
            self._drop(flight)
            return flight.unit, UnitAnswer(answer["files"], answer["result"])
        worker = str(answer["worker"])
        if "refused" in answer:
            # A worker that came later; it would go on taking units and refusing them.
            self.refusing.add(worker)
            if self._others(flight) is None:
                require_same(self.cluster.address, worker, str(answer["refused"]))
            self._send(flight)
        elif "missing" in answer:
            self._supply(worker, answer["missing"])
            self._send(flight)
        elif "error" in answer:
            kind = ERRORS.get(str(answer["error"]), RuntimeError)
            raise kind(str(answer["message"]))
        elif "memory" in answer:
            flight.avoid.append(worker)
            self._lost(flight, str(answer["memory"]))
        elif not flight.futures:
            self._send(flight)
        return None

    def _answer(self, flight: Flight, future: Future) -> dict[str, Any] | None:
        """Returns what a worker answered, or None where it was lost with the unit, which is then sent again."""
        if future.status == "finished":
            try:
                answer: dict[str, Any] = future.result(timeout=60)
                return answer
            except Exception as error:  # the worker is gone, and its answer with it
                self._lost(flight, f"its answer was lost ({type(error).__name__})")
                return None
        if future.status == "error":
            raised = future.exception(timeout=60)
            if isinstance(raised, KilledWorker):
                flight.lost = TRIES
                self._lost(flight, "its workers died, perhaps for lack of memory")
            self._lost(flight, f"{type(raised).__name__}: {raised}"[:300])
            return None
        self._require_connected()
        self._lost(flight, "the scheduler dropped it")
        return None

    def _lost(self, flight: Flight, reason: str) -> None:
        """Sends a unit again, or gives up after TRIES."""
        flight.lost += 1
        if flight.lost > TRIES:
            raise InputError(
                f"--cluster {self.cluster.address}: {flight.unit.name} was lost on {TRIES + 1} workers ({reason}); "
                f"{self.shared.remedy}; {AGAIN}"
            )
        if not flight.futures:
            self._send(flight)

    def _supply(self, worker: str, hashes: list[str]) -> None:
        """Sends a worker the files that it has not yet: each once."""
        names = {sha256: name for name, sha256 in self.hashes.items()}
        for sha256 in hashes:
            with self._losing():
                found = self.client.run(keep, sha256, self.shared.kept[names[sha256]], workers=[worker], on_error="return")
            if found.get(worker) is False:
                raise WorkerError(f"--cluster {self.cluster.address}: {names[sha256]} arrived damaged on worker {worker}; {AGAIN}")

    def _send_slow_ones_again(self) -> None:
        """Gives the slowest unit to a second worker while some are idle; whoever answers first is taken, and answers the same."""
        if len(self.of_future) >= self.threads or not self.flights or not self.took:
            return
        slowest = min(self.flights.values(), key=lambda flight: flight.sent)
        if len(slowest.futures) == 1 and monotonic() - slowest.sent > max(SLOW_SECONDS, SLOW_TIMES * median(self.took)):
            sent = slowest.sent
            self._send(slowest)
            slowest.sent = sent

    def _look(self) -> None:
        """Raises where the run was stopped or the cluster is lost; counts its workers from time to time."""
        if self.stopped():
            raise WorkerError("the run was stopped; run the same command again to resume")
        self._require_connected()
        now = monotonic()
        if now - self.looked < THREADS_SECONDS:
            return
        self.looked = now
        threads = self.cluster.threads()
        self.threads = max(1, threads)
        self.alone_since = now if threads else self.alone_since
        if now - self.alone_since > ALONE_SECONDS:
            raise ClusterError(f"--cluster {self.cluster.address}: all workers have been gone for {ALONE_SECONDS:g} s; {AGAIN}")

    def _require_connected(self) -> None:
        if not self.cluster.connected:
            raise ClusterError(f"--cluster {self.cluster.address}: the cluster was lost in the middle; {AGAIN}")

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Whatever Dask raises where something is sent, the cluster is not there to get it."""
        try:
            yield
        except Exception as error:
            raise ClusterError(f"--cluster {self.cluster.address}: the cluster was lost in the middle ({error}); {AGAIN}") from error

    def _drop(self, flight: Flight) -> None:
        del self.flights[flight.unit.name]
        for future in flight.futures:
            self.of_future.pop(future.key, None)
            with suppress(Exception):
                future.cancel()

    def _end(self) -> None:
        """Ends what is still on its way, and the processes of the run."""
        for flight in list(self.flights.values()):
            self._drop(flight)
        if self.cluster.connected:
            with suppress(Exception):
                self.client.run(release, self.shared.run, on_error="ignore")


def topic(run: str) -> str:
    """The topic under which workers tell how far a task is."""
    return f"vsparse-{run}"
