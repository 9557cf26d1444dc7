"""Progress on stderr: bars on a terminal, one line per event with --verbose elsewhere, otherwise warnings and a sign of life."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vsparse.progress import BUILD, Event, Reporter, duration

QUIET_S = 30.0


@contextmanager
def shown_progress(verbose: bool) -> Iterator[Reporter]:
    """Yields the reporter that suits where stderr goes; records are for programs."""
    if sys.stderr.isatty():
        with _bars() as reporter:
            yield _without_records(reporter)
    elif verbose:
        yield _without_records(_Lines())
    else:
        with _signs_of_life() as reporter:
            yield reporter


def _without_records(reporter: Reporter) -> Reporter:
    def told(event: Event) -> None:
        if event.kind != "record":
            reporter(event)

    return told


@contextmanager
def _signs_of_life() -> Iterator[Reporter]:
    """Yields a reporter of warnings; while nothing else is printed, a line every QUIET_S seconds says where the work is.

    What runs where nobody looks, such as a job of CI, is so seen to be alive; what takes less time prints nothing.
    """
    last: list[Event] = []
    ended = threading.Event()

    def report(event: Event) -> None:
        _only_warnings(event)
        if event.kind in ("start", "progress") and event.stage != BUILD:
            last[:] = [event]

    def tell() -> None:
        started = monotonic()
        while not ended.wait(QUIET_S):
            where = f"{last[0].stage}{_count(last[0])} {last[0].text}".rstrip() if last else "at work"
            print(f"vsparse: {where} ({duration(monotonic() - started)})", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield report
    finally:
        ended.set()
        thread.join()


def _count(event: Event) -> str:
    return f" {event.done}/{event.total}" if event.total else ""


def _only_warnings(event: Event) -> None:
    if event.kind == "warning":
        print(f"vsparse: {event.text}", file=sys.stderr, flush=True)


@contextmanager
def _bars() -> Iterator[Reporter]:
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars: dict[str, TaskID] = {}

        def report(event: Event) -> None:
            if event.kind in ("note", "warning"):
                progress.console.print(event.text, highlight=False, markup=False)
                return
            if event.stage not in bars:
                bars[event.stage] = progress.add_task(event.stage, total=event.total or None, text="")
            bar = bars[event.stage]
            if event.kind == "done":
                # The last text stays: for training it is that of the last epoch.
                total = next((task.total for task in progress.tasks if task.id == bar and task.total), 1)
                progress.update(bar, total=total, completed=total)
                if event.reused:
                    progress.update(bar, text="kept from an earlier build")
            else:
                progress.update(bar, total=event.total or None, completed=event.done + event.part, text=event.text)

        yield report


class _Lines:
    """One line for each event, but for the progress of a stage at most one a second, and from inside a unit of it one in ten."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if event.kind == "warning":
            _only_warnings(event)
            return
        if event.kind == "note":
            print(event.text, file=sys.stderr, flush=True)
            return
        if event.kind == "done":
            text = "kept from an earlier build" if event.reused else f"done in {event.seconds:.1f} s"
            print(f"{event.stage}: {text}", file=sys.stderr, flush=True)
            return
        now = monotonic()
        pause = 10.0 if event.part or event.stage == BUILD else 1.0
        ended = event.total and event.done >= event.total
        if event.kind == "progress" and not ended and now - self.last.get(event.stage, float("-inf")) < pause:
            return
        self.last[event.stage] = now
        print(f"{event.stage}:{_count(event)} {event.text}".rstrip(), file=sys.stderr, flush=True)
