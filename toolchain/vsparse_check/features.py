"""model/features.json of a table against the certificate, the network's input and the recipe."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import Any

from vsparse_check.certificate import exact
from vsparse_check.files import read_file, read_json
from vsparse_check.refusal import need, reading

FEATURES = "model/features.json"
MAX_RECIPE = 2**20
# Numbers that follow from each other by a few roundings of float64 agree to this fraction.
CLOSE = 1e-9


def check_features(root: Path, files: set[str], certificate: Mapping[str, Any]) -> None:
    """Refutes a map from columns to inputs whose radii, ranges or means are other than stated.

    One entry for each input of the network, which the certificate has a scale for. The radius in
    the column's unit is that of the certificate, rounded down; what may not change has none.
    `span` is `deviations` standard deviations, and the recipe's mean and deviation are those of
    the column, mapped. Whether mean and deviation are those of the training rows, only the data
    can tell.
    """
    if FEATURES not in files:
        return
    with reading(FEATURES):
        features = read_json(root / FEATURES)["features"]
        about = certificate["property"]
        scales = about.get("scales", ())
        need(
            len(features) == len(scales),
            f"{FEATURES} lists {len(features)} inputs, and the certificate has {len(scales)} radii",
        )
        names = [feature["name"] for feature in features]
        need(len(set(names)) == len(names), f"{FEATURES} lists an input twice")
        for feature, scale in zip(features, scales, strict=True):
            _check_radius(feature, exact(about["epsilon"]) * exact(scale))
        if "recipe.toml" in files:
            recipe = tomllib.loads(read_file(root / "recipe.toml", MAX_RECIPE).decode())
            _check_recipe(features, recipe)


def _check_radius(feature: dict[str, Any], radius: Fraction) -> None:
    """Refutes a range that is none, and a radius in a column's unit beyond the certified one."""
    name = f"{FEATURES}: {feature['name']!s:.60}"
    numbers = {key: feature[key] for key in ("low", "span", "mean", "std", "epsilon")}
    typed = all(type(value) in (int, float) for value in numbers.values())
    need(typed and all(map(isfinite, numbers.values())), f"{name} has a map that is no number")
    need(numbers["span"] > 0 and numbers["std"] >= 0, f"{name} has a range that is none")
    fixed, category, column = feature["fixed"], feature["category"], feature["column"]
    need(
        type(fixed) is bool and (not fixed or radius == 0),
        f"{name} is said to be fixed, and has a radius",
    )
    stated = column if category is None else f"{column}={category}"
    need(feature["name"] == stated, f"{name} is another column, or category, than it names")
    need(category is None or fixed, f"{name} is a category, which nothing may change")
    most, epsilon = radius * Fraction(numbers["span"]), Fraction(numbers["epsilon"])
    need(
        epsilon <= most <= epsilon * (1 + Fraction(CLOSE)),
        f"{name} has another radius than the certificate: {float(most):g} in its unit",
    )
    same = fixed or _close(numbers["span"], feature["deviations"] * numbers["std"])
    need(same, f"{name}: span is not its number of standard deviations")


def _check_recipe(features: list[dict[str, Any]], recipe: dict[str, Any]) -> None:
    """Refutes maps under which the recipe normalises by other numbers, or leaves a column out."""
    data, own = recipe.get("data", {}), recipe.get("property", {}).get("features", {})
    means, deviations = data.get("mean", ()), data.get("std", ())
    need(
        len(means) == len(deviations) == len(features),
        f"{FEATURES} lists {len(features)} inputs, and recipe.toml has {len(means)} means",
    )
    left = {*data.get("drop", ()), data.get("target", ""), data.get("group", "")}
    for feature, mean, std in zip(features, means, deviations, strict=True):
        name = f"{FEATURES}: {feature['name']!s:.60}"
        span, column = feature["span"], feature["column"]
        need(column not in left, f"{name} is a column that recipe.toml leaves out")
        wanted = feature["std"] / span if feature["std"] > 0 else 1.0
        same = _close(std, wanted) and abs(mean - (feature["mean"] - feature["low"]) / span) < CLOSE
        need(same, f"{name} has another mean or deviation than recipe.toml normalises by")
        if column in own:
            least = exact(str(own[column])) * (1 - Fraction(CLOSE))
            need(feature["epsilon"] >= least, f"{name} has a radius below recipe.toml's")


def _close(one: float, other: float) -> bool:
    """Returns whether two numbers are the same beside a few roundings."""
    return abs(one - other) <= CLOSE * max(abs(one), abs(other))
