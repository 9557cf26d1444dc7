"""A property asked in a process of its own, so that its limits of time and memory are kept whatever the search is doing."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Any

from vsparse.answer import Answer, Answered, Witness
from vsparse.contract import contract as contract_named
from vsparse.files import write_bytes
from vsparse.limits import deadline_of, free_memory, parse_memory, run_limited
from vsparse.notebook_progress import in_notebook
from vsparse.progress import Event, Reporter
from vsparse.recipe import Verify
from vsparse.schema import validate

MIB = 2**20


def verify_property(
    model: Path,
    property: Path,
    *,
    contract: str | None = None,
    timeout: float | None = None,
    memory: str | int | None = None,
    out: Path | None = None,
    seed: int = 0,
    jobs: int | None = None,
    started: float | None = None,
    device: str = "cpu",
    reporter: Reporter = in_notebook,
) -> Answer:
    """Answers a VNN-LIB property about an ONNX network; writes the answer to `out` as VNN-COMP does, where it is given.

    `timeout` is in seconds from `started` (of `time.monotonic`; default: now; `timeout` None: no limit). `memory`, bytes or a text such
    as 4GiB, is what the search may hold; default: half of what is free. Beyond it the answer is `unknown`. Both are kept by a process
    that is ended at the limit; a witness that was found by then is not lost. `device` is that of bounds, attacks and searches: cpu, cuda,
    cuda:N or auto.
    Raises InputError for a model or property that cannot be read, that do not fit each other, or whose operators have no bounds, and
    GateError where ONNX Runtime would execute other weights than the file's, UnavailableError for a device that is not here.
    """
    started = monotonic() if started is None else started
    chosen = contract_named(contract or "fp32").name
    device = validate(Verify, {"device": device}, "--device").device
    deadline = deadline_of(started, timeout)
    most = parse_memory(memory) if isinstance(memory, str) else memory if memory is not None else free_memory() // 2
    received = _Received(lambda domains: reporter(Event("progress", "verify", f"{domains} domains")))
    payload = {
        "model": str(model),
        "property": str(property),
        "contract": chosen,
        "deadline": deadline if isfinite(deadline) else None,  # the clock is the same for all processes of a machine
        "memory_bytes": most,
        "seed": seed,
        "jobs": jobs,
        "device": device,
    }
    ended = run_limited("query", payload, deadline=deadline, memory_bytes=most, on_message=received)
    verdict: Answered = "timeout" if ended.why == "time" else "unknown"
    reading: dict[str, Any] | None = None
    reason = "" if ended.why == "time" else _reason(ended.why, most)
    if ended.result is not None:
        answer = Answer.from_dict(ended.result)
        verdict, reason, received.domains, reading = answer.verdict, answer.reason, answer.domains, answer.reading
        received.witness = answer.witness or received.witness
    if received.witness is not None:
        verdict, reason = "sat", ""
    answer = Answer(verdict, chosen, received.witness, monotonic() - started, received.domains, reason, reading)
    if out is not None:
        write_bytes(out, (answer.text() + "\n").encode())
    return answer


class _Received:
    """What the messages of the search have told so far."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self.progress = progress
        self.domains = 0
        self.witness: Witness | None = None

    def __call__(self, message: dict[str, Any]) -> None:
        if "witness" in message:
            self.witness = Witness.from_dict(message["witness"])
        if "domains" in message:
            self.domains = message["domains"]
            self.progress(self.domains)


def _reason(why: str, memory_bytes: int) -> str:
    if why == "memory":
        return f"the search needs more than the {memory_bytes // MIB} MiB of memory that it may have; raise --memory"
    return "the search was killed from outside, perhaps for lack of memory; lower --memory below what the machine has free"
