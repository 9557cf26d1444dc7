"""Limits of time and memory that are kept: the work is done by a process of its own, which is watched from outside and can be ended."""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from vsparse.errors import InputError
from vsparse.worker import ERRORS, start

UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
# Where nothing says what is free.
SUPPOSED_FREE = 2 * 2**30
# Memory is measured so often; between two looks a process can take about a gigabyte more at most, and mostly far less.
LOOK_SECONDS = 0.04
# A worker knows the deadline too, and so long after it at most it is ended.
GRACE_SECONDS = 0.2


def parse_memory(text: str) -> int:
    """Returns the bytes that `4GiB` or `500MB` says; InputError for anything else, and for less than a byte."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([A-Za-z]{1,3})", text)
    if match is None or match[2] not in UNITS or (size := int(float(match[1]) * UNITS[match[2]])) < 1:
        raise InputError(f'--memory "{text[:40]}" is no size; write a number with its unit, such as 4GiB or 500MB')
    return size


def free_memory() -> int:
    """Returns the bytes that new processes can take: what the machine has available, or the rest of this process's control group."""
    free = [SUPPOSED_FREE]
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        free = [int(text.split("MemAvailable:", 1)[1].split()[0]) * 1024]
    for most, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with suppress(OSError, ValueError):
            root = Path("/sys/fs/cgroup")
            free.append(int((root / most).read_text()) - int((root / used).read_text()))
    return max(1, min(free))


def process_started() -> float:
    """Returns when this process was started, in the time of `time.monotonic`; now, where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
        return monotonic() - max(0.0, age)
    return monotonic()


def resident(process: int) -> int:
    """Returns the bytes of memory that a process and those it started hold now; 0 where the system does not say."""
    total, todo = 0, [process]
    while todo:
        folder = Path("/proc", str(todo.pop()))
        with suppress(OSError, ValueError, IndexError):
            total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for thread in (folder / "task").iterdir():
                todo += [int(child) for child in (thread / "children").read_text().split()]
    return total


@dataclass(frozen=True)
class Ended:
    """How a watched task ended: with a `result`, at a limit, or killed by someone else; `peak_bytes` is the most memory that was seen."""

    why: Literal["done", "time", "memory", "killed"]
    result: dict[str, Any] | None
    peak_bytes: int


def run_limited(
    task: str, payload: dict[str, Any], *, deadline: float, memory_bytes: int, on_message: Callable[[dict[str, Any]], None]
) -> Ended:
    """Runs a task of `vsparse.worker` in a process of its own, which is killed at `deadline` (of `time.monotonic`; may be infinite), and
    when it holds more than `memory_bytes`.

    `on_message` gets each message that the task emits on its way. The task's own errors are raised here. It never outlives the caller:
    leaving this function kills it, and the system does so when this process ends, however it ends.
    """
    process = start(task, keep_memory=False)
    peak = 0
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError), process.stdin as stream:
            json.dump(payload, stream)
        pipe, pending = process.stdout.fileno(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                left = deadline + GRACE_SECONDS - monotonic()
                if left <= 0:
                    return Ended("time", None, peak)
                if selector.select(min(LOOK_SECONDS, left)):
                    data = os.read(pipe, 2**20)
                    if not data:
                        return Ended("killed", None, peak)
                    *lines, pending = (pending + data).split(b"\n")
                    for line in lines:
                        message: dict[str, Any] = json.loads(line)
                        if "result" in message:
                            return Ended("done", message["result"], peak)
                        if "error" in message:
                            raise _error(message["error"], message["message"])
                        on_message(message)
                peak = max(peak, resident(process.pid))
                if peak > memory_bytes:
                    return Ended("memory", None, peak)
    finally:
        end(process)


def _error(kind: str, message: str) -> Exception:
    """Returns the error that a worker told of; of one that is no user's mistake the last line, its traceback as a note."""
    if kind in ERRORS:
        return ERRORS[kind](message)
    error = RuntimeError(message.strip().rpartition("\n")[2])
    error.add_note(message)
    return error


def end(process: subprocess.Popen[str]) -> None:
    """Kills a process that was started in a session of its own, with all that it started, and waits for it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def deadline_of(started: float, timeout: float | None) -> float:
    """Returns when a timeout in seconds ends; InputError for one that is negative or no number."""
    if timeout is not None and not timeout >= 0:
        raise InputError(f"--timeout {timeout} is no time; give seconds, 0 or more")
    return inf if timeout is None else started + timeout
