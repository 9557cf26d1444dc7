"""`vsparse profile`: latency of an artifact or a model, here or on a device over ssh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vsparse.cli.options import JsonOption, VerboseOption
from vsparse.cli.progress import shown_progress
from vsparse.cli.results import show_latency
from vsparse.errors import InputError

# What a build writes into the device folder of a recipe's [profile].
OF_THE_RECIPE = ("runs", "threads", "batch")


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("profile")
    def profile_command(
        source: Annotated[Path, typer.Argument(help="An artifact directory or an ONNX file.")],
        host: Annotated[
            str | None, typer.Option("--host", help="user@address of a device reached over ssh; default: this machine.")
        ] = None,
        runtime: Annotated[
            Literal["onnxruntime"] | None, typer.Option("--runtime", help="The runtime on this machine; default: onnxruntime.")
        ] = None,
        runs: Annotated[int | None, typer.Option("--runs", min=10, max=1_000_000, help="Least number of timed runs; default: 300.")] = None,
        seconds: Annotated[float | None, typer.Option("--seconds", min=0.01, max=3600, help="Least seconds of them; default: 2.")] = None,
        warmup: Annotated[int | None, typer.Option("--warmup", min=0, max=1_000_000, help="Runs before those; default: 50.")] = None,
        threads: Annotated[int | None, typer.Option("--threads", min=1, max=256, help="Threads inside one operator; default: 1.")] = None,
        batch: Annotated[int | None, typer.Option("--batch", min=1, max=65_536, help="Samples of one run; default: 1.")] = None,
        save: Annotated[
            Path | None, typer.Option("--save", help="Also write the measurement, raw samples included, to this JSON file.")
        ] = None,
        results: Annotated[
            Path | None,
            typer.Option("--results", help="Measure nothing: take this results.json of the device into the artifact."),
        ] = None,
        json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> int:
        """Measure latency: raw samples, p50/p90/p99, threads and batch stated; on a device with what it measures of energy."""
        from vsparse.standalone import profile, profile_results

        options = {"runs": runs, "seconds": seconds, "warmup": warmup, "threads": threads, "batch": batch}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        given_here = [*given, *(["runtime"] if runtime is not None else [])]
        if results is not None:
            more = [*given_here, *(["host"] if host is not None else []), *(["save"] if save is not None else [])]
            if more:
                raise InputError(f"--results takes what a device measured, and --{more[0]} is for measuring; leave it out")
            taken = profile_results(source, results)
            show_latency(taken, json)
            return 0 if taken.chooses else 1
        if host is not None:
            _refuse_with_host(given_here)
        with shown_progress(verbose) as reporter:
            result = profile(source, host=host, save=save, reporter=reporter, **given)
        show_latency(result, json)
        return 0 if result.chooses else 1


def _refuse_with_host(given: list[str]) -> None:
    """A device measures as its folder says, which is written when the artifact is built."""
    if not given:
        return
    where = "--host measures as the artifact's device/ folder says"
    if given[0] in OF_THE_RECIPE:
        raise InputError(f"{where}; leave --{given[0]} out, and build again with --set profile.{given[0]}=… to change it")
    raise InputError(f"{where}, and --{given[0]} is for this machine alone; leave it out")
