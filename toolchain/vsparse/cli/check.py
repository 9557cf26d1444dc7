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
        data: Annotated[
            str | None,
            typer.Option("--data", help="The data that claims should be about: the recipe's dataset by name, or its file or folder."),
        ] = None,
        memory: Annotated[
            int | None, typer.Option("--memory", min=1, help="MiB that may be used; default: half of what is free, 1536 at most.")
        ] = None,
        work: Annotated[
            int | None, typer.Option("--work", min=1, help="Billions of operations that may be done; default: by the artifact's size.")
        ] = None,
        json: Json = False,
    ) -> int:
        """Derive every certified claim again with the independent checker, and all that follows from claims; says what it confirmed."""
        from vsparse.recheck import recheck
        from vsparse_check.__main__ import progress, show

        return show(recheck(directory, data=data, memory=memory, work=work, progress=progress), json)
