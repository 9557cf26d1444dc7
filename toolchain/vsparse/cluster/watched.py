"""Processes on a worker that answer in lines of JSON, and are ended when nobody wants the answer or their memory is too much."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any

from vsparse.limits import end, resident
from vsparse.worker import ENVIRONMENT, PARENT

LOOK_SECONDS = 0.2


class Unwanted(Exception):
    """Nobody waits for the answer any more."""


class WatchedProcess:
    """A process with pipes, started by `served` or `vsparse.worker.start`; it dies with the thread that started it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._next_look = monotonic() + LOOK_SECONDS
        Thread(target=self._read, daemon=True).start()

    def say(self, text: str, close: bool = False) -> None:
        """Writes to the process; one that has ended is found out by `hear`."""
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):
            self.process.stdin.write(text)
            self.process.stdin.flush()
            if close:
                self.process.stdin.close()

    def hear(self, wanted: Callable[[], bool], memory: int | None) -> dict[str, Any] | None:
        """Returns the next message, or None where the process has ended.

        Raises Unwanted when `wanted()` is no longer true, and MemoryError where it holds more than `memory` bytes; either ends it.
        """
        while True:
            if monotonic() > self._next_look:
                self._next_look = monotonic() + LOOK_SECONDS
                if not wanted():
                    self.end()
                    raise Unwanted
                if memory and resident(self.process.pid) > memory:
                    self.end()
                    raise MemoryError
            try:
                line = self._lines.get(timeout=LOOK_SECONDS)
            except Empty:
                continue
            if line is None:
                return None
            with suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    return message
            return None  # the line of a process that was killed while it wrote

    def end(self) -> None:
        """Kills the process with all that it started."""
        end(self.process)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with suppress(OSError, ValueError):
            for line in self.process.stdout:
                self._lines.put(line)
        self._lines.put(None)


def served(module: str) -> WatchedProcess:
    """Starts `python -m MODULE` in one thread, which answers requests, a line each, until it is ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if not os.environ.get("VSPARSE_DEBUG") else None,
        text=True,
        env={**os.environ, **ENVIRONMENT, PARENT: str(os.getpid())},
        start_new_session=True,
    )
    return WatchedProcess(process)
