"""`vsparse build`: the whole road."""

from __future__ import annotations

from typing import Annotated

import typer

from vsparse.cli.options import Contract, Data, Jobs, Json, Out, Seed, Setting, Target, Verbose
from vsparse.cli.progress import shown_progress
from vsparse.cli.results import show_build


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("build")
    def build_command(
        recipe: Annotated[str, typer.Argument(help="A shipped recipe (`vsparse models`) or the path of a .toml file.")] = "digits",
        target: Target = "local",
        out: Out = None,
        data: Data = None,
        settings: Setting = None,
        contract: Contract = None,
        seed: Seed = None,
        jobs: Jobs = None,
        json: Json = False,
        verbose: Verbose = False,
    ) -> int:
        """Train, compress, export, re-verify, profile and report; resumes where it stopped, and does nothing that is done."""
        from vsparse.pipeline.build import build

        with shown_progress(verbose) as reporter:
            result = build(
                recipe, target=target, out=out, data=data, settings=settings, contract=contract, seed=seed, jobs=jobs, reporter=reporter
            )
        show_build(result, json, layers=verbose)
        return 0 if result.passed else 1
