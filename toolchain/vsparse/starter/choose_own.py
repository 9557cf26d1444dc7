"""The values of a first recipe for tables, windows of sensors and numbers to predict, each with its reason."""

from __future__ import annotations

from fractions import Fraction
from math import floor, log10

from vsparse.pipeline.steps import LEAST_STEPS, resolved, steps_of_an_epoch
from vsparse.recipe_train import REGRESSION
from vsparse.schema import parse_fraction
from vsparse.starter.draft import Draft
from vsparse.starter.survey import DataSurvey

# Of a table radii count standard deviations of each column; of windows the smallest deviation of a channel is divided by OF_CHANNEL.
OF_TABLE = ("0.1", "0.05", "0.02", "0.01", "0.005", "0.002", "0.001")
OF_CHANNEL = 20
# The radius stays below this fraction of half the distance between classes (5th percentile).
OF_DISTANCE = 4
# The answer of a regression may change by this fraction of the deviation of what is predicted.
OF_TARGET = 0.3
FEW, FEW_OF_A_CLASS = 2_000, 15
# A first test passes where it is so far above the constant answer.
ABOVE_CHANCE = 0.05


def set_data(draft: Draft, found: DataSurvey) -> None:
    """Sets how the samples are read, split and normalised."""
    for key, (value, reason) in found.keys.items():
        draft.set(f"data.{key}", value, reason)
    counts = found.counts
    if not found.own_test:
        draft.set("data.test", 0.2, f"there is no test split of yours, so {counts['test']} of {found.samples} samples are held out")
    if not found.own_validation:
        draft.set("data.validation", 0.1, f"{counts['validation']} training samples choose the best epoch")
    if found.tracks:
        draft.warnings.append(f"{found.tracks} tracks, by {found.tracks_said}: whole tracks go into one split")
    else:
        how = 'name a column in data.group, such as "patient"' if found.format != "npz" else "give the archive an array `track`"
        draft.warnings.append(f"rows are taken for independent of each other: where several are of one thing, {how}")
    if found.kind != "table" and min(found.std) > 0:
        draft.set("data.mean", list(found.mean), f"of the {counts['train']} training samples, by channel, on the scale from 0 to 1")
        draft.set("data.std", list(found.std), "the same; both become part of the network")
    draft.warnings += found.notes


def set_property(draft: Draft, found: DataSurvey) -> None:
    """Sets the radius, and of a regression the most that the answer may change."""
    distance = found.half_distances[0]
    limit = float("inf") if found.regression else distance / OF_DISTANCE
    told = "" if found.regression else f"; half the distance to the nearest sample of another class is {distance:.3g} (5th percentile)"
    if found.kind == "table":
        radius = next((one for one in OF_TABLE if parse_fraction(one) <= limit), OF_TABLE[-1])
        reason = f"standard deviations of each column of numbers{told}"
        reason += "; radii in a column's own unit go into property.features"
    else:
        smallest = min((value for value in found.std if value > 0), default=0.05)
        radius = _digits(min(smallest / OF_CHANNEL, limit), 1)
        reason = f"radius on the scale from 0 to 1, to begin with: 1/{OF_CHANNEL} of a channel's smallest deviation, {smallest:.3g}{told}"
        if "range" in found.keys:
            low, high = found.keys["range"][0]
            reason += f"; in the sensor's own unit {float(radius) * (high - low):.3g}"
    draft.set("property.epsilon", radius, reason + ". Raise it when the first build certifies well")
    if found.regression:
        most = _digits(OF_TARGET * found.target_deviation, 2)
        draft.set(
            "property.delta",
            most,
            f"the most that the answer may change, in its own unit: {OF_TARGET:g} of the deviation of what is predicted, "
            f"{found.target_deviation:.4g}; set what your application allows",
        )
    elif distance == 0:
        draft.warnings.append("some samples of different classes are identical: they cannot be certified at any radius; look at the labels")


def _digits(value: float, digits: int) -> str:
    """Returns a positive number rounded down to so many digits, as plain decimal text."""
    places = digits - 1 - floor(log10(value)) if value > 0 else 0
    unit = Fraction(10) ** -places
    kept = Fraction(value) // unit * unit
    return format(float(kept), f".{max(0, places)}f") if kept else "0.0001"


def set_training(draft: Draft, found: DataSurvey) -> None:
    """Sets objective, length and sparsity."""
    samples, few = found.counts["train"], found.counts["train"] < FEW
    if found.regression:
        draft.set("train.objective", REGRESSION, "the squared error that interval bounds leave possible")
    else:
        draft.set("train.objective", "ibp", "the loss that interval bounds leave possible: for small radii of few inputs the cheapest")
    draft.set("train.epsilon", draft.values["property.epsilon"], "the certified radius")
    fitted = resolved(draft.recipe(), samples).train
    in_an_epoch = steps_of_an_epoch(samples, fitted.batch_size)
    draft.set("train.batch_size", fitted.batch_size, f"a sixteenth of the {samples:,} training samples, as a power of two, from 8 to 128")
    draft.set(
        "train.epochs",
        fitted.epochs,
        f"{in_an_epoch} steps each, {fitted.epochs * in_an_epoch:,} in all: below {LEAST_STEPS:,} networks were seen to stay at chance",
    )
    draft.set("train.learning_rate", 2e-3, "of Adam; lower it if the build says that the training collapsed")
    draft.set("train.sparsity", 0.5 if few else 0.75, f"fraction of the weights that is removed; {'few' if few else 'enough'} samples")
    draft.set("train.baseline", not few, "true trains the dense parent too, for comparison, which takes twice the time")


def set_gates(draft: Draft, found: DataSurvey, towards_all: float) -> None:
    """Sets what the build must reach: a part of the way from a constant answer to all, or half of the answers of a regression."""
    if found.regression:
        draft.set(
            "gates.certified_accuracy",
            0.5,
            "certified share of the answers; raise it to what the first build reached. That the answers are nearer than the mean is a gate "
            "of every build",
        )
    else:
        least = round(found.majority + towards_all * (1 - found.majority), 2)
        draft.set(
            "gates.certified_accuracy",
            least,
            f"a quarter of the way from a constant answer ({100 * found.majority:.1f} % of {found.counts['test']} test samples) to all; "
            "raise it to what the first build reached",
        )
    draft.set("gates.weights_removed", round(draft.values["train.sparsity"] - 0.05, 2), "what sparsity asks for, less a little")


def tell_chance(draft: Draft, found: DataSurvey) -> None:
    """Says what the first test found, and what few or unbalanced samples mean."""
    if found.counts["test"] < 50:
        draft.warnings.append(
            f"{found.counts['test']} test samples say a share only to within {100 / found.counts['test'] ** 0.5:.0f} points or so"
        )
    if found.regression:
        if found.linear_explained <= ABOVE_CHANCE:
            draft.warnings.append(
                f"a linear fit explains {100 * max(0.0, found.linear_explained):.0f} % of the variance of {found.counts['validation']} "
                "validation numbers: the first build may be no nearer than their mean; check that inputs and numbers go together"
            )
        return
    few, most = min(found.per_class.values()), max(found.per_class.values())
    chance = most / found.counts["train"]
    if found.centroid_accuracy <= chance + ABOVE_CHANCE:
        draft.warnings.append(
            f"naming the class whose mean is nearest is right for {100 * found.centroid_accuracy:.0f} % of {found.counts['validation']} "
            f"validation samples, and a constant answer for about {100 * chance:.0f} %: the first build may stay at chance; check that "
            "inputs and labels go together"
        )
    if few < FEW_OF_A_CLASS:
        least = min(found.per_class, key=lambda name: found.per_class[name])
        draft.warnings.append(f'the class "{least}" has {few} training samples: expect little of it, and add more')
    if most > 5 * few:
        draft.warnings.append(f"classes are unbalanced ({few} to {most} training samples): compare each class's share")
