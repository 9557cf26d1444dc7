"""`vsparse verify`: certified accuracy of any ONNX classifier, ours or not, or the answer to one VNN-LIB property."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

from vsparse.answer import Answer
from vsparse.ask import verify_property
from vsparse.cli.options import ClusterOption, ContractOption, DeviceOption, JobsOption, JsonOption, VerboseOption, print_json
from vsparse.cli.progress import shown_progress
from vsparse.cli.results import show_smoothing, show_verdicts
from vsparse.errors import InputError
from vsparse.perturbation import PerturbationSet

# The questions, and the options of each; those of EVERY go with all. What stands with a question that has no use for it is refused.
EVERY = ("model", "out", "seed", "json", "verbose")
QUESTIONS = {
    "property": ("contract", "jobs", "timeout", "memory", "device"),
    "smoothing": ("data", "samples", "n0", "n", "alpha"),
    "data": (
        "epsilon",
        "norm",
        "brightness",
        "contrast",
        "delta",
        "samples",
        "contract",
        "vnnlib",
        "jobs",
        "cluster",
        "device",
        "mean",
        "std",
    ),
}


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("verify")
    def verify_command(
        context: typer.Context,
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
            str, typer.Option("--contrast", help="Besides: move all values away from 1/2, or towards it, by up to this fraction.")
        ] = "0",
        delta: Annotated[
            str | None,
            typer.Option("--delta", help="Of a network with one answer, a number: the most that it may change, in its own unit."),
        ] = None,
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
        timeout: Annotated[
            float | None, typer.Option("--timeout", min=0, help="With --property: seconds from the start of the command; default: none.")
        ] = None,
        memory: Annotated[
            str | None,
            typer.Option("--memory", help="With --property: most memory of the search, 4GiB or 500MB; default: half of what is free."),
        ] = None,
        samples: Annotated[int, typer.Option("--samples", min=0, help="How many test samples, the first ones; 0: all.")] = 0,
        contract: ContractOption = None,
        out: Annotated[
            Path | None,
            typer.Option(
                "--out", help="Folder for certificate, counterexamples, proofs and reading.json; with --property, a file for the answer."
            ),
        ] = None,
        vnnlib: Annotated[
            Path | None, typer.Option("--vnnlib", help="With --data: a folder for the question of each claim as a VNN-LIB file.")
        ] = None,
        mean: Annotated[
            str | None,
            typer.Option("--mean", help="For a file that does not normalise: mean of each channel on [0, 1], as 0.49,0.48,0.45."),
        ] = None,
        std: Annotated[str | None, typer.Option("--std", help="With --mean: standard deviation of each channel.")] = None,
        seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the attacks, and of the split where the data has none.")] = 0,
        jobs: JobsOption = None,
        cluster: ClusterOption = None,
        device: DeviceOption = None,
        json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> int:
        """Certify each test sample of a dataset, attack what cannot be certified, and print how many are certified.

        With --property, answer a VNN-LIB property instead, as VNN-COMP tools do: the verdict on the first line, a witness after `sat`.
        """
        started = context.obj if isinstance(context.obj, float) else monotonic()
        question = "property" if property is not None else "smoothing" if smoothing is not None else "data"
        refuse_others(context, question)
        if property is not None:
            with shown_progress(verbose) as reporter:
                answer = verify_property(
                    model,
                    property,
                    contract=contract,
                    timeout=timeout,
                    memory=memory,
                    out=out,
                    seed=seed,
                    jobs=jobs,
                    started=started,
                    device=device or "cpu",
                    reporter=reporter,
                )
            show_answer(answer, json)
            return 0
        if smoothing is not None:
            if data is None:
                raise InputError("--smoothing needs --data, whose samples are classified under noise; give both")
            from vsparse.standalone import smooth

            with shown_progress(verbose) as reporter:
                votes = smooth(
                    model, data=data, sigma=smoothing, n0=n0, n=n, alpha=alpha, samples=samples, out=out, seed=seed, reporter=reporter
                )
            show_smoothing(votes, json)
            return 0
        if data is None or epsilon is None:
            raise InputError("verify needs --data and --epsilon, or a VNN-LIB file as --property")
        from vsparse.standalone import verify

        keys = {"norm": norm, "epsilon": epsilon, "brightness": brightness, "contrast": contrast}
        perturbation = PerturbationSet.parse("the property asked for", **keys, **({} if delta is None else {"delta": delta}))
        if delta is not None and not perturbation.regression:
            raise InputError("--delta is the most that the answer may change, and must be above 0; leave it out for a classifier")
        with shown_progress(verbose) as reporter:
            result = verify(
                model,
                data=data,
                perturbation=perturbation,
                samples=samples,
                contract=contract,
                out=out,
                seed=seed,
                jobs=jobs,
                vnnlib=vnnlib,
                cluster=cluster,
                device=device,
                mean=numbers("--mean", mean),
                std=numbers("--std", std),
                reporter=reporter,
            )
        show_verdicts(result, json)
        return 0


def numbers(option: str, text: str | None) -> tuple[float, ...]:
    """Returns the numbers of `0.49,0.48,0.45`; InputError for anything else."""
    if text is None:
        return ()
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError:
        raise InputError(f'{option} "{text[:40]}" is no list of numbers; write one for each channel, as 0.49,0.48,0.45') from None


def _asked(question: str) -> str:
    """Returns what tells one question from the others: `--data` alone does not, as smoothing has it too."""
    return "--data with --epsilon" if question == "data" else f"--{question}"


def refuse_others(context: typer.Context, question: str) -> None:
    """Raises InputError where an option was given that the question has no use for; it names both."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is None or source.name == "DEFAULT" or name in (*EVERY, question, *QUESTIONS[question]):
            continue
        of = [other for other, options in QUESTIONS.items() if name == other or name in options]
        raise InputError(f"--{name} has no meaning with --{question}; leave it out, it goes with {' or '.join(map(_asked, of))}")


def show_answer(answer: Answer, json: bool) -> None:
    """Prints the answer to a query: the verdict on a line of its own, then the witness of `sat`; or JSON."""
    if json:
        print_json(answer.as_dict())
    else:
        print(answer.text())
