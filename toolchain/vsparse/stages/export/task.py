"""The stage: writes the file of every deployed form, and checks that the runtime executes the graph that will be verified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vsparse.artifact.forms import FORMS, SPARSE, DeployedForm
from vsparse.artifact.models import CERTIFYING_OF
from vsparse.artifact.stage_files import PACKED, TRAINED
from vsparse.data import Dataset
from vsparse.graph.from_onnx import read_onnx
from vsparse.graph.ir import Graph
from vsparse.reading import check_reading
from vsparse.recipe import AUTO, Recipe
from vsparse.stages.export.c_source.eva import EvaRequest
from vsparse.stages.export.c_source.stage import CRequest
from vsparse.stages.export.certify_onnx.stage import write_certifying, write_further_certifying
from vsparse.stages.export.exporters import EXPORTERS, ON_PROCESSORS, ExecutedBy, ExportJob
from vsparse.stages.export.mixed import MixedPrecision, Tell
from vsparse.stages.export.tune import Progress, Tuning


def export_models(
    packed: Path,
    dense: Path | None,
    output: Path,
    recipe: Recipe,
    training: Dataset,
    contracts: Mapping[DeployedForm, str],
    execution: ExecutedBy = ON_PROCESSORS,
    validation: Dataset | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> None:
    """Writes the forms that `contracts` names, each with the contract that it will be certified under, and evidence of what they execute.

    `packed` is the folder of the compress stage and `dense` that of the dense parent's training; None where that form is not wanted.
    What is read and what is written is executed and compared with its reading. `training` samples calibrate quantised forms, which are
    trained on, and judged on `validation` samples, where there are some; `progress` hears of these epochs, and `tell` which layers stay in
    float32. With deploy.live the float32 file, and each further one that can be, is written once more, with what certifies its own input.
    """
    graphs = {"sparse": _read(packed / PACKED)}
    if dense is not None:
        graphs["dense"] = _read(dense / TRAINED)
    tuning = None if validation is None or recipe.export.int8_epochs == 0 else Tuning(recipe, validation, progress)
    auto = validation is not None and AUTO in recipe.export.float_layers
    mixed = MixedPrecision(recipe.choose.certified_loss, validation, tell) if validation is not None and auto else None
    job = ExportJob(
        output,
        graphs,
        training,
        recipe.export.opset,
        recipe.name,
        contracts,
        recipe.property.perturbation,
        tuning,
        recipe.export.float_layers,
        CRequest(recipe.export.c_prefix, execution.compiler, execution.costs, recipe.export.c_weights, _eva(recipe)),
        execution,
        mixed,
        recipe.deploy.live,
        recipe.deploy.live_budget > 0,
    )
    for form in FORMS:
        if form in contracts:
            EXPORTERS[form.name](job, form)
    if recipe.deploy.live:
        write_certifying(job.path(SPARSE.model), recipe.name, recipe.property.perturbation, training)
        for form, name in contracts.items():
            if form.is_further and form.name in CERTIFYING_OF:
                write_further_certifying(job.path(form.model), recipe.name, recipe.property.perturbation, training, form.name, name)


def _eva(recipe: Recipe) -> EvaRequest | None:
    """Returns what is asked of Frama-C about the C: nothing undefined for any input of the data range."""
    lowest, highest = recipe.property.perturbation.clip
    seconds = recipe.export.c_analysis_seconds
    return EvaRequest(lowest, highest, seconds) if seconds else None


def _read(path: Path) -> Graph:
    """Returns the graph of an earlier stage's file, once the file was executed and compared with its reading."""
    reading = read_onnx(path)
    check_reading(path, reading)
    return reading.graph
