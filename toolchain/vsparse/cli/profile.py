"""`vsparse profile`: latency of an artifact or a model, here or on a device over ssh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vsparse.cli.options import JsonOption, VerboseOption
from vsparse.cli.progress import shown_progress
from vsparse.cli.results import show_latency
from vsparse.cli.times import show_comparison
from vsparse.errors import InputError

if TYPE_CHECKING:
    from vsparse.stages.profile import ProfileResult


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("profile")
    def profile_command(
        source: Annotated[Path, typer.Argument(help="An artifact directory or an ONNX file.")],
        host: Annotated[
            str | None, typer.Option("--host", help="user@address of a device reached over ssh; default: this machine.")
        ] = None,
        runtime: Annotated[
            Literal["onnxruntime", "tensorrt", "c"] | None,
            typer.Option("--runtime", help="Only this one; default: every one that the device has, and onnxruntime on this machine."),
        ] = None,
        runs: Annotated[
            int | None, typer.Option("--runs", min=10, max=1_000_000, help="Least number of timed runs; default: 300, or as device/ says.")
        ] = None,
        seconds: Annotated[
            float | None, typer.Option("--seconds", min=0.01, max=3600, help="Least seconds of them; default: 2, or as device/ says.")
        ] = None,
        warmup: Annotated[int | None, typer.Option("--warmup", min=0, max=1_000_000, help="Runs before those; default: 50.")] = None,
        threads: Annotated[int | None, typer.Option("--threads", min=1, max=256, help="Threads inside one operator; default: 1.")] = None,
        batch: Annotated[int | None, typer.Option("--batch", min=1, max=65_536, help="Samples of one run; default: 1.")] = None,
        layers: Annotated[
            bool, typer.Option("--layers", help="Also time each layer, in ONNX Runtime and in C (TensorRT's always are).")
        ] = False,
        save: Annotated[
            Path | None, typer.Option("--save", help="Also write the measurement, raw samples included, to this JSON file.")
        ] = None,
        results: Annotated[
            Path | None,
            typer.Option("--results", help="Measure nothing: take this results.json of the device into the artifact."),
        ] = None,
        compare: Annotated[
            Path | None,
            typer.Option(
                "--compare", help="Measure nothing: compare SOURCE (A) with this (B); each an artifact, a file of --save or a results.json."
            ),
        ] = None,
        timeout: Annotated[
            float | None, typer.Option("--timeout", min=1, max=1_000_000, help="With --host: seconds that the run may take; default: 3600.")
        ] = None,
        keep: Annotated[bool, typer.Option("--keep", help="With --host: leave the folder on the device.")] = False,
        any_device: Annotated[
            bool, typer.Option("--any-device", help="With --host: measure although it is not the target's device; the results never pass.")
        ] = False,
        remote_dir: Annotated[
            str | None, typer.Option("--remote-dir", help="With --host: where on the device the folder is made; default: the home there.")
        ] = None,
        json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> int:
        """Measure latency: raw samples, p50/p90/p99, threads and batch stated; on a device with what it measures of energy."""
        from vsparse.stages.profile.difference import compare_profiles
        from vsparse.standalone import profile, profile_results

        options = {
            "runs": runs,
            "seconds": seconds,
            "warmup": warmup,
            "threads": threads,
            "batch": batch,
            "runtime": runtime,
            "layers": layers or None,
        }
        there = {"timeout": timeout, "keep": keep or None, "any_device": any_device or None, "remote_dir": remote_dir}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        given_there: dict[str, Any] = {name: value for name, value in there.items() if value is not None}
        if compare is not None:
            more = [
                *given,
                *given_there,
                *(name for name, one in (("host", host), ("save", save), ("results", results)) if one is not None),
            ]
            if more:
                raise InputError(f"--compare takes two measurements that are there, and --{_spelled(more[0])} is for another; leave it out")
            show_comparison(compare_profiles(source, compare), json)
            return 0
        if results is not None:
            more = [*given, *given_there, *(["host"] if host is not None else []), *(["save"] if save is not None else [])]
            if more:
                raise InputError(f"--results takes what a device measured, and --{_spelled(more[0])} is for measuring; leave it out")
            return _shown(lambda: profile_results(source, results), source, json)
        if host is None and given_there:
            raise InputError(f"--{_spelled(next(iter(given_there)))} is for a device, and no --host is given; name it, or leave this out")
        if host is not None and runtime == "tensorrt" and threads is not None:
            raise InputError("--threads is for the processor, and --runtime tensorrt runs on the GPU; leave --threads out")

        def measured() -> ProfileResult:
            with shown_progress(verbose) as reporter:
                return profile(source, host=host, save=save, reporter=reporter, **given, **given_there)

        return _shown(measured, source, json)


def _shown(measure: Callable[[], ProfileResult], source: Path, json: bool) -> int:
    """Shows what was measured, also where a gate failed on the device, which is raised again."""
    from vsparse.stages.profile import DeviceGateError
    from vsparse.standalone import of_device

    try:
        result = measure()
    except DeviceGateError as error:
        show_latency(of_device(error.results, f"measured on {error.results.label}", error.choice), json, str(source))
        error.shown = True
        raise
    show_latency(result, json, str(source))
    return 0 if result.chooses else 1


def _spelled(name: str) -> str:
    return name.replace("_", "-")
