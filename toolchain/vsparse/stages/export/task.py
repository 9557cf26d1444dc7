"""The stage: writes the file of every deployed form, and checks that the runtime executes the graph that will be verified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vsparse.artifact.forms import FORMS, DeployedForm
from vsparse.artifact.stage_files import PACKED, TRAINED
from vsparse.data import Dataset
from vsparse.graph.from_onnx import read_onnx
from vsparse.graph.ir import Graph
from vsparse.reading import check_reading
from vsparse.recipe import Recipe
from vsparse.stages.export.exporters import EXPORTERS, ExportJob


def export_models(
    packed: Path,
    dense: Path | None,
    output: Path,
    recipe: Recipe,
    training: Dataset,
    contracts: Mapping[DeployedForm, str],
    machine: tuple[str, ...] = (),
) -> None:
    """Writes the forms that `contracts` names, each with the contract that it will be certified under, and evidence of what they execute.

    `packed` is the folder of the compress stage and `dense` that of the dense parent's training; None where that form is not wanted.
    What is read and what is written is executed and compared with its reading. `training` samples calibrate quantised forms; `machine`
    names a microcontroller to its compiler.
    """
    graphs = {"sparse": _read(packed / PACKED)}
    if dense is not None:
        graphs["dense"] = _read(dense / TRAINED)
    job = ExportJob(
        output, graphs, training, recipe.export.opset, recipe.name, contracts, recipe.property.perturbation, recipe.export.c_prefix, machine
    )
    for form in FORMS:
        if form in contracts:
            EXPORTERS[form.name](job, form)


def _read(path: Path) -> Graph:
    """Returns the graph of an earlier stage's file, once the file was executed and compared with its reading."""
    reading = read_onnx(path)
    check_reading(path, reading)
    return reading.graph
