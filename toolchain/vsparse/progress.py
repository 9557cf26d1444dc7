"""What a long-running call tells its caller while it works; the command line draws it, libraries may ignore it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# The stage of events about a whole build, such as the time that is left for it.
BUILD = "build"


@dataclass(frozen=True)
class Event:
    """What a stage reports; `done` and `total` count its own units (epochs, samples, runs), `text` is for a person.

    A `record` is for programs: `data` is plain values that JSON carries, such as the steps of an epoch (`vsparse.training_log`).
    `part` is the fraction of the next unit that is done too, and `left_s` about how many seconds the stage has left, where it knows. A
    `warning` is shown whether a person looks at the progress or not, a `note` only where one does.
    """

    kind: Literal["start", "progress", "done", "note", "warning", "record"]
    stage: str
    text: str = ""
    done: int = 0
    total: int = 0
    reused: bool = False
    seconds: float = 0.0
    part: float = 0.0
    left_s: float | None = None
    data: Mapping[str, Any] | None = None


Reporter = Callable[[Event], None]
# What sends a message of a worker process: plain values that JSON can carry.
Emit = Callable[[dict[str, Any]], None]


def silent(event: Event) -> None:
    """A reporter that ignores everything."""


def duration(seconds: float) -> str:
    """Words a duration as exactly as an estimate deserves: `12 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
