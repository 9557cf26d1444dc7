"""What runs on a worker: it keeps files by the hash of their content, and hands each unit of work to a process of one thread.

The client calls these functions through Dask. A unit is a JSON text and files; its answer is a dictionary of plain values and files.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from distributed import get_worker
from distributed.worker import thread_state

from vsparse.cluster.versions import differences, fingerprint
from vsparse.cluster.watched import Unwanted, WatchedProcess, served
from vsparse.files import sha256_bytes, write_bytes
from vsparse.worker import start

# The kinds of processes that answer unit after unit, of one run after the other: modules that take requests.
SERVED = {"verify": "vsparse.stages.verify.pieces_process"}
KEPT, RUNS = "vsparse-kept", "vsparse-run-"
KILLED = "it was killed, perhaps for lack of memory"


@dataclass
class Conversation:
    """A process that answers units of a kind, its folder, and the run that it works for or did last."""

    kind: str
    folder: Path
    process: WatchedProcess
    run: str = ""

    def folder_of(self, run: str, kept: dict[str, str]) -> Path:
        """Returns the folder of a run, with the files that the run keeps; that of the run before goes."""
        folder = self.folder / run
        if run != self.run:
            shutil.rmtree(self.folder / self.run, ignore_errors=True) if self.run else None
            for name, sha256 in kept.items():
                folder.mkdir(exist_ok=True)
                shutil.copyfile(_kept(sha256), folder / name)
            self.run = run
        return folder

    def end(self) -> None:
        """Ends the process and removes its folder."""
        self.process.end()
        shutil.rmtree(self.folder, ignore_errors=True)


_idle: list[Conversation] = []
_busy: list[Conversation] = []
_lock = Lock()


def keep(sha256: str, data: bytes, dask_worker: Any = None) -> bool:
    """Keeps a file under its hash in this worker's own folder; returns False where what arrived is something else."""
    if sha256_bytes(data) != sha256:
        return False
    write_bytes(Path(dask_worker.local_directory, KEPT, sha256), data, durable=False)
    return True


def release(run: str) -> None:
    """Ends the processes that work for a run on this worker; idle ones end by themselves if nothing comes for a while."""
    with _lock:
        ended = [one for one in _busy if one.run == run]
    for one in ended:
        one.end()


def perform(text: str, attached: dict[str, bytes]) -> dict[str, Any]:
    """Performs one unit of work.

    The answer has one of the keys `files` (by name, with `result`), `error` with its `message`, `refused` (how this worker differs),
    `missing` (hashes of files to send first), `memory` (the process had to be ended), `unwanted`; and always `worker`.
    """
    request = json.loads(text)
    worker = get_worker()
    answer: dict[str, Any] = {"worker": worker.address}
    other = differences(request["fingerprint"], fingerprint())
    if other:
        return {**answer, "refused": other}
    missing = [sha256 for sha256 in request["kept"].values() if not _kept(sha256).is_file()]
    if missing:
        return {**answer, "missing": sorted(set(missing))}
    limit = worker.memory_manager.memory_limit
    memory = None if limit is None else int(0.95 * limit / max(1, worker.state.nthreads))
    work = _serve if request["kind"] in SERVED else _run
    try:
        return {**answer, **work(request, attached, _wanted(worker), memory)}
    except Unwanted:
        return {**answer, "unwanted": True}
    except MemoryError:
        return {**answer, "memory": f"it needed more than the {(memory or 0) / 2**30:.1f} GiB of the worker"}


def _serve(request: dict[str, Any], attached: dict[str, bytes], wanted: Callable[[], bool], memory: int | None) -> dict[str, Any]:
    """Asks a process of the kind: one that is idle, or a new one."""
    one = _taken(request["kind"], request["run"])
    try:
        folder = one.folder_of(request["run"], request["kept"])
        for name, data in attached.items():
            write_bytes(folder / name, data, durable=False)
        one.process.say(json.dumps({**request["unit"], "folder": str(folder)}) + "\n")
        message = one.process.hear(wanted, memory)
    except BaseException:
        _given_back(one, whole=False)
        raise
    answered = message is not None and "files" in message
    files = {name: (folder / name).read_bytes() for name in message["files"]} if message is not None and answered else {}
    for name in (*attached, *files):
        (folder / name).unlink(missing_ok=True)
    _given_back(one, whole=answered)
    if message is None:
        return {"memory": _end_of(one.process)}
    return {"files": files, "result": {}} if answered else message


def _run(request: dict[str, Any], attached: dict[str, bytes], wanted: Callable[[], bool], memory: int | None) -> dict[str, Any]:
    """Runs one task of `vsparse.worker` in a process and folders of its own; returns what it wrote to its output."""
    with tempfile.TemporaryDirectory(dir=_own_folder(), prefix=RUNS) as folder:
        payload = dict(request["unit"])
        for name in request["folders"]:
            payload[name] = str(Path(folder, name))
            os.mkdir(payload[name])
        for name, sha256 in request["kept"].items():
            payload[name] = str(_kept(sha256))
        for name, data in attached.items():
            payload[name] = str(Path(folder, name))
            write_bytes(Path(folder, name), data, durable=False)
        process = WatchedProcess(start(request["kind"]))
        try:
            process.say(json.dumps(payload), close=True)
            while True:
                message = process.hear(wanted, memory)
                if message is None:
                    return {"memory": _end_of(process)}
                if "error" in message:
                    return message
                if "result" in message:
                    return {"files": _files(Path(folder, "output")), "result": message["result"]}
                with suppress(Exception):  # a line for the eye; the work goes on without
                    get_worker().log_event(request["topic"], message)
        finally:
            process.end()


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _end_of(process: WatchedProcess) -> str:
    code = process.process.wait()
    return KILLED if code == -signal.SIGKILL else f"it ended without an answer ({f'exit code {code}' if code >= 0 else f'signal {-code}'})"


def _taken(kind: str, run: str) -> Conversation:
    """Returns an idle process of the kind, best one that knows the run, or starts one; those that have ended are cleared away."""
    with _lock:
        ended = [one for one in _idle if one.process.process.poll() is not None]
        able = [one for one in _idle if one not in ended and one.kind == kind]
        able.sort(key=lambda one: one.run != run)
        _idle[:] = [one for one in _idle if one not in ended and one not in able[:1]]
        _busy.extend(able[:1])
    for one in ended:
        one.end()
    if able:
        return able[0]
    folder = Path(tempfile.mkdtemp(dir=_own_folder(), prefix=RUNS))
    one = Conversation(kind, folder, served(SERVED[kind]))
    with _lock:
        _busy.append(one)
    return one


def _given_back(one: Conversation, whole: bool) -> None:
    """Puts a process back among the idle ones; one that is not `whole` is ended."""
    with _lock:
        _busy.remove(one)
        if whole:
            _idle.append(one)
    if not whole:
        one.end()


def _wanted(worker: Any) -> Callable[[], bool]:
    """Returns a function that says whether the task of this thread is still to be answered."""
    key = getattr(thread_state, "key", None)

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state != "cancelled"

    return wanted


def _own_folder() -> Path:
    """This worker's own folder, which Dask removes with the worker."""
    return Path(get_worker().local_directory)


def _kept(sha256: str) -> Path:
    return _own_folder() / KEPT / sha256
