"""What a table adds to a recipe: normalisation inside the network, and the radius of each feature, both from its training split."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_CEILING, Decimal, localcontext
from fractions import Fraction
from math import isclose

from vsparse.data import Splits
from vsparse.data.features import Feature
from vsparse.errors import InputError, nearest
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Recipe
from vsparse.schema import parse_fraction

# Digits of the factor of a radius that is given in a feature's own unit; it is rounded up.
DIGITS = 12


def with_features(recipe: Recipe, splits: Splits) -> Recipe:
    """Returns the recipe with data.mean and data.std, property.scales and train.epsilon as the features of a table say.

    epsilon counts standard deviations of the training split: features that may change have the factor 1 / deviations, fixed ones 0, and
    those that property.features names their radius in the column's own unit. A recipe whose scales are there, that of an artifact, keeps
    them. Other data: the same recipe. Raises InputError for a column that is unknown or categorical, and another norm than linf; of other
    data for a radius beyond the data range.
    """
    features = splits.features
    if not features:
        if recipe.property.features:
            raise InputError(f'property.features is about columns of a table, and the data "{splits.name}" is none; leave it out')
        recipe.property.perturbation.require_within_range("property.epsilon")
        trained = recipe.property.model_copy(update={"epsilon": recipe.train.epsilon}).perturbation
        trained.require_within_range("train.epsilon")
        return recipe
    if recipe.deploy.live:
        raise InputError("deploy.live certifies one radius for all inputs, and a table has one for each feature; leave deploy.live out")
    asked = recipe.property
    if asked.norm != "linf" or asked.perturbation.photometric:
        raise InputError(
            "property: of a table each feature has a radius of its own, which goes with norm linf alone, without brightness and contrast"
        )
    mean, std = tuple(one.normal_mean for one in features), tuple(one.normal_std for one in features)
    stated = zip((*recipe.data.mean, *recipe.data.std), (*mean, *std), strict=False)
    other = bool(recipe.data.mean) and not all(isclose(given, found, rel_tol=1e-9, abs_tol=1e-12) for given, found in stated)
    if other or len(recipe.data.mean) not in (0, len(mean)):
        raise InputError(
            f'data.mean and data.std are not those of the training rows of "{splits.name}", by which a table is normalised; '
            "leave both out, and property.scales too: the build derives them"
        )
    data = recipe.data if recipe.data.mean else recipe.data.model_copy(update={"mean": mean, "std": std})
    if asked.scales:
        return recipe.model_copy(update={"data": data})
    scales = tuple(_scales(recipe, features))
    wanted = asked.model_copy(update={"scales": scales})
    most = max(parse_fraction(scale) for scale in scales)
    if not most:
        raise InputError(f'every feature of "{splits.name}" is categorical or constant, so there is nothing to certify against')
    radius = _stated(parse_fraction(recipe.train.epsilon) * most, "train.epsilon times the largest factor of a feature")
    train = recipe.train.model_copy(update={"epsilon": radius})
    PerturbationSet.model_validate(wanted.model_dump(include={"norm", "epsilon", "scales"}))
    return recipe.model_copy(update={"data": data, "property": wanted, "train": train})


def _scales(recipe: Recipe, features: tuple[Feature, ...]) -> Iterator[str]:
    own, epsilon = recipe.property.features, parse_fraction(recipe.property.epsilon)
    columns = list(dict.fromkeys(feature.column for feature in features))
    for name, radius in own.items():
        if name not in columns:
            raise InputError(f'property.features: there is no column "{name}"{nearest(name, columns)}; there are {", ".join(columns[:12])}')
        if any(one.fixed for one in features if one.column == name) and parse_fraction(radius):
            raise InputError(f'property.features: the column "{name}" is categorical or constant, so its radius is 0; leave it out')
    if own and not epsilon:
        raise InputError("property.features states radii, and property.epsilon is 0; give the one of the other features, in deviations")
    for feature in features:
        if feature.fixed:
            yield "0"
        elif feature.column in own:
            factor = parse_fraction(own[feature.column]) / Fraction(feature.span) / epsilon
            yield _stated(
                factor, f'the radius {own[feature.column]} of the column "{feature.column}", divided by range and property.epsilon,'
            )
        else:
            yield f"1/{feature.deviations}"


def _stated(value: Fraction, what: str) -> str:
    """Returns `_upward` of the value; InputError that begins with `what` where a recipe could not state it."""
    text = _upward(value)
    try:
        parse_fraction(text)
    except ValueError as error:
        way = "give radii in the units of the columns, and an epsilon, that are nearer to the standard deviations"
        raise InputError(f"property: {what} is {float(value):.3g}, out of what a recipe states ({error}); {way}") from None
    return text


def _upward(value: Fraction) -> str:
    """Returns a decimal number of DIGITS digits that is at least the value."""
    with localcontext() as context:
        context.prec, context.rounding = DIGITS, ROUND_CEILING
        return format(Decimal(value.numerator) / Decimal(value.denominator), "f")
