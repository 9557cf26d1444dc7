"""The table of deployed forms on stdout, the one that is chosen, and why."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from vsparse.artifact.choice import FormChoice, FormRow, milliseconds
from vsparse.cli.options import percent, stdout


def show_choice(choice: FormChoice, directory: str, regression: bool = False) -> None:
    """Prints the table of forms, a line for each that is slower than fp32 or has zeros, and the sentence that says what is chosen.

    Of `regression` there is no clean accuracy.
    """
    out = stdout()
    table = Table("form", "contract", "certified", "lost", "clean", "bytes", "p50 ms", "of fp32", "gates", title="deployed forms")
    for column in table.columns[2:8]:
        column.justify, column.no_wrap = "right", True
    for row in choice.rows:
        table.add_row(*_cells(row, regression), style="bold" if row.chosen else None)
    out.print(table)
    for row in choice.rows:
        if row.speed.startswith("slower"):
            out.print(f"{row.form.label} is {row.speed}", soft_wrap=True, markup=False)
    for told, labels in _weights(choice).items():
        out.print(f"weights of {', '.join(labels)}: {told}", soft_wrap=True, markup=False)
    if not choice.measured_on:
        out.print(escape(choice.reason.replace("ARTIFACT", directory)), soft_wrap=True)
    else:
        out.print(f"{escape(choice.reason)}; latency of {escape(choice.measured_on)}", soft_wrap=True)


def _weights(choice: FormChoice) -> dict[str, list[str]]:
    """Returns what is said of the weights of some forms, with the labels of these."""
    found: dict[str, list[str]] = {}
    for row in choice.rows:
        if row.weights is not None:
            told = f"{row.weights.pattern}, {percent(1 - row.weights.density)} zeros; {row.weights.told}"
            found.setdefault(told, []).append(row.form.label)
    return found


def _cells(row: FormRow, regression: bool) -> tuple[str, ...]:
    lost = "–" if row.points_lost is None or row.form.is_main else f"{row.points_lost:.2f}"
    size = "–" if row.bytes is None else f"{row.bytes:,}"
    time = "–" if row.latency_ms_p50 is None else milliseconds(row.latency_ms_p50)
    ratio = "–" if row.latency_ratio is None else f"{row.latency_ratio:.2f}"
    judged = "chosen" if row.chosen else row.judged
    clean = "–" if regression else percent(row.clean_accuracy)
    return row.form.label, row.contract, percent(row.certified_accuracy), lost, clean, size, time, ratio, judged
