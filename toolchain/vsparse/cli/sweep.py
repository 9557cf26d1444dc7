"""`vsparse train --sweep`: the Pareto table of a sweep, or its JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from vsparse.cli.options import percent, print_json, stdout
from vsparse.cli.progress import shown_progress
from vsparse.errors import GateError, InputError

if TYPE_CHECKING:
    from vsparse.sweep import Sweep as Found
    from vsparse.sweep.results import Row

SweepOption = Annotated[
    list[str] | None,
    typer.Option("--sweep", help="Train every combination: --sweep 'train.sparsity=[0, 0.9]' (repeatable), or a sweep file (.toml)."),
]
HalvingOption = Annotated[
    int | None,
    typer.Option(
        "--halving",
        min=2,
        max=100,
        help="With --sweep: successive halving; each rung keeps one in this many, and trains as many times longer.",
    ),
]
FirstEpochsOption = Annotated[
    int | None, typer.Option("--first-epochs", min=1, help="With --halving: fewest epochs of the first rung; default: 3.")
]
KeepOption = Annotated[
    str | None,
    typer.Option(
        "--keep", help="With --halving: `front` keeps what stands for the Pareto front (default), `certified` the most certified."
    ),
]
AxesOption = Annotated[
    str | None,
    typer.Option(
        "--axes", help="With --sweep: axes of the Pareto front, of certified, clean, macs, bytes, seconds; default: certified,macs,bytes."
    ),
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        help="With --sweep: `grid` trains every combination (default); `tpe` draws --trials by Optuna, of ranges KEY={low=…, high=…} too.",
    ),
]
TrialsOption = Annotated[int | None, typer.Option("--trials", min=1, max=1000, help="With --sampler tpe: how many are drawn; default: 32.")]
CertifyOption = Annotated[
    bool, typer.Option("--certify", help="With --sweep: build the front's networks to the end and certify them on the test split.")
]

COLUMNS = ("", "id", "settings", "certified", "clean", "MACs", "bytes", "training", "epochs")


def train_many(
    recipe: str,
    sweep: list[str],
    options: dict[str, Any],
    out: Path | None,
    data: Path | None,
    settings: list[str] | None,
    seed: int | None,
    jobs: int | None,
    cluster: str | None,
    json: bool,
    verbose: bool,
) -> int:
    """Runs a sweep, prints it, and returns the exit code: 1 where a certificate of the front failed a gate."""
    from vsparse.sweep import train_sweep

    axes = options["--axes"]
    with shown_progress(verbose) as reporter:
        result = train_sweep(
            recipe,
            sweep,
            out=out,
            data=data,
            settings=settings,
            seed=seed,
            eta=options["--halving"],
            first_epochs=options["--first-epochs"],
            keep=options["--keep"],
            axes=None if axes is None else [axis.strip() for axis in axes.split(",")],
            certify=bool(options["--certify"]),
            sampler=options["--sampler"],
            trials=options["--trials"],
            jobs=jobs,
            cluster=cluster,
            reporter=reporter,
        )
    show_sweep(result, json)
    if all(row.status == "failed" for row in result.rows):
        codes = {run.exit_code for row in result.rows for run in row.runs if run.measured is None}
        kind = GateError if codes == {GateError.exit_code} else InputError
        error = kind(f"every configuration of the sweep failed; {result.directory / 'sweep.json'} holds the reasons")
        error.shown = True
        raise error
    if not result.front:
        collapsed = GateError(
            f"every configuration that could be trained in full collapsed, and none is on the front; {result.directory / 'sweep.json'} "
            "holds the reasons"
        )
        collapsed.shown = True
        raise collapsed
    return 0 if all(one.passed for one in result.certified) else 1


def show_sweep(result: Found, json: bool) -> None:
    """Prints the configurations, those on the front first, why others failed, what was certified on test, and where the page lies."""
    if json:
        print_json({"directory": str(result.directory), **result.as_json()})
        return
    out = stdout()
    wanted = result.recipe.property
    title = f"{result.recipe.name}: epsilon {wanted.epsilon} ({wanted.norm}), validation split, front over {', '.join(result.axes)}"
    table = Table(*(COLUMNS[:3]), title=escape(title))
    for name in COLUMNS[3:]:
        table.add_column(name, justify="right")
    order = {"finished": 1, "stopped": 2}
    able = [row for row in result.rows if row.status != "failed"]
    for row in sorted(able, key=lambda row: (0 if row.pareto else order[row.status], -row.rung, row.point(("certified",)))):
        table.add_row(*_cells(row))
    if able:
        out.print(table)
        out.print("● on the Pareto front" + ("; – stopped early" if any(row.status == "stopped" for row in able) else ""))
    for row in result.rows:
        if row.status == "failed":
            out.print(
                f"[red]failed[/red]  {row.configuration.id} ({escape(row.configuration.label)}): {escape(row.reason)}", soft_wrap=True
            )
    for row in result.rows:
        if row.collapse and row.status != "failed":
            out.print(
                f"[red]collapsed[/red]  {row.configuration.id} ({escape(row.configuration.label)}): {escape(row.collapse)}", soft_wrap=True
            )
    for one in result.certified:
        if one.certified_accuracy is None:
            out.print(f"[red]failed[/red]  certify {one.id}, seed {one.seed}: {escape(one.reason)}", soft_wrap=True)
            continue
        mark = "[green]passed[/green]" if one.passed else "[red]FAILED[/red]"
        accuracies = (
            f"certified {percent(one.certified_accuracy)}, robust {percent(one.robust_accuracy)}, clean {percent(one.clean_accuracy)}"
        )
        reason = f" ({one.reason})" if one.reason else ""
        out.print(
            f"{mark}  {one.id}, seed {one.seed}, on {one.samples} test samples, contract {one.contract}: {accuracies}{escape(reason)}",
            soft_wrap=True,
        )
    out.print(str(result.directory / "sweep.html"), soft_wrap=True)


def _cells(row: Row) -> list[str]:
    def fraction(name: str) -> str:
        spread = row.spread(name)
        return percent(row.mean(name)) + (f" ± {100 * spread:.1f}" if spread is not None else "")

    def whole(name: str) -> str:
        return f"{row.mean(name) or 0:,.0f}"

    mark = "[green]●[/green]" if row.pareto else "–" if row.status == "stopped" else ""
    return [
        mark,
        row.configuration.id,
        escape(row.configuration.label),
        fraction("certified_accuracy"),
        fraction("clean_accuracy"),
        whole("macs"),
        whole("bytes"),
        f"{row.mean('train_seconds') or 0:.1f} s",
        whole("epochs_trained"),
    ]
