"""One-thread worker processes: a stage's heavy part runs in its own process, reports by lines of JSON, and dies with its parent.

Started as `python -m vsparse.worker MODULE:FUNCTION` with a JSON object on stdin; the function gets that object and a
callback for progress. Only functions named in `TASKS` can be asked for.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from vsparse.errors import ClusterError, GateError, InputError, SoundnessError, UnavailableError, VsparseError
from vsparse.files import refused
from vsparse.progress import Emit

TASKS = {
    "query": ("vsparse.stages.verify.query_task", "query_task"),
    "train": ("vsparse.stages.train.parallel", "run_train_task"),
    "measure": ("vsparse.sweep.task", "measure_task"),
    "verify": ("vsparse.stages.verify.task", "verify_task"),
}
# The environment variable that tells a process who its parent is, to die with it.
PARENT = "VSPARSE_WORKER_PARENT"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# One thread each; and glibc keeps freed memory, as training takes and returns the same large blocks thousands of times.
ENVIRONMENT = {**ONE_THREAD, **dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(2**32))}


class WorkerError(VsparseError):
    """A worker ended without an answer: killed, or out of memory; what it had finished is kept (exit 2)."""


ERRORS: dict[str, type[VsparseError]] = {
    kind.__name__: kind for kind in (InputError, GateError, SoundnessError, UnavailableError, ClusterError, WorkerError)
}


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent ends, and ends at once if that has happened already."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Workers:
    """The worker processes of one call; leaving the block ends those that still run."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = threading.Event()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends every worker; calls to `run` that wait for one raise WorkerError."""
        self._stopped.set()
        for process in list(self._running):
            process.kill()

    def run(self, task: str, payload: dict[str, Any], progress: Emit) -> dict[str, Any]:
        """Runs one task in a process of its own and returns its answer; the worker's own errors are raised here."""
        if self._stopped.is_set():
            raise WorkerError("the build was stopped; run the same command again to resume")
        process = start(task)
        self._running.add(process)
        if self._stopped.is_set():
            process.kill()  # `stop` came while it was starting, and has not seen it
        try:
            return exchange(process, payload, progress)
        finally:
            process.kill()
            process.wait()
            self._running.discard(process)


def start(name: str, keep_memory: bool = True) -> subprocess.Popen[str]:
    """Starts the process of a task, in a session of its own; with `keep_memory` it does not give back to the system what it frees."""
    environment = {**os.environ, **(ENVIRONMENT if keep_memory else ONE_THREAD), PARENT: str(os.getpid())}
    return subprocess.Popen(
        [sys.executable, "-m", "vsparse.worker", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if not os.environ.get("VSPARSE_DEBUG") else None,
        text=True,
        env=environment,
        start_new_session=True,
    )


def exchange(process: subprocess.Popen[str], payload: dict[str, Any], progress: Emit) -> dict[str, Any]:
    """Gives a process its payload and returns its answer; raises its errors, and WorkerError where it ends without an answer."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a worker is started with pipes")
    try:
        with process.stdin as stream:
            json.dump(payload, stream)
    except BrokenPipeError:
        pass  # it died at once; the missing answer below says so
    for line in process.stdout:
        message: dict[str, Any] = json.loads(line)
        if "result" in message:
            result: dict[str, Any] = message["result"]
            return result
        if "error" in message:
            kind = ERRORS.get(message["error"])
            if kind is not None:
                raise kind(message["message"])
            raise RuntimeError(message["message"])
        progress(message)
    code = process.wait()
    cause = f"exit code {code}" if code >= 0 else f"signal {-code}"
    cause = "it was killed, perhaps for lack of memory" if code == -signal.SIGKILL else cause
    raise WorkerError(
        f"a worker process ended without an answer ({cause}); run the same command again to resume (VSPARSE_DEBUG=1 shows its messages)"
    )


def serve(work: Callable[[Emit], dict[str, Any]], answers: bool = True) -> bool:
    """Runs `work` in this process and writes its messages, its result (if it `answers`) or its error to stdout, a line each.

    Returns whether it ended without an error.
    """
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not disturb the conversation

    def emit(message: dict[str, Any]) -> None:
        stream.write(json.dumps(message) + "\n")
        stream.flush()

    try:
        result = work(emit)
        if answers:
            emit({"result": result})
        return True
    except VsparseError as error:
        emit({"error": type(error).__name__, "message": str(error)})
    except OSError as error:
        emit({"error": "InputError", "message": f"{refused(error)}; then run the same command again to go on"})
    except MemoryError:
        emit({"error": "InputError", "message": "out of memory; lower verify.batch_size or train.batch_size in the recipe"})
    except Exception:
        emit({"error": "Exception", "message": traceback.format_exc()})
    return False


def main() -> None:
    """Entry point of a worker process."""
    die_with_parent(int(os.environ.get(PARENT, os.getppid())))

    def work(emit: Emit) -> dict[str, Any]:
        module, function = TASKS[sys.argv[1]]
        import torch

        torch.set_num_threads(1)
        result: dict[str, Any] = getattr(importlib.import_module(module), function)(json.load(sys.stdin), emit)
        return result

    serve(work)


if __name__ == "__main__":
    main()
