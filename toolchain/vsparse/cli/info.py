"""`vsparse targets`, `models` and `doctor`: what there is, and whether this machine can do it."""

from __future__ import annotations

from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from vsparse.cli.options import JsonOption, print_json, stdout
from vsparse.progress import duration

if TYPE_CHECKING:
    from vsparse.recipe import Recipe
    from vsparse.recipe_summary import RecipeSummary
    from vsparse.target import Target

MARKS = {"ok": "[green]ok    [/green]", "absent": "[yellow]absent[/yellow]", "broken": "[red]broken[/red]"}


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""

    @app.command("targets")
    def targets_command(
        target: Annotated[str | None, typer.Argument(help="A shipped target or the path of a .toml file, shown whole.")] = None,
        json: JsonOption = False,
    ) -> int:
        """List the devices a build can be for; of one, show every fact with its source, and what its contracts hang on."""
        from vsparse.api import targets
        from vsparse.target import load_target

        if target is not None:
            chosen = load_target(target)
            print_json(chosen.model_dump(mode="json")) if json else _show_target(chosen)
            return 0
        found = targets()
        if json:
            print_json([one.model_dump(mode="json") for one in found])
            return 0
        table = Table("target", "device", "runtime", "contracts")
        for one in found:
            contracts = ", ".join(dict.fromkeys(precision.contract for precision in one.precisions.values()))
            table.add_row(one.name, one.description, f"{one.runtime.name} {one.runtime.system}".strip(), contracts)
        stdout().print(table)
        return 0

    @app.command("models")
    def models_command(
        name: Annotated[str | None, typer.Argument(help="A shipped recipe or the path of a .toml file, described in full.")] = None,
        json: JsonOption = False,
    ) -> int:
        """List the shipped recipes and network architectures; of one recipe, show data, network, training, gates and sources."""
        from vsparse.api import describe_model, models

        if name is not None:
            summary = describe_model(name)
            print_json(summary.as_dict()) if json else _show_recipe(summary)
            return 0
        found = models()
        if json:
            recipes = [
                {**recipe.model_dump(mode="json"), "settings": found.settings[recipe.name], "sources": found.sources[recipe.name]}
                for recipe in found.recipes
            ]
            print_json({"recipes": recipes, "architectures": found.architectures})
            return 0
        table = Table("recipe", "what it builds", "settings", "network", "epsilon", "weights removed")
        for recipe in found.recipes:
            network = f"{recipe.network.architecture} × {recipe.network.width:g}"
            removed = f"{100 * recipe.train.sparsity:g} %"
            table.add_row(recipe.name, recipe.description, found.settings[recipe.name], network, recipe.property.epsilon, removed)
        stdout().print(table)
        second = Table("architecture", "what it is")
        for name, text in found.architectures.items():
            second.add_row(name, text)
        stdout().print(second)
        return 0

    @app.command("doctor")
    def doctor_command(json: JsonOption = False) -> int:
        """Try out what a build needs on this machine, by using it; exit 3 when something that every build needs is missing."""
        from vsparse.environment import examine, is_ready

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


# What the settings of a shipped recipe are, in words (`vsparse.shipped.shipped_settings`).
SETTINGS = {
    "faithful": "faithful: those of a published training, each with its source",
    "scaled": "scaled: a published method, its settings ours or scaled to less time",
    "best": "best: our own",
    "": "your own",
}


def _show_recipe(summary: RecipeSummary) -> None:
    """Prints what a recipe builds, a fact on each line, and the comment at the head of its file."""
    recipe, out = summary.recipe, stdout()
    train, sparse = recipe.train, recipe.train.sparse
    regression = recipe.data.is_regression
    shape = "size and classes are read from your data"
    if summary.input_shape is not None and summary.classes is not None:
        shape = f"inputs of {'×'.join(map(str, summary.input_shape))} (channels, height, width), {summary.classes} classes"
    elif summary.input_shape is not None and regression:
        shape = f"inputs of {'×'.join(map(str, summary.input_shape))} (channels, height, width), one number to predict"
    elif regression:
        shape = "size is read from your data, one number to predict"
    if summary.samples is not None:
        shape += ", " + ", ".join(f"{count:,} {name}" for name, count in summary.samples.items())
    costs = "" if summary.weights is None else f"; {summary.weights:,} weights, {summary.macs:,} multiply-accumulates, dense"
    removed = "none removed: trained dense"
    if train.is_sparse:
        what = (
            f"{100 * train.sparsity:g} % of the {train.budget}"
            if not train.parameter_budget
            else f"all but {train.parameter_budget:,} weights"
        )
        beside = "; its dense parent is built beside it" if train.baseline else ""
        removed = f"{what} removed, by {sparse.granularity}s ({sparse.method}){beside}"
    known = f" ({summary.architecture})" if summary.architecture else ""
    fixed = "epochs" in train.model_fields_set
    told = {
        "recipe": f"{recipe.name}: {recipe.description}".removesuffix(": "),
        "settings": SETTINGS[summary.settings],
        "kind": "regression: one number is predicted, and its error counts; certified is by how much it may change"
        if regression
        else "classification",
        "dataset": f"{recipe.data.name}, {shape}",
        "network": f"{recipe.network.architecture} × {recipe.network.width:g}{known}{costs}",
        "property": recipe.property.perturbation.label(),
        "objective": f"{train.objective} at epsilon {train.epsilon}",
        "epochs": f"{train.epochs:,}" if fixed else f"at least {train.epochs:,}: as many as fit the number of samples",
        "time": "not known before the data is loaded: `vsparse build --dry-run` says"
        if summary.training_seconds is None
        else f"about {duration(summary.training_seconds)} of training on one core, for each network (an estimate by arithmetic)",
        "sparsity": removed,
        "gates": ", ".join(f"{key} {value:g}" for key, value in summary.gates.items()).replace(
            "certified_accuracy", "certified share of the answers (certified_accuracy)" if regression else "certified_accuracy"
        )
        or "those of every build",
    }
    for key, text in told.items():
        out.print(f"[bold]{key}[/bold]: {escape(text)}", soft_wrap=True)
    for number, line in enumerate(summary.source):
        out.print(f"[bold]source[/bold]: {escape(line)}" if not number else f"        {escape(line)}", soft_wrap=True)
    for key, text in summary.sources.items():
        out.print(f"[bold]{escape(key)}[/bold] = {escape(_value(recipe, key))}: {escape(text)}", soft_wrap=True)


def _value(recipe: Recipe, key: str) -> str:
    """Returns the value of a dotted key of a recipe, as JSON has it."""
    value: Any = recipe.model_dump(mode="json")
    for name in key.split("."):
        value = value[name]
    return dumps(value)


def _show_target(target: Target) -> None:
    """Prints a target: device, runtime, facts with their sources, and the conditions of each contract."""
    device, runtime, out = target.device, target.runtime, stdout()
    told = {
        "target": f"{target.name}: {target.description}",
        "device": f"{device.module or device.kind}{f', chip {device.soc}' if device.soc else ''}",
        "GPU": device.compute_capability
        and f"compute capability {device.compute_capability}, {'with' if device.structured_sparsity_2_4 else 'without'} 2:4 sparsity",
        "module numbers": ", ".join(device.modules),
        "power modes": ", ".join(device.power_modes),
        "power rails": ", ".join(device.power_rails),
        "runtime": f"{runtime.name} {', '.join(runtime.versions)} {f'({runtime.system})' if runtime.system else ''}".strip(),
        "model file": f"ONNX opset {runtime.opset}{', and C source' if target.c_source else ''}",
    }
    for name, text in told.items():
        if text:
            out.print(f"[bold]{name}[/bold]: {escape(text)}", soft_wrap=True)
    for name, precision in target.precisions.items():
        out.print(f"[bold]{name}[/bold]: contract {precision.contract}{', where' if precision.conditions else ''}", soft_wrap=True)
        for condition in precision.conditions:
            out.print(f"    {escape(condition)}", soft_wrap=True)
    if device.facts:
        table = Table("fact", "value", "source", "note")
        for name, fact in device.facts.items():
            table.add_row(name, f"{fact.value:g} {fact.unit}", fact.source, fact.note)
        out.print(table)
    for source in target.sources:
        out.print(f"source: {escape(source)}", soft_wrap=True)
