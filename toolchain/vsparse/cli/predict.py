"""`vsparse predict`: the class or number of inputs, and how much they may change before another one is possible."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vsparse.cli.options import ContractOption, JsonOption, print_json, stdout


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""

    @app.command("predict")
    def predict_command(
        source: Annotated[Path, typer.Argument(help="An artifact, an ONNX classifier, or with --delta a network with one answer.")],
        inputs: Annotated[list[Path], typer.Argument(help="Images of the network's size, .npz files with an array x, or tables (CSV).")],
        epsilon: Annotated[
            str | None,
            typer.Option("--epsilon", help="Radius asked about, such as 8/255; default: the artifact's, and 0 for an ONNX file."),
        ] = None,
        norm: Annotated[str | None, typer.Option("--norm", help="Norm of the ball: linf, l2 or l1; default: the artifact's.")] = None,
        delta: Annotated[
            str | None,
            typer.Option("--delta", help="Of a network with one answer, a number: the most that it may change, in its own unit."),
        ] = None,
        contract: ContractOption = None,
        json: JsonOption = False,
    ) -> int:
        """Predict images or rows of one's own, with the largest radius at which each answer is proved to stay, and the bound."""
        from vsparse.prediction import predict

        found = predict(source, inputs, epsilon=epsilon, norm=norm, contract=contract, delta=delta)
        if json:
            print_json(found.as_dict())
            return 0
        number = found.property.regression
        kind, bounded = ("answer", "change at most") if number else ("class", "margin at least")
        table = Table("input", kind, f"at ε = {found.property.epsilon}", bounded, "proved radius")
        for one in found.predictions:
            bound = one.change_upper if number else one.margin_lower
            table.add_row(
                escape(one.source),
                "no finite answer" if one.label < 0 else escape(one.name),
                "certified" if one.certified else "not certified",
                "–" if bound is None else f"{bound:.4g}",
                "–" if one.radius is None else f"{one.radius:.4f}",
            )
        stdout().print(table)
        if number:
            stdout().print(f"certified: the answer changes by no more than δ = {found.property.delta}, for every execution", soft_wrap=True)
        stdout().print(f"asked about, under contract {found.contract}: {escape(found.property.sentence())}", soft_wrap=True)
        for remark in found.remarks:
            stdout().print(escape(remark), soft_wrap=True)
        return 0
