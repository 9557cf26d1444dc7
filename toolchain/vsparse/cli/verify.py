"""`vsparse verify`: certified accuracy of any ONNX classifier, ours or not, or the answer to one VNN-LIB property."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from vsparse.cli.options import Contract, Jobs, Json, Verbose, print_json
from vsparse.cli.progress import shown_progress
from vsparse.cli.results import show_smoothing, show_verdicts
from vsparse.errors import InputError

if TYPE_CHECKING:
    from vsparse.stages.verify.query import Answer


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("verify")
    def verify_command(
        model: Annotated[Path, typer.Argument(help="An ONNX classifier; with --property, any ONNX network.")],
        data: Annotated[
            str | None,
            typer.Option("--data", help="A built-in dataset (files found through VSPARSE_DATA), or a file or folder of your own."),
        ] = None,
        epsilon: Annotated[
            str | None, typer.Option("--epsilon", help="Radius of the ball on inputs scaled to [0, 1]: 0.1 or 8/255; 0: no ball.")
        ] = None,
        norm: Annotated[str, typer.Option("--norm", help="Norm of the ball: linf, l2 or l1.")] = "linf",
        brightness: Annotated[
            str, typer.Option("--brightness", help="Besides: add up to this much to all values of a sample alike, or take it away.")
        ] = "0",
        contrast: Annotated[
            str, typer.Option("--contrast", help="Besides: move all values away from 1/2, or towards it, by up to this share.")
        ] = "0",
        smoothing: Annotated[
            float | None,
            typer.Option("--smoothing", help="Instead of --epsilon: probabilistic l2 claims under Gaussian noise of this deviation."),
        ] = None,
        n0: Annotated[int, typer.Option("--n0", help="With --smoothing: draws that choose the class.")] = 100,
        n: Annotated[int, typer.Option("--n", help="With --smoothing: draws that are counted.")] = 10_000,
        alpha: Annotated[float, typer.Option("--alpha", help="With --smoothing: probability that a claim is false.")] = 0.001,
        property: Annotated[
            Path | None,
            typer.Option(
                "--property", help="A VNN-LIB 1.0 file, gzipped or not, instead of --data: answered by unsat, sat, unknown or timeout."
            ),
        ] = None,
        timeout: Annotated[float | None, typer.Option("--timeout", min=0, help="With --property: seconds; default: none.")] = None,
        samples: Annotated[int, typer.Option("--samples", min=0, help="How many test samples, the first ones; 0: all.")] = 0,
        contract: Contract = None,
        out: Annotated[
            Path | None,
            typer.Option("--out", help="Folder for certificate.json and counterexamples.npz; with --property, a file for the answer."),
        ] = None,
        vnnlib: Annotated[
            Path | None, typer.Option("--vnnlib", help="With --data: a folder for the question of each claim as a VNN-LIB file.")
        ] = None,
        seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the attacks, and of the split where the data has none.")] = 0,
        jobs: Jobs = None,
        json: Json = False,
        verbose: Verbose = False,
    ) -> int:
        """Certify each test sample of a dataset, attack what cannot be certified, and print how many are certified.

        With --property, answer a VNN-LIB property instead, as VNN-COMP tools do: the verdict on the first line, a witness after `sat`.
        """
        started = monotonic()
        if property is not None:
            if data is not None or epsilon is not None or samples or vnnlib is not None:
                raise InputError("--property asks one question of its own; leave out --data, --epsilon, --samples and --vnnlib")
            from vsparse.standalone import verify_property

            with shown_progress(verbose) as reporter:
                answer = verify_property(
                    model, property, contract=contract, timeout=timeout, out=out, seed=seed, jobs=jobs, started=started, reporter=reporter
                )
            show_answer(answer, json)
            return 0
        if smoothing is not None:
            if data is None or epsilon is not None or contract is not None or vnnlib is not None or timeout is not None:
                raise InputError("--smoothing needs --data, and goes without --epsilon, --contract, --vnnlib and --timeout")
            from vsparse.standalone import smooth

            with shown_progress(verbose) as reporter:
                votes = smooth(
                    model, data=data, sigma=smoothing, n0=n0, n=n, alpha=alpha, samples=samples, out=out, seed=seed, reporter=reporter
                )
            show_smoothing(votes, json)
            return 0
        if data is None or epsilon is None:
            raise InputError("verify needs --data and --epsilon, or a VNN-LIB file as --property")
        if timeout is not None:
            raise InputError("--timeout is for --property; with --data, --samples says how much is verified")
        from vsparse.standalone import verify

        with shown_progress(verbose) as reporter:
            result = verify(
                model,
                data=data,
                epsilon=epsilon,
                norm=norm,
                brightness=brightness,
                contrast=contrast,
                samples=samples,
                contract=contract,
                out=out,
                seed=seed,
                jobs=jobs,
                vnnlib=vnnlib,
                reporter=reporter,
            )
        show_verdicts(result, json)
        return 0


def show_answer(answer: Answer, json: bool) -> None:
    """Prints the answer to a query: the verdict on a line of its own, then the witness of `sat`; or JSON."""
    if json:
        print_json(answer.as_dict())
    else:
        print(answer.text())
