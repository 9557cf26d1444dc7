"""Which deployed forms a recipe and a target ask for, and the numeric contract that each is certified under."""

from __future__ import annotations

from vsparse.artifact.forms import FORMS, INT8_C, PRECISIONS, AskedBy, DeployedForm
from vsparse.errors import InputError
from vsparse.recipe import AUTO, Recipe
from vsparse.target import Target


def with_precisions(recipe: Recipe, target: Target) -> Recipe:
    """Returns the recipe with the names of its precisions, in the order of the table, in place of `auto`.

    Where int8 is not among those that the target offers, layers of the int8 file are named no more. Raises InputError for a precision
    that the target does not offer, and for a gate or a choice that is about one.
    """
    export, offered = recipe.export, ", ".join(target.precisions)
    missing = next((name for name in export.precisions if name not in (AUTO, *target.precisions)), "")
    if missing:
        every = f""" --set 'export.precisions=["{AUTO}"]'"""
        raise InputError(
            f"target {target.name} offers no {missing} (it offers {offered}); leave it out, or ask for all that it offers:{every}"
        )
    if AUTO not in export.precisions:
        return recipe
    # Further forms are certified of classes alone.
    names = () if recipe.data.is_regression else tuple(form.name for form in PRECISIONS if form.name in target.precisions)
    layers = export.float_layers if "int8" in names else ()
    found = recipe.model_copy(update={"export": export.model_copy(update={"precisions": names, "float_layers": layers})})
    wrong = found.unmet()
    if wrong:
        raise InputError(f"{wrong}, and target {target.name} offers {offered}; leave it out")
    return found


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
