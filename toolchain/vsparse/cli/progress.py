"""Progress on stderr: bars on a terminal, one line per event with --verbose elsewhere, otherwise warnings alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vsparse.progress import BUILD, Event, Reporter


@contextmanager
def shown_progress(verbose: bool) -> Iterator[Reporter]:
    """Yields the reporter that suits where stderr goes."""
    if sys.stderr.isatty():
        with _bars() as reporter:
            yield reporter
    elif verbose:
        yield _Lines()
    else:
        yield _only_warnings


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
        count = f" {event.done}/{event.total}" if event.total else ""
        print(f"{event.stage}:{count} {event.text}".rstrip(), file=sys.stderr, flush=True)
