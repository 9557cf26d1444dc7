"""Progress in a notebook: one table of bars below the cell, which is there without being asked for; elsewhere nothing."""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

from vsparse.notebook import cell
from vsparse.progress import BUILD, Event

# Seconds between two drawings of the same bars.
PAUSE_S = 0.25
MOST_WARNINGS = 10


class NotebookBars:
    """The bars of one cell: a row for each stage, warnings below."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle: Any = None
        self._drawn = float("-inf")
        self._rows: dict[str, tuple[float, int, str]] = {}
        self._warnings: list[str] = []

    def report(self, event: Event) -> None:
        """Takes an event up, and draws where it is an end, a warning, or the last drawing is some time ago."""
        if event.kind == "record":
            return
        if event.kind in ("note", "warning"):
            self._warnings += [event.text] if event.kind == "warning" and len(self._warnings) < MOST_WARNINGS else []
        elif event.kind == "done":
            total = max(1, self._rows.get(event.stage, (0, 1, ""))[1])
            said = "kept from an earlier build" if event.reused else f"done in {event.seconds:.1f} s" if event.seconds else "done"
            self._rows[event.stage] = (total, total, said)
        else:
            self._rows[event.stage] = (event.done + event.part, event.total, event.text)
        if event.kind in ("done", "warning") or monotonic() - self._drawn >= PAUSE_S:
            self.draw()

    def draw(self) -> None:
        """Shows the table, in the place where it was shown before."""
        self._drawn = monotonic()
        made = self._display.HTML(self.html())
        if self._handle is None:
            self._handle = self._display.display(made, display_id=True)
        else:
            self._handle.update(made)

    def html(self) -> str:
        """Returns the table; every text is escaped."""
        rows = "".join(
            f'<tr><th scope="row">{cell(stage)}</th><td>{_bar(done, total)}</td><td>{cell(text)}</td></tr>'
            for stage, (done, total, text) in self._rows.items()
        )
        warned = "".join(f"<p>{cell(text)}</p>" for text in self._warnings)
        return f"<table><caption>vsparse</caption>{rows}</table>{warned}"


def _bar(done: float, total: int) -> str:
    return f'<progress max="{total}" value="{min(done, total):.3f}"></progress>' if total else "<progress></progress>"


_bars: dict[str, tuple[object, NotebookBars]] = {}


def in_notebook(event: Event) -> None:
    """A reporter that draws bars below the cell of a notebook that is running, and ignores everything elsewhere.

    A notebook is known by IPython's kernel, which is looked for among what is imported and never imported here.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if ipython is None or shell is None or not hasattr(shell, "kernel") or event.stage == BUILD:
        return
    running = shell.execution_count
    if _bars.get("cell", (None, None))[0] != running:
        _bars["cell"] = (running, NotebookBars(ipython.display))
    _bars["cell"][1].report(event)
