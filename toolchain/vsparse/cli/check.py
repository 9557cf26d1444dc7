"""`vsparse check`: the independent checker on an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vsparse.cli.options import Json


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("check")
    def check_command(
        directory: Annotated[Path, typer.Argument(help="The artifact directory.")],
        json: Json = False,
    ) -> int:
        """Re-derive every certified claim with the independent checker (numpy and onnx only), compare every hash, execute each model."""
        from vsparse_check.__main__ import run

        code = run([str(directory), *(["--json"] if json else [])])
        if code == 0:
            from vsparse.standalone import compare_models

            compare_models(directory)
        return code
