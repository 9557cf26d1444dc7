"""A query in a worker process: emits what it finds at once, and answers `unknown` where memory runs out."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from vsparse.answer import Answer, Witness
from vsparse.compute_device import choose_device, device_label
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError
from vsparse.progress import Emit
from vsparse.stages.verify.device_memory import NOT_HELD
from vsparse.stages.verify.query import answer_query

NEWS_SECONDS = 0.2
# Messages of allocators out of memory; torch and ONNX Runtime have no exception of their own for it.
REFUSED = ("can't allocate memory", "bad_alloc", "not enough memory", "Failed to allocate", "can't start new thread", NOT_HELD)
MIB = 2**20


def query_task(payload: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Answers a query as `vsparse.ask` asks it; says {"witness": …} at once when there is one, and {"domains": …} now and then."""
    started = monotonic()
    timeout = inf if payload["deadline"] is None else payload["deadline"] - started
    memory, jobs = payload["memory_bytes"], payload["jobs"] or os.cpu_count() or 1
    device = choose_device(payload.get("device", "cpu"), "--device")
    torch.zeros(1, device=device)  # what a device's driver reserves in this process is no memory of the search
    _refuse_more_than(memory)
    told = 0.0

    def progress(domains: int) -> None:
        nonlocal told
        if monotonic() - told > NEWS_SECONDS:
            told = monotonic()
            emit({"domains": domains})

    def found(witness: Witness) -> None:
        emit({"witness": witness.as_dict()})

    contract = CONTRACTS[payload["contract"]]
    try:
        answer = answer_query(
            Path(payload["model"]),
            Path(payload["property"]),
            contract,
            timeout=timeout,
            memory_bytes=memory,
            jobs=jobs,
            seed=payload["seed"],
            started=started,
            progress=progress,
            found=found,
            device=device,
        )
    except (MemoryError, RuntimeError, InputError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in REFUSED):
            raise
        reason = f"the search needs more than the {memory // MIB} MiB of memory that it may have; raise --memory"
        if NOT_HELD in str(error):
            reason = f"the search needs more memory than {device_label(device)} has left, even in its smallest pieces"
        answer = Answer("unknown", contract.name, None, monotonic() - started, 0, reason)
    return answer.as_dict()


def _refuse_more_than(memory: int) -> None:
    """Lets the system refuse memory beyond the limit, which a watcher outside would notice too late."""
    with suppress(OSError, ValueError, IndexError):
        words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        held, counted = (int(words[key].split()[0]) * 1024 for key in ("RssAnon", "VmData"))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = counted - held + memory
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
