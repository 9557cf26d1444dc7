"""About how long a build still takes: from what its stages say of themselves, and from how long they took in the last build."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from vsparse.pipeline.stage import Stage
from vsparse.progress import BUILD, Event, Reporter, duration

# Seconds between two estimates; and the fraction of a stage below which its pace says nothing yet.
EVERY, ENOUGH = 1.0, 0.02


class TimeLeft:
    """Passes events on, and adds an estimate of the time that is left for all stages together.

    A stage that runs says itself how long it needs, or is taken to go on at its pace; one that waits takes as long as in the artifact
    that is to be replaced (`before`, seconds by the stage's name). Of a stage about which nothing is known, the estimate says so. Stages
    of a group run side by side in `jobs` processes.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Stage]],
        before: Mapping[str, float],
        jobs: int,
        reporter: Reporter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._groups, self._before, self._jobs, self._reporter, self._clock = groups, before, max(1, jobs), reporter, clock
        self._names = {stage.title: stage.name for group in groups for stage in group}
        self._begun: dict[str, float] = {}
        self._ends: dict[str, float] = {}
        self._done: set[str] = set()
        self._told = float("-inf")

    def __call__(self, event: Event) -> None:
        """Takes an event of any stage; an estimate follows it at most once a second, and whenever a stage begins or ends."""
        self._reporter(event)
        name, now = self._names.get(event.stage), self._clock()
        if name is None or event.kind == "record":
            return
        if event.kind == "done":
            self._done.add(name)
        else:
            self._note(name, event, now)
        if event.kind != "progress" or now - self._told >= EVERY:
            self._told = now
            self._reporter(Event("progress", BUILD, self.text(now), len(self._done), len(self._names)))

    def _note(self, name: str, event: Event, now: float) -> None:
        begun = self._begun.setdefault(name, now)
        fraction = (event.done + event.part) / event.total if event.total else 0.0
        if event.left_s is not None:
            self._ends[name] = now + event.left_s
        elif fraction >= ENOUGH:
            self._ends[name] = now + (now - begun) * (1 - fraction) / fraction

    def text(self, now: float) -> str:
        """Returns the estimate in words."""
        total, unknown = 0.0, []
        for group in self._groups:
            found = {stage.title: self._left(stage.name, now) for stage in group}
            unknown += [title for title, seconds in found.items() if seconds is None]
            known = [seconds for seconds in found.values() if seconds is not None]
            total += max([sum(known) / self._jobs, *known])
        if not unknown:
            return f"left about {duration(total)} (an estimate)" if len(self._done) < len(self._names) else ""
        if not total:
            return "time left unknown"
        return f"left at least {duration(total)} (an estimate; not known: {', '.join(unknown)})"

    def _left(self, name: str, now: float) -> float | None:
        if name in self._done:
            return 0.0
        if name in self._ends:
            return max(0.0, self._ends[name] - now)
        if name in self._before:
            return max(0.0, self._before[name] - (now - self._begun.get(name, now)))
        return None
