"""The gate `collapse`: networks that answer no better than the largest class would, and losses that rose and never came back."""

from __future__ import annotations

from math import log

from vsparse.artifact.checks import Gate
from vsparse.artifact.facts import Facts
from vsparse.artifact.history import History
from vsparse.majority import LEVEL, AgainstMajority
from vsparse.pipeline.steps import LEAST_STEPS, steps_of_an_epoch
from vsparse.recipe import Recipe

# A loss is judged by its last epochs at the full radius. It was learnt once where it was below this fraction of a constant answer's,
# and it exploded where it was so many times that loss and the first epoch's.
LAST_EPOCHS, ONCE_LEARNT, EXPLODED = 3, 0.9, 10.0


def collapse_of_certified(recipe: Recipe, facts: Facts) -> Gate:
    """Every certified network is better than a constant answer on its own samples: a certificate of one that is not says nothing."""
    reasons: dict[str, list[str]] = {}
    for row in facts.certificates:
        if reason := reason_of(row.against_majority, facts.classes):
            reasons.setdefault(reason, []).append(row.name)
    wrong = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    if not facts.certificates:
        wrong.append("not found")
    histories = [history for history in (facts.history_sparse, facts.history_dense) if history is not None]
    wrong += [risen for history in histories if (risen := _risen(recipe, history, facts.classes))]
    return _gate(recipe, facts, wrong, None if facts.sparse is None else facts.sparse.against_majority, "test samples")


def collapse_of_trained(recipe: Recipe, facts: Facts) -> Gate:
    """Every trained network is better than a constant answer on the validation split, also when the choice of its epoch is allowed for."""
    if facts.history_sparse is None:
        return _gate(recipe, facts, ["not found"], None, "validation samples")
    histories = [history for history in (facts.history_sparse, facts.history_dense) if history is not None]
    wrong = [reason for history in histories for reason in reasons_of_training(recipe, history, facts.classes)]
    few = too_few_to_tell(recipe, histories, facts.classes)
    return _gate(recipe, facts, wrong, facts.validation, "validation samples", few)


def reasons_of_training(recipe: Recipe, history: History, classes: int) -> list[str]:
    """Returns why a trained network counts as collapsed, by its answers on the validation split and by its loss, or nothing."""
    variant = "sparse" if history.sparse is not None else "dense"
    found, choices = history.validation, [epoch.clean_accuracy for epoch in history.candidates]
    reasons = []
    if classes == 1:
        reasons += [f"{variant}, validation: {reason}"] if (reason := reason_of(found, classes)) else []
    elif not found.beaten:
        reasons.append(f"{variant}, validation: {found.reason}")
    elif choices and not found.beaten_by_mean(choices) and _all_right_of_too_few(history):
        reasons.append(
            f"{variant}, validation: all {found.samples} samples are right, which are too few to tell it from a constant answer, as "
            f"{100 * found.majority_accuracy:.1f} % are of the largest class and the best of {len(choices)} epochs was chosen by them"
        )
    elif choices and not found.beaten_by_mean(choices):
        mean = 100 * sum(choices) / len(choices)
        reasons.append(
            f"{variant}, validation: no better than a constant answer: {100 * found.clean_accuracy:.1f} % are right in the epoch that was "
            f"chosen by these {found.samples} samples, but {mean:.1f} % in the mean of the {len(choices)} epochs that it was chosen from, "
            f"and {100 * found.majority_accuracy:.1f} % are of the largest class"
        )
    risen = _risen(recipe, history, classes)
    return [*reasons, risen] if risen else reasons


def reason_of(found: AgainstMajority, classes: int) -> str:
    """Returns why a constant answer is not beaten, empty where it is; with one class the answers are numbers, and that is their mean."""
    if classes != 1 or found.beaten:
        return found.reason
    return (
        f"no better than a constant answer: nearer to the target than the mean is on {found.correct} of {found.samples} samples "
        f"(p = {found.chance:.2g}, at most {LEVEL:g} wanted)"
    )


def too_few_to_tell(recipe: Recipe, histories: list[History], classes: int) -> bool:
    """Whether no training can be mended by its recipe: each has all validation samples right, which are too few to say so."""
    return (
        classes != 1
        and not any(_risen(recipe, history, classes) for history in histories)
        and all(_all_right_of_too_few(one) for one in histories)
    )


def _all_right_of_too_few(history: History) -> bool:
    return history.validation.too_few and history.validation.correct == history.validation.samples


def ways_out(recipe: Recipe, history: History | None, samples: int = 0, few: bool = False) -> str:
    """Returns what to change of a training that collapsed, each with its value now, the likeliest first; `samples` are those trained on.

    `few`: the training is fine as far as one can see, and the validation samples are too few to see more.
    """
    spec, regression = recipe.train, recipe.data.is_regression
    if not spec.epochs:
        answers = "its answer is in the unit of the target" if regression else "classes are in its order"
        return (
            "the network is taken as it is: check that inputs are scaled as it expects them (data.mean, data.std; samples are in [0, 1]), "
            f"that {answers}, and that it was trained on such data"
        )
    if few:
        return f"raise data.validation ({recipe.data.validation:g} now; unused where the data has a validation split) or add samples"
    rate = f"lower train.learning_rate ({spec.learning_rate:g} now)"
    steps = spec.epochs * steps_of_an_epoch(samples, spec.batch_size)
    longer = f"raise train.epochs ({spec.epochs:,} now{f', {steps:,} steps' if samples else ''})"
    radius = [f"lower train.epsilon ({spec.epsilon} now)", f"lengthen train.ramp ({spec.ramp:g} now)"]
    # Signals often take a small part of the range that is stated for their sensor.
    scaled = recipe.data.range is not None and not recipe.data.mean
    normalised = ["set data.mean and data.std to those of the training samples, on the scale from 0 to 1"] if scaled else []
    ways = [*normalised, rate, *(radius if history is None or history.objective.uses_epsilon else ())]
    if history is None or max((epoch.loss for epoch in history.epochs), default=0.0) < EXPLODED * log(2):
        # The likeliest reason is too few steps, and where there were enough, labels that have nothing to do with the images.
        belong = "samples and targets" if regression else "images and labels"
        ways = [longer, *ways] if steps < LEAST_STEPS else [*ways, f"check that {belong} belong together"]
    return f"{', '.join(ways[:-1])} or {ways[-1]}"


def _exploded(losses: list[float], classes: int) -> bool:
    return bool(losses) and max(losses) >= EXPLODED * max(losses[0], log(classes))


def _risen(recipe: Recipe, history: History, classes: int) -> str:
    """Returns that the loss rose and never came back, or nothing.

    A constant classifier's loss is ln(classes) at any radius, so no ramp of the radius lifts the loss of what learns above it for good.
    Where the loss is a cross-entropy alone, it has risen when it was below 0.9 ln(classes) once, and is at ln(classes) or above in each of
    the last three epochs at the full radius. Any loss has when it exploded, to ten times that of the first epoch and of a constant, and
    in these epochs is not below either of them again (of a cross-entropy: not below that of a constant).
    """
    spec, losses = recipe.train, [epoch.loss for epoch in history.epochs]
    last = [epoch.loss for epoch in history.at_full_radius[-LAST_EPOCHS:]]
    if not last or classes < 2:
        return ""
    end, limit = min(last), log(classes)
    compares = history.objective.is_cross_entropy and not spec.l1 and not spec.terms.nrs
    forgot = compares and len(losses) > len(last) and min(losses[: -len(last)]) < ONCE_LEARNT * limit <= limit <= end
    exploded = _exploded(losses, classes) and end >= (limit if compares else max(limit, losses[0]))
    if not forgot and not exploded:
        return ""
    variant = "sparse" if history.sparse is not None else "dense"
    begin, told = (losses[0], "at first") if exploded else (min(losses), "once")
    return (
        f"{variant}: the loss was {begin:,.3f} {told}, rose to {max(losses[losses.index(begin) :]):,.3f} and never came back below "
        f"{limit:.3f}, that of a constant answer (at the end {losses[-1]:,.3f})"
    )


def _gate(recipe: Recipe, facts: Facts, wrong: list[str], found: AgainstMajority | None, samples: str, few: bool = False) -> Gate:
    got = "; ".join(wrong)
    if wrong and wrong != ["not found"]:
        got += f"; {ways_out(recipe, facts.history_sparse, facts.data.splits.train.samples if facts.data else 0, few)}"
    elif found is not None and facts.classes == 1:
        got = f"nearer to the target than the mean is on {found.correct} of {found.samples} {samples}"
    elif found is not None:
        clean, majority = 100 * found.clean_accuracy, 100 * found.majority_accuracy
        got = f"{clean:.1f} % of {found.samples} {samples} right, {majority:.1f} % in the largest class"
    return Gate(name="collapse", wanted="more right than a constant answer", got=got, passed=not wrong)
