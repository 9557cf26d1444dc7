"""Worker processes that judge batches, one thread each, dead when their parent is: `python -m vsparse.stages.verify.pool DIRECTORY DEVICE`.

A worker reads the number of a batch from stdin, judges it, writes its answer into the directory and then the number to stdout.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from vsparse.errors import GateError, InputError, SoundnessError, UnavailableError, VsparseError
from vsparse.worker import ENVIRONMENT, WorkerError, die_with_parent

ERRORS: dict[str, type[VsparseError]] = {kind.__name__: kind for kind in (InputError, GateError, SoundnessError, UnavailableError)}
PARENT = "VSPARSE_WORKER_PARENT"


def judge_in_processes(directory: Path, batches: list[int], jobs: int, finished: Callable[[int], None], device: str = "auto") -> None:
    """Judges batches of the run in `directory` in `jobs` processes and calls `finished(batch)`, from one thread, for each.

    All processes compute on `device`. The first error ends all workers and is raised here: the user's errors as they are, WorkerError for
    a worker that was killed.
    """
    # Started by this thread: the kernel ends a child when the thread that started it ends.
    workers = [_start(directory, device) for _ in range(min(jobs, len(batches)))]
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    messages: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
    for batch in batches:
        todo.put(batch)
    try:
        for worker in workers:
            threading.Thread(target=_serve, args=(worker, todo, messages), daemon=True).start()
        for _ in batches:
            item = messages.get()
            if isinstance(item, BaseException):
                raise item
            finished(item)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _start(directory: Path, device: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vsparse.stages.verify.pool", str(directory), device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if not os.environ.get("VSPARSE_DEBUG") else None,
        text=True,
        env={**os.environ, **ENVIRONMENT, PARENT: str(os.getpid())},
        start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
    )


def _serve(worker: subprocess.Popen[str], todo: queue.SimpleQueue[int], messages: queue.SimpleQueue[int | BaseException]) -> None:
    """Hands batches to one worker until there are none."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    while True:
        try:
            batch = todo.get_nowait()
        except queue.Empty:
            return
        try:
            worker.stdin.write(f"{batch}\n")
            worker.stdin.flush()
            answer = json.loads(worker.stdout.readline() or "null")
        except (OSError, ValueError):
            answer = None
        if answer == batch:
            messages.put(batch)
            continue
        if isinstance(answer, dict):
            messages.put(ERRORS.get(answer["error"], WorkerError)(answer["message"]))
        else:
            messages.put(WorkerError("a verification worker was killed, perhaps for lack of memory; run the same command again to resume"))
        return


def main() -> None:
    """Entry point of a worker."""
    die_with_parent(int(os.environ[PARENT]))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not disturb the conversation
    from vsparse.stages.verify.batches import CascadeRun, one_thread

    try:
        run = CascadeRun.open(Path(sys.argv[1]), sys.argv[2])
        with one_thread():
            for line in sys.stdin:
                run.judge(int(line))
                print(int(line), file=answers, flush=True)
    except VsparseError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), file=answers, flush=True)
    except MemoryError:
        message = "there is not enough memory for a batch of this size; lower verify.batch_size"
        print(json.dumps({"error": "InputError", "message": message}), file=answers, flush=True)


if __name__ == "__main__":
    main()
