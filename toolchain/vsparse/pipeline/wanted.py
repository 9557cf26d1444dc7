"""Which deployed forms a recipe and a target ask for, and the numeric contract that each is certified under."""

from __future__ import annotations

from vsparse.artifact.forms import FORMS, INT8_C, AskedBy, DeployedForm
from vsparse.recipe import Recipe
from vsparse.target import Target


def wanted_forms(recipe: Recipe, target: Target) -> dict[DeployedForm, str]:
    """Returns the forms in the order of the table, each with the name of its contract; the recipe's own contract must be resolved."""
    asked: dict[AskedBy, bool] = {
        "always": True,
        "baseline": recipe.train.baseline and recipe.train.is_sparse,
        "c_source": target.c_source,
        "c_int8": wants_int8_c(recipe, target),
    }
    wanted = [form for form in FORMS if asked.get(form.asked, form.name in recipe.export.precisions)]
    return {form: _contract(form, recipe, target) for form in wanted}


def wants_int8_c(recipe: Recipe, target: Target) -> bool:
    """Returns whether the quantised network is written as C too: in the form of the contract `int8`, for a target that lists C."""
    int8 = target.precisions.get("int8")
    return target.c_source and "int8" in recipe.export.precisions and int8 is not None and int8.contract == INT8_C.contract


def _contract(form: DeployedForm, recipe: Recipe, target: Target) -> str:
    if form.contract_of == "target":
        return target.precisions[form.name].contract
    return form.contract or recipe.verify.contract
