"""`vsparse schema`: the JSON schemas of recipes and targets, for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vsparse.cli.options import JsonOption, print_json, stdout
from vsparse.errors import InputError, nearest


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("schema")
    def schema_command(
        kind: Annotated[str, typer.Argument(help="recipe or target.")],
        out: Annotated[Path | None, typer.Option("--out", help="Write it to this file; default: print it.")] = None,
        json: JsonOption = False,
    ) -> int:
        """Print the JSON schema of recipes or targets: editors complete keys, check values and show descriptions by it."""
        from vsparse.editor_schema import KINDS, editor_schema
        from vsparse.files import write_json

        chosen = next((one for one in KINDS if one == kind), None)
        if chosen is None:
            raise InputError(f'there is no schema of "{kind}"{nearest(kind, list(KINDS))}; there are {" and ".join(KINDS)}')
        if out is None:
            print_json(editor_schema(chosen))
            return 0
        if out.exists():
            raise InputError(f"{out} is there already; remove it, or give another name with --out")
        write_json(out, editor_schema(chosen))
        if json:
            print_json({"written": str(out)})
        else:
            stdout().print(f"{escape(str(out))} is written", soft_wrap=True)
        return 0
