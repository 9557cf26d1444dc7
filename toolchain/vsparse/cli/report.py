"""`vsparse report`: the report again, from what the artifact holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vsparse.cli.options import Json, print_json


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("report")
    def report_command(
        directory: Annotated[Path, typer.Argument(help="The artifact directory.")],
        json: Json = False,
    ) -> int:
        """Write report.html and report.json again from what the artifact holds; prints the path of the report."""
        from vsparse.pipeline.build import rewrite_report

        path = rewrite_report(directory)
        print_json({"report": str(path)}) if json else print(path)
        return 0
