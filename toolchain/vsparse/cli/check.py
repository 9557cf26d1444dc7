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
        """Re-derive every certified claim with the independent checker (numpy and onnx only), and compare every hash."""
        from vsparse_check.__main__ import run

        return run([str(directory), *(["--json"] if json else [])])
