"""What every part of the agent uses: sentences with exit codes, files, gates, processes that never outlive it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
from typing import Any

# Descriptors that every process of a run inherits: a lock of the supervisor, so that no other run starts beside one of them.
INHERITED: list[int] = []


class Stop(Exception):
    """Ends the run, or the measurement of one form, with a sentence and an exit code."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(clean(sentence, 2000))
        self.code = code


def say(text: str) -> None:
    """Prints progress where it does not mix with results."""
    print(clean(text, 2000), file=sys.stderr, flush=True)


def clean(text: str, limit: int = 300) -> str:
    """Returns text of a file or a tool on one line, without control characters, and not longer than `limit`."""
    return "".join(c if c.isprintable() else " " for c in text[: 4 * limit]).strip()[:limit]


# What results of an earlier run become when a run begins.
EARLIER = {"results.json": "results.previous.json", "results-certify.json": "results-certify.previous.json"}


def set_aside(folder: str, name: str) -> None:
    """Gives the results of an earlier run another name, so that where this one fails they are not taken for its own."""
    path = os.path.join(folder, name)
    if os.path.exists(path):
        os.replace(path, os.path.join(folder, EARLIER[name]))


def sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def read_text(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return stream.read(1 << 16).decode("utf-8", "replace")
    except OSError:
        return ""


def read_all(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(1 << 26)
    except OSError:
        return ""


def gate(name: str, passed: bool | None, detail: str) -> dict[str, Any]:
    """A gate's outcome; `passed` None means that it was not examined."""
    return {"name": name, "passed": passed, "detail": clean(detail, 2000)}


def failed(entry: dict[str, Any], stop: Stop) -> None:
    """Notes in an entry of the results that it did not run, and why."""
    entry["fault"], entry["fault_code"] = str(stop), stop.code
    entry.setdefault("gates", []).append(gate("run", False, str(stop)))
    say(str(stop))


def dies_with_parent() -> Any:
    """Returns what a new process calls first, so that the kernel kills it when this one ends, however it ends; None off Linux."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        library.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG

    return ask


def started(command: list[str], **given: Any) -> Any:
    """Starts a process that ends with this one and inherits the lock of the run; what Popen raises."""
    return subprocess.Popen(command, preexec_fn=dies_with_parent(), pass_fds=list(INHERITED), **given)


def finished(command: list[str], seconds: float, **given: Any) -> tuple[int, str]:
    """Runs a process to its end, and returns its code and what it printed; raises OSError and subprocess.TimeoutExpired."""
    process = started(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **given)
    try:
        text = process.communicate(timeout=seconds)[0]
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process.returncode, text.decode("utf-8", "replace")


def output_of(command: list[str], seconds: float = 20) -> str:
    """Returns what a tool prints, or an empty text where it is absent or fails."""
    try:
        code, text = finished(command, seconds)
    except (OSError, subprocess.SubprocessError):
        return ""
    return text if code == 0 else ""


def entries_of(folder: str) -> list[str]:
    """Returns the names in a folder in order; none where it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
