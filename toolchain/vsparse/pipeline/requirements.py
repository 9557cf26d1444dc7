"""What a deployed form needs of a network and of training samples, refused by name and number before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from vsparse.artifact.forms import INT8_C, SEQUENTIAL, DeployedForm
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.grids import STYLES
from vsparse.graph.ir import Graph
from vsparse.pipeline.wanted import wanted_forms
from vsparse.recipe import Recipe
from vsparse.target import Target

# Fewer samples say next to nothing about the range of an activation.
LEAST_CALIBRATION = 16
CHUNK = 1024


def require_forms(forms: Mapping[DeployedForm, str], recipe: Recipe, graph: Graph, training: Dataset) -> None:
    """Refuses a form that lacks an operator of the network, or samples to be calibrated on; the form and its contract are in `forms`.

    Raises InputError that names form, node or number, and a way out. C source is required where `choose.forms` names it; otherwise a
    network without a C form goes without.
    """
    if recipe.deploy.live:
        _require_live(forms, fold_batch_norm(graph))
    for form, contract in forms.items():
        required = form.asked == "precisions" or (not form.is_onnx and form.label in recipe.choose.forms)
        if not required:
            continue
        named = "choose.forms" if form.asked != "precisions" else "export.precisions"
        out = f'or leave "{form.label}" out of {named}'
        if form.asked == "precisions":
            rest = [name for name in recipe.export.precisions if name != form.name]
            out += f": --set 'export.precisions={json.dumps(rest)}'"
        try:
            _try_to_write(form, contract, fold_batch_norm(graph), recipe.export.float_layers)
        except InputError as refusal:
            raise InputError(f"the network cannot be deployed in {form.label}: {refusal}; {out}") from None
        if contract in STYLES:
            _require_calibration(form, training, out)


def without_impossible(recipe: Recipe, target: Target, graph: Graph, training: Dataset) -> tuple[Recipe, tuple[str, ...]]:
    """Returns the recipe without the precisions that the network cannot be written in, and why each was left out."""
    reasons: list[str] = []
    for name in recipe.export.precisions:
        alone = _with_precisions(recipe, (name,))
        try:
            require_forms(
                {form: contract for form, contract in wanted_forms(alone, target).items() if form.asked != "c_source"},
                alone,
                graph,
                training,
            )
        except InputError as refusal:
            reasons.append(f"{name} is left out: {str(refusal).partition('; or leave')[0].partition(', or leave')[0]}")
            recipe = _with_precisions(recipe, tuple(one for one in recipe.export.precisions if one != name))
    return recipe, tuple(reasons)


def _with_precisions(recipe: Recipe, names: tuple[str, ...]) -> Recipe:
    return recipe.model_copy(update={"export": recipe.export.model_copy(update={"precisions": names})})


def _require_live(forms: Mapping[DeployedForm, str], graph: Graph) -> None:
    """Refuses deploy.live for a target without C, and for a network with an operator that has no interval form in C."""
    from vsparse.stages.export.c_live import UNIT_RANGE, require_live_form

    if SEQUENTIAL not in forms:
        raise InputError("deploy.live is about the C source, which this target does not ask for (c_source); leave it out")
    try:
        require_live_form(graph, UNIT_RANGE)
    except InputError as refusal:
        raise InputError(f"deploy.live: {refusal}") from None


def _try_to_write(form: DeployedForm, contract: str, graph: Graph, float_layers: Sequence[str]) -> None:
    """Writes the untrained network in a form, as far as that depends on its operators."""
    from vsparse.graph import to_onnx
    from vsparse.stages.export.c_int8 import require_int8_c_form
    from vsparse.stages.export.c_source import emit_c
    from vsparse.stages.export.half import half
    from vsparse.stages.export.quantise import require_quantisable

    if contract in STYLES:
        require_quantisable(graph, contract, float_layers)
        if form == INT8_C:
            require_int8_c_form(graph)
    elif form == SEQUENTIAL:
        emit_c(graph, "", "untrained")
    elif contract.startswith("fp16"):
        to_onnx(half(graph))


def _require_calibration(form: DeployedForm, training: Dataset, out: str) -> None:
    """Refuses training samples that say nothing about the range of activations: too few, or all the same."""
    count = len(training)
    if count < LEAST_CALIBRATION:
        raise InputError(
            f"{form.label} is calibrated on training samples, and there are {count}, fewer than {LEAST_CALIBRATION}; give more, {out}"
        )
    if all((training.pixels[start : start + CHUNK] == training.pixels[:1]).all() for start in range(0, count, CHUNK)):
        raise InputError(f"{form.label} is calibrated on training samples, and all {count} are one and the same image; give others, {out}")
