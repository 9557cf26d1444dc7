"""`vsparse build`: the whole pipeline."""

from __future__ import annotations

from typing import Annotated

import typer

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
)
from vsparse.cli.progress import shown_progress
from vsparse.cli.results import show_build


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
        json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> int:
        """Train, compress, export, re-verify, profile and report; resumes where it stopped, and does nothing that is done."""
        from vsparse.pipeline.build import build
        from vsparse.recipe import with_device
        from vsparse.training_log import logged

        with shown_progress(verbose) as shown, logged(shown, log, tensorboard, {"recipe": recipe, "set": list(settings or [])}) as reporter:
            result = build(
                recipe,
                target=target,
                out=out,
                data=data,
                settings=with_device(device, [*([] if epsilon is None else [f'property.epsilon="{epsilon}"']), *(settings or [])]),
                contract=contract,
                seed=seed,
                jobs=jobs,
                cluster=cluster,
                reporter=reporter,
            )
        show_build(result, json, layers=verbose)
        return 0 if result.passed else 1
