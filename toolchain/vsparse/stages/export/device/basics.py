"""What every part of the device script uses: sentences with exit codes, files, gates."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any


class Stop(Exception):
    """Ends the run with a sentence and an exit code."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def say(text: str) -> None:
    """Prints progress where it does not mix with results."""
    print(text, file=sys.stderr, flush=True)


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


def output_of(command: list[str], seconds: float = 20) -> str:
    """Returns what a tool prints, or an empty text where it is absent or fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def read_all(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(1 << 26)
    except OSError:
        return ""


def gate(name: str, passed: bool | None, detail: str) -> dict[str, Any]:
    """A gate's outcome; `passed` None means that it was not examined."""
    return {"name": name, "passed": passed, "detail": detail}
