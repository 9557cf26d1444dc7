"""Data parallelism: the training task in several processes under torchrun, joined by gloo or NCCL, each with its shard of every batch.

The worker of the training stage calls `run_train_task`, which starts torchrun where a recipe has train.processes > 1. By hand, on
several machines too, with a task file (`write_task`) and folders that all of them see:

    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint HOST:29400 -m vsparse.stages.train.parallel TASK.json
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from vsparse.files import read_json, write_json
from vsparse.progress import Emit
from vsparse.worker import PARENT, WorkerError, die_with_parent, exchange, serve

TASK = "task.json"
MODULE = "vsparse.stages.train.parallel"


def write_task(payload: dict[str, Any], folder: Path) -> Path:
    """Writes a training task (recipe, data, sparse, scratch, output) where all its processes read it; returns its path."""
    write_json(folder / TASK, payload)
    return folder / TASK


def run_train_task(payload: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Runs a training task in this process, or in as many as its recipe's train.processes; `emit` gets a message after every epoch."""
    count = int(payload["recipe"]["train"]["processes"])
    if count > 1:
        return train_in_processes(payload, count, emit)
    from vsparse.stages.train.task import train_task  # torch, which the process that only starts torchrun does not need

    return train_task(payload, emit)


def train_in_processes(payload: dict[str, Any], count: int, emit: Emit) -> dict[str, Any]:
    """Runs a training task in `count` processes of this machine and returns its answer; their errors are raised here.

    torchrun runs in a process of its own that dies with this one, and what it has started dies with it.
    """
    task = write_task(payload, Path(payload["scratch"]))
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, str(task), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("VSPARSE_DEBUG") else subprocess.DEVNULL,
        text=True,
        # One machine needs no network but its own, whatever its name resolves to.
        env={"GLOO_SOCKET_IFNAME": "lo", **os.environ, PARENT: str(os.getpid())},
    )
    try:
        return exchange(process, {}, emit)
    finally:
        process.kill()
        process.wait()


def _launch(task: str, count: str) -> None:
    from torch.distributed.run import main as torchrun

    die_with_parent(int(os.environ[PARENT]))
    torchrun(["--standalone", "--nproc-per-node", count, "-m", MODULE, task])


def _join(task: str) -> None:
    """The part of one process of the group that torchrun describes in the environment."""
    die_with_parent(os.getppid())

    def work(emit: Emit) -> dict[str, Any]:
        # Imported only now: torch takes seconds, in which a parent that ends would go unnoticed.
        import torch
        import torch.distributed as dist

        from vsparse.stages.train.task import train_task

        torch.set_num_threads(1)
        payload = read_json(Path(task), "training task")
        dist.init_process_group("gloo")
        try:
            return train_task(payload, emit)
        except RuntimeError as error:
            if not any(name in str(error) for name in ("gloo", "NCCL")):
                raise
            raise WorkerError(
                "a process that trained along ended, perhaps for lack of memory; run the same command again to resume "
                "(VSPARSE_DEBUG=1 shows its messages)"
            ) from error

    # The other ranks write only an error, which closes their connections and so becomes an error of rank 0.
    if not serve(work, answers=os.environ["RANK"] == "0"):
        sys.exit(1)  # torchrun ends the others


def main() -> None:
    """Entry point: TASK.json under torchrun; TASK.json and a number of processes to start torchrun."""
    if len(sys.argv) == 3:
        _launch(*sys.argv[1:])
    else:
        _join(sys.argv[1])


if __name__ == "__main__":
    main()
