"""`vsparse targets`, `models` and `doctor`: what there is, and whether this machine can do it."""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

from vsparse.cli.options import Json, print_json, stdout

MARKS = {"ok": "[green]ok    [/green]", "absent": "[yellow]absent[/yellow]", "broken": "[red]broken[/red]"}


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""

    @app.command("targets")
    def targets_command(json: Json = False) -> int:
        """List the devices a build can be for."""
        from vsparse.api import targets

        found = targets()
        if json:
            print_json([target.model_dump(mode="json") for target in found])
            return 0
        table = Table("target", "device", "runtime", "contracts")
        for target in found:
            contracts = ", ".join(precision.contract for precision in target.precisions.values())
            table.add_row(target.name, target.description, f"{target.runtime.name} {target.runtime.system}".strip(), contracts)
        stdout().print(table)
        return 0

    @app.command("models")
    def models_command(json: Json = False) -> int:
        """List the shipped recipes and the named network architectures."""
        from vsparse.api import models

        found = models()
        if json:
            print_json({"recipes": [recipe.model_dump(mode="json") for recipe in found.recipes], "architectures": found.architectures})
            return 0
        table = Table("recipe", "what it builds", "network", "epsilon", "weights removed")
        for recipe in found.recipes:
            network = f"{recipe.network.architecture} × {recipe.network.width:g}"
            table.add_row(recipe.name, recipe.description, network, recipe.property.epsilon, f"{100 * recipe.train.sparsity:g} %")
        stdout().print(table)
        second = Table("architecture", "what it is")
        for name, text in found.architectures.items():
            second.add_row(name, text)
        stdout().print(second)
        return 0

    @app.command("doctor")
    def doctor_command(json: Json = False) -> int:
        """Try out what a build needs on this machine, by using it; exit 3 when something that every build needs is missing."""
        from vsparse.doctor import examine, is_ready

        findings = examine()
        if json:
            print_json([finding.as_dict() for finding in findings])
        else:
            out = stdout()
            for finding in findings:
                out.print(
                    f"{MARKS[finding.status]}  [bold]{finding.name}[/bold] {escape(finding.version)}: {escape(finding.detail)}",
                    soft_wrap=True,
                )
                if finding.status != "ok" and finding.way_out:
                    out.print(f"        {escape(finding.way_out)}", soft_wrap=True)
        return 0 if is_ready(findings) else 3
