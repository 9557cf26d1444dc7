"""`vsparse init`: a first recipe for data of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from vsparse.cli.options import JsonOption, TargetOption, VerboseOption, print_json, stdout
from vsparse.progress import duration

if TYPE_CHECKING:
    from vsparse.starter import Recommendation


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("init")
    def init_command(
        directory: Annotated[Path, typer.Argument(help="The folder, zip or archive that holds the data.")],
        target: TargetOption = "local",
        column: Annotated[str, typer.Option("--column", help="Of a table: the column to predict; default: by its name, or the last.")] = "",
        drop: Annotated[list[str] | None, typer.Option("--drop", help="Of a table: a column that is left out; may be given again.")] = None,
        out: Annotated[Path | None, typer.Option("--out", help="The recipe's file; default: NAME.toml in this folder.")] = None,
        force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
        json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> int:
        """Look at data and target, and write a first recipe for them, with the reason for every value."""
        from vsparse.api import init

        found, path = init(directory, target=target, out=out, force=force, column=column, drop=drop or ())
        if json:
            print_json({**found.as_dict(), "recipe": str(path)})
            return 0
        _show(found, path, target)
        return 0


def _show(found: Recommendation, path: Path, target: str) -> None:
    data, values, out = found.survey, found.values, stdout()
    counts = ", ".join(f"{count:,} {name}" for name, count in data.counts.items())
    least, most = min(data.per_class.values()), max(data.per_class.values())
    told = {
        "data": f"{data.format}, {data.samples:,} samples: {counts}",
        "predicted": f"a number, of deviation {data.target_deviation:.4g}; a linear fit explains {100 * data.linear_explained:.0f} %"
        if data.regression
        else f"{len(data.classes)} classes, of {least:,} to {most:,} training samples; a constant answer: {100 * data.majority:.1f} %",
        **({"read as": ", ".join(f"{key} = {value}" for key, (value, _) in data.keys.items())} if data.keys else {}),
        "inputs": "×".join(map(str, data.shape)) + (f", resized from {len(data.sizes)} sizes" if data.resize else ""),
        "epsilon": f"{values['property.epsilon']}: {found.reasons['property.epsilon']}",
        "training": f"{values['train.epochs']:,} epochs in batches of {values['train.batch_size']}, about {duration(found.seconds)} on one "
        "core (an estimate)",
    }
    for key, text in told.items():
        out.print(f"[bold]{key}[/bold]: {escape(text)}", soft_wrap=True)
    for warning in found.warnings:
        out.print(f"[yellow]note[/yellow]: {escape(warning)}", soft_wrap=True)
    again = "" if target == "local" else f" --target {target}"
    out.print(f"{escape(str(path))} is written; next: vsparse build {escape(str(path))}{escape(again)}", soft_wrap=True)
