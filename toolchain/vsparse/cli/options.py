"""Options that several commands share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

PIPE_WIDTH = 140

DataOption = Annotated[Path | None, typer.Option("--data", help="Folder with the dataset; default: the environment variable VSPARSE_DATA.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Artifact directory; default: build/RECIPE-TARGET.")]
TargetOption = Annotated[str, typer.Option("--target", help="A shipped target (`vsparse targets`) or the path of a .toml file.")]
SettingOption = Annotated[list[str] | None, typer.Option("--set", help="Overrides a recipe key: --set train.sparsity=0.9 (repeatable).")]
ContractOption = Annotated[
    str | None, typer.Option("--contract", help="Numeric contract; default: the target's. `real` proves nothing about a device.")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Where tensors are computed: cpu, cuda, cuda:N, or auto (the first CUDA device, else cpu).")
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Overrides the recipe's seed.")]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, max=256, help="Processes that compute at once, all stages together; default: one a core.")
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="Dask scheduler whose workers share the work: tcp://HOST:PORT or tls://HOST:PORT; local:N: N workers of this machine.",
    ),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Plain progress lines where stderr is no terminal; tracebacks of errors.")
]
LogOption = Annotated[
    Path | None,
    typer.Option("--log", help="Also write each epoch and step of the training to this file, a JSON object a line (docs/how-to-log.md)."),
]
TensorboardOption = Annotated[
    Path | None,
    typer.Option("--tensorboard", help="Also write TensorBoard's event files there; needs `pip install vsparse\\[tensorboard]`."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def stdout() -> Console:
    """Returns the console that results go to."""
    # A pipe has no width; lines there should not break words into columns.
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PIPE_WIDTH)


def print_json(value: Any) -> None:
    """Prints a result as JSON, without NaN or infinities."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_error(text: str, code: int) -> None:
    """Prints what went wrong as JSON, where a result would have stood: its sentence, and the exit code."""
    print_json({"error": text, "exit_code": code})


def percent(value: float | None) -> str:
    """Returns a fraction as a percentage with one decimal, or a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f} %"
