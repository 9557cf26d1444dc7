"""`vsparse build`: the whole pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vsparse.cli.options import (
    ClusterOption,
    ContractOption,
    DataOption,
    DeviceOption,
    JobsOption,
    JsonOption,
    LogOption,
    OutOption,
    SeedOption,
    SettingOption,
    TargetOption,
    TensorboardOption,
    VerboseOption,
    print_json,
    stdout,
)
from vsparse.cli.progress import shown_progress
from vsparse.cli.results import show_build
from vsparse.progress import duration

if TYPE_CHECKING:
    from vsparse.dry_run import DryRun


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("build")
    def build_command(
        recipe: Annotated[
            str,
            typer.Argument(
                help="A shipped recipe (`vsparse models`), the path of a .toml file, or an ONNX file, which is taken as it is; "
                "--set train.epochs=20 trains on from it."
            ),
        ] = "digits",
        target: TargetOption = "local",
        out: OutOption = None,
        data: DataOption = None,
        settings: SettingOption = None,
        epsilon: Annotated[str | None, typer.Option("--epsilon", help="Radius to certify, such as 0.1 or 8/255: property.epsilon.")] = None,
        contract: ContractOption = None,
        device: DeviceOption = None,
        seed: SeedOption = None,
        jobs: JobsOption = None,
        cluster: ClusterOption = None,
        log: LogOption = None,
        tensorboard: TensorboardOption = None,
        dry_run: Annotated[
            bool,
            typer.Option("--dry-run", help="Write nothing: show the stages, what is cached, about how long it takes, what is missing."),
        ] = False,
        json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> int:
        """Train, compress, export, re-verify, profile and report; resumes where it stopped, and does nothing that is done."""
        from vsparse.api import build, plan_build
        from vsparse.recipe import with_device
        from vsparse.training_log import logged

        chosen = with_device(device, [*([] if epsilon is None else [f'property.epsilon="{epsilon}"']), *(settings or [])])
        if dry_run:
            planned = plan_build(recipe, target=target, out=out, data=data, settings=chosen, contract=contract, seed=seed, jobs=jobs)
            print_json(planned.as_dict()) if json else _show_plan(planned)
            return 0 if planned.ready else 3
        with shown_progress(verbose) as shown, logged(shown, log, tensorboard, {"recipe": recipe, "set": list(settings or [])}) as reporter:
            result = build(
                recipe,
                target=target,
                out=out,
                data=data,
                settings=chosen,
                contract=contract,
                seed=seed,
                jobs=jobs,
                cluster=cluster,
                reporter=reporter,
            )
        show_build(result, json, layers=verbose)
        return 0 if result.passed else 1


def _show_plan(plan: DryRun) -> None:
    """Prints the stages of a build that was only planned, what it would take, and what is missing."""
    out = stdout()
    out.print(f"{escape(plan.recipe)} for {plan.target}: {escape(plan.training)}", soft_wrap=True)
    out.print(f"test: {plan.samples['test']:,} samples; forms: " + ", ".join(f"{name} ({kept})" for name, kept in plan.forms.items()))
    table = Table("stage", "", "time", "disk")
    for one in plan.stages:
        basis = {"cache": "took ", "last build": "last time ", "arithmetic": "about "}
        size = f"{'' if one.bytes_from == 'cache' else 'about '}{one.bytes / 2**20:.1f} MiB"
        table.add_row(one.title, "cached" if one.cached else "to do", f"{basis[one.seconds_from]}{duration(one.seconds)}", size)
    out.print(table)
    if plan.up_to_date:
        out.print(f"{escape(str(plan.out))} is up to date: a build would do nothing", soft_wrap=True)
    else:
        out.print(
            f"{escape(str(plan.out))} would take about {duration(plan.seconds)} with {plan.jobs} processes, and "
            f"{plan.bytes / 2**20:,.0f} MiB of {plan.free_bytes / 2**20:,.0f} MiB that are free (estimates)",
            soft_wrap=True,
        )
    for note in plan.notes:
        out.print(f"[yellow]note[/yellow]: {escape(note)}", soft_wrap=True)
    for part in plan.missing:
        mark = "[red]missing[/red]" if part.name in plan.needed else "[yellow]absent, and this build leaves out what needs it[/yellow]"
        out.print(f"{mark}: {part.name}: {escape(part.detail)}; {escape(part.way_out)}", soft_wrap=True)
