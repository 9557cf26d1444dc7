"""`vsparse verify`: certified accuracy of any ONNX classifier, ours or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vsparse.cli.options import Contract, Jobs, Json, Verbose
from vsparse.cli.progress import shown_progress
from vsparse.cli.results import show_verdicts


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("verify")
    def verify_command(
        model: Annotated[Path, typer.Argument(help="An ONNX classifier.")],
        data: Annotated[
            str, typer.Option("--data", help="A built-in dataset (files found through VSPARSE_DATA), or a file or folder of your own.")
        ],
        epsilon: Annotated[str, typer.Option("--epsilon", help="Radius of the l∞ ball on inputs scaled to [0, 1]: 0.1 or 8/255.")],
        samples: Annotated[int, typer.Option("--samples", min=0, help="How many test samples, the first ones; 0: all.")] = 0,
        contract: Contract = None,
        out: Annotated[
            Path | None, typer.Option("--out", help="Folder for certificate.json and counterexamples.npz; default: nothing is written.")
        ] = None,
        seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the attacks, and of the split where the data has none.")] = 0,
        jobs: Jobs = None,
        json: Json = False,
        verbose: Verbose = False,
    ) -> int:
        """Certify each test sample of a dataset, attack what cannot be certified, and print how many are certified."""
        from vsparse.standalone import verify

        with shown_progress(verbose) as reporter:
            result = verify(
                model, data=data, epsilon=epsilon, samples=samples, contract=contract, out=out, seed=seed, jobs=jobs, reporter=reporter
            )
        show_verdicts(result, json)
        return 0
