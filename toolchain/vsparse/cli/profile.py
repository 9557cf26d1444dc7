"""`vsparse profile`: latency of an artifact or a model, here or on a device over ssh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vsparse.cli.options import Json, Verbose
from vsparse.cli.progress import shown_progress
from vsparse.cli.results import show_latency


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("profile")
    def profile_command(
        source: Annotated[Path, typer.Argument(help="An artifact directory or an ONNX file.")],
        host: Annotated[
            str | None, typer.Option("--host", help="user@address of a device reached over ssh; default: this machine.")
        ] = None,
        runtime: Annotated[Literal["onnxruntime"], typer.Option("--runtime", help="The runtime on this machine.")] = "onnxruntime",
        runs: Annotated[int, typer.Option("--runs", min=10, max=1_000_000, help="Least number of timed runs.")] = 300,
        seconds: Annotated[float, typer.Option("--seconds", min=0.01, max=3600, help="Least time of timed runs.")] = 2.0,
        warmup: Annotated[int, typer.Option("--warmup", min=0, max=1_000_000, help="Runs before those that count.")] = 50,
        threads: Annotated[int, typer.Option("--threads", min=1, max=256)] = 1,
        batch: Annotated[int, typer.Option("--batch", min=1, max=65_536)] = 1,
        save: Annotated[
            Path | None, typer.Option("--save", help="Also write the measurement, raw samples included, to this JSON file.")
        ] = None,
        json: Json = False,
        verbose: Verbose = False,
    ) -> int:
        """Measure latency: raw samples, p50/p90/p99, threads and batch stated; on a device with what it measures of energy."""
        from vsparse.standalone import profile

        with shown_progress(verbose) as reporter:
            result = profile(
                source, host=host, runs=runs, seconds=seconds, warmup=warmup, threads=threads, batch=batch, save=save, reporter=reporter
            )
        show_latency(result, json)
        return 0
