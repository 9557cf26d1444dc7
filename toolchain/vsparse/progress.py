"""What a long-running call tells its caller while it works; the command line draws it, libraries may ignore it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """What a stage reports; `done` and `total` count its own units (epochs, samples, runs), `text` is for a person.

    A `warning` is shown whether a person looks at the progress or not, a `note` only where one does.
    """

    kind: Literal["start", "progress", "done", "note", "warning"]
    stage: str
    text: str = ""
    done: int = 0
    total: int = 0
    reused: bool = False
    seconds: float = 0.0


Reporter = Callable[[Event], None]
# What sends a message of a worker process: plain values that JSON can carry.
Emit = Callable[[dict[str, Any]], None]


def silent(event: Event) -> None:
    """A reporter that ignores everything."""
