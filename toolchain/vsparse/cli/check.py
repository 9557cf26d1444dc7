"""`vsparse check`: the independent checker on an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vsparse.cli.options import JsonOption


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
            str | None,
            typer.Option("--memory", help="Memory it may use, such as 4GiB; default: half of what is free, 1536 MiB at most."),
        ] = None,
        work: Annotated[
            int | None, typer.Option("--work", min=1, help="Billions of operations that may be done; default: by the artifact's size.")
        ] = None,
        json: JsonOption = False,
    ) -> int:
        """Derive every certified claim again with the independent checker, and all that follows from claims; says what it confirmed."""
        from vsparse.limits import parse_memory
        from vsparse.recheck import recheck
        from vsparse_check.__main__ import progress, show

        most = None if memory is None else parse_memory(memory)
        return show(recheck(directory, data=data, memory_bytes=most, work=work, progress=progress), json)
