"""The values of a first recipe: each follows from the data or from the target, and says from what."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from vsparse.errors import InputError
from vsparse.graph import from_torch
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.ir import Graph
from vsparse.networks import make
from vsparse.pipeline.estimate import stage_seconds
from vsparse.pipeline.fits import require_fit
from vsparse.pipeline.steps import LEAST_STEPS, resolved, steps_of_an_epoch
from vsparse.recipe import Recipe
from vsparse.schema import parse_fraction
from vsparse.starter.choose_own import set_data, set_gates, set_property, set_training, tell_chance
from vsparse.starter.draft import Draft
from vsparse.starter.survey import DataSurvey, data_name
from vsparse.target import Target

# Radii that are tried, the largest first; where a set of data begins follows from what its images are.
RADII = ("0.1", "0.05", "8/255", "4/255", "2/255", "1/255", "1/510", "1/1020")
# Images count as drawings (text, masks, thresholded) where so many pixels are nearly black or white.
DRAWN_SHARE = 0.6
# Samples from which on drawings begin at 0.1, samples of a class below which photographs begin at 1/255, and what few are otherwise.
MANY_DRAWINGS, FEW_OF_A_CLASS, FEW = 5_000, 15, 2_000
# The radius stays below these fractions of half the distance between classes (5th percentile), and of the contrast.
OF_DISTANCE, OF_CONTRAST = 4, 6
# Widths that are tried for a microcontroller, whose memories the code and the stack need a part of.
WIDTHS, OF_MEMORY = (1.0, 0.75, 0.5, 0.35, 0.25, 0.18, 0.125, 0.0625), 0.75
# The first test of the labels passes where it is so far above the constant answer.
ABOVE_CHANCE = 0.05
# The gate on certified accuracy lies this far from a constant answer towards all.
GATE = 0.25


@dataclass(frozen=True)
class Recommendation:
    """A recipe for data and a target, with a reason for each key that it sets, by its dotted name, and what a person should know of it.

    `values` are the keys in the order of the file; `seconds` is an estimate of the training on one core, for one network.
    """

    survey: DataSurvey
    target: str
    values: dict[str, Any]
    reasons: dict[str, str]
    recipe: Recipe
    seconds: float
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {
            "schema_version": 1,
            "target": self.target,
            "data": self.survey.as_dict(),
            "values": self.values,
            "reasons": self.reasons,
            "estimated_training_seconds": round(self.seconds, 1),
            "warnings": list(self.warnings),
        }


def recommend(found: DataSurvey, target: Target) -> Recommendation:
    """Returns a first recipe for the data and the target; InputError where no network that this package names fits the target."""
    draft = Draft()
    draft.set("schema_version", 1, "of this format")
    draft.set("name", data_name(found.directory), "the name of the data's folder; artifacts are called by it")
    predicted = "a number" if found.regression else f"{len(found.classes)} classes"
    draft.set("description", f"{predicted} of {'×'.join(map(str, found.shape))} inputs", "one line for people")
    draft.set("data.name", data_name(found.directory), "a name of your own")
    draft.set("data.path", str(found.directory), "where it lies; leave it out to give the folder with --data DIR instead")
    own = bool(found.keys)
    (set_data if own else _data)(draft, found)
    draft.set("network.architecture", *_architecture(found))
    draft.set("network.width", 1.0, "")
    (set_property if own else _property)(draft, found)
    (set_training if own else _train)(draft, found)
    network = _fit(draft, found, target)
    if own:
        set_gates(draft, found, GATE)
        tell_chance(draft, found)
    else:
        _gates(draft, found)
        _chance(draft, found)
    recipe = draft.recipe()
    seconds = stage_seconds("train", recipe, network, found.counts)
    return Recommendation(found, target.name, draft.values, draft.reasons, recipe, seconds, tuple(draft.warnings))


def _data(draft: Draft, found: DataSurvey) -> None:
    counts = found.counts
    if found.format in ("idx", "npz", "cifar", "folder"):
        draft.set("data.format", found.format, "what was found there")
    if found.resize:
        listed = ", ".join(f"{w}×{h}" for h, w in list(found.sizes)[:3])
        kinds = "they have one size" if len(found.sizes) == 1 else f"they have {len(found.sizes)} sizes"
        draft.set(
            "data.resize",
            list(found.resize),
            f"height and width: {kinds} (width×height {listed}{', …' if len(found.sizes) > 3 else ''}), and a small certified network "
            "reads at most 32 pixels a side; the device must resize in the same way",
        )
    if found.track_separator:
        draft.set(
            "data.track_separator",
            found.track_separator,
            f"frames of one track stay on one side of the splits: {found.tracks} tracks by {found.tracks_said}",
        )
    elif found.tracks:
        draft.warnings.append(f"{found.tracks} tracks, by {found.tracks_said}: whole tracks go into one split")
    elif found.format == "folder":
        draft.warnings.append(
            f"no tracks: {found.tracks_said}. Where several images show one thing, the test says little about the next one "
            "(docs/how-to-own-data.md, section 2)"
        )
    if not found.own_test:
        draft.set("data.test", 0.2, f"there is no test split of yours, so {counts['test']} of {found.samples} samples are held out")
    if not found.own_validation:
        draft.set("data.validation", 0.1, f"{counts['validation']} training samples choose the best epoch")
    if min(found.std) > 0:
        draft.set("data.mean", list(found.mean), f"of the {counts['train']} training samples, by channel, on the scale from 0 to 1")
        draft.set("data.std", list(found.std), "the same; both become part of the network, so the device feeds pixel / 255")
    else:
        draft.warnings.append("a channel is constant in the training samples, so nothing is normalised (data.mean, data.std)")
    drawings, side = found.near_edge >= DRAWN_SHARE, min(found.shape[1:])
    if side >= 12:
        key, most = ("shift", 1) if drawings else ("crop", 2 if side >= 24 else 1)
        why = "the uncovered edge becomes black, as the background is" if drawings else "the edge is repeated, which suits photographs"
        draft.set(f"data.{key}", most, f"augmentation: training images move by up to {most} pixels; {why}")
    draft.set("data.flip", False, "set to true only where a mirrored image keeps its class: never for text, digits or signs")


def _architecture(found: DataSurvey) -> tuple[str, str]:
    """Returns the network, and why."""
    height, width = found.shape[1:]
    if found.kind == "table":
        return "mlp", f"two hidden layers: the {found.shape[0]} inputs have no order that convolutions could use"
    if height == 1 and width >= 16:
        return "cnn1d", f"convolutions along the {width} time steps (`vsparse models` lists others)"
    if min(height, width) < 4:
        return "mlp", f"inputs of {height}×{width} are too small for convolutions"
    return "cnn4", f"two convolutions and two linear layers: small, and certified well, at {height}×{width} (`vsparse models` lists others)"


def _property(draft: Draft, found: DataSurvey) -> None:
    radius, reason = radius_for(found)
    draft.set("property.epsilon", radius, reason)
    if found.half_distances[0] == 0:
        draft.warnings.append("some images of different classes are identical: they cannot be certified at any radius; look at the labels")


def radius_for(found: DataSurvey) -> tuple[str, str]:
    """Returns the radius to begin with, and how it was chosen: by the kind of image and the number of samples, below two limits.

    Half the distance to the nearest sample of another class bounds what any classifier can certify of both; a network trained on few
    samples stays far below.
    """
    train, few = found.counts["train"], min(found.per_class.values())
    drawings = found.near_edge >= DRAWN_SHARE
    if drawings:
        many = train >= MANY_DRAWINGS
        start = "0.1" if many else "0.05"
        why = (
            f"{100 * found.near_edge:.0f} % of the pixels are nearly black or white, and {train:,} samples are {'many' if many else 'few'}"
        )
    else:
        start = "1/255" if few < FEW_OF_A_CLASS else "2/255"
        why = f"photographs, of which the smallest class has {few} to train on"
    distance, contrast = found.half_distances[0], max(found.std)
    limit = min(distance / OF_DISTANCE, contrast / OF_CONTRAST)
    first = RADII.index(start)
    chosen = next((one for one in RADII[first:] if parse_fraction(one) <= limit), RADII[-1])
    reason = (
        f"radius on the scale from 0 to 1, to begin with: {why}; half the distance to the nearest sample of another class is {distance:.3g}"
        f" (5th percentile), {float(distance / parse_fraction(chosen)):.0f} times this radius"
    )
    if chosen != start:
        most = f"1/{OF_DISTANCE} of that, and 1/{OF_CONTRAST} of the contrast {contrast:.3g}"
        reason += f"; lowered from {start}, as at most {most}, can be hoped for"
    return chosen, reason + ". Raise it when the first build certifies well"


def _train(draft: Draft, found: DataSurvey) -> None:
    samples = found.counts["train"]
    radius = parse_fraction(draft.values["property.epsilon"])
    drawings, few = found.near_edge >= DRAWN_SHARE, samples < FEW
    larger = Fraction(3, 2) if drawings and few else Fraction(5, 4)
    draft.set(
        "train.objective", "mtl-ibp", "a mix of an attacked loss and a bounded one: keeps clean accuracy at small radii (docs/training.md)"
    )
    draft.set(
        "train.epsilon", str(radius * larger), f"{float(larger):g} times the certified radius, so that margins hold on images not seen"
    )
    fitted = resolved(draft.recipe(), samples).train
    in_an_epoch = steps_of_an_epoch(samples, fitted.batch_size)
    draft.set("train.batch_size", fitted.batch_size, f"a sixteenth of the {samples:,} training samples, as a power of two, from 8 to 128")
    draft.set(
        "train.epochs",
        fitted.epochs,
        f"{in_an_epoch} steps each, {fitted.epochs * in_an_epoch:,} in all: below {LEAST_STEPS:,} networks were seen to stay at chance",
    )
    draft.set(
        "train.learning_rate",
        2e-3 if fitted.batch_size <= 32 else 3e-3,
        f"of Adam, for batches of {fitted.batch_size}; lower it if the build says that the training collapsed",
    )
    draft.set("train.ramp", 0.35, "fraction of the epochs in which ε grows from 0: the network learns the classes before the radius")
    draft.set("train.regulariser", 0, "not needed at this weight of the bounded loss")
    draft.set("train.sparsity", 0.5 if few else 0.75, f"fraction of the weights that is removed; {'few' if few else 'enough'} samples")
    draft.set(
        "train.baseline",
        not few,
        "true trains the dense parent too, for comparison: twice the time" if few else "the dense parent too, for comparison",
    )
    draft.set("train.loss.alpha", 0.1, "weight of the bounded loss: raise it when much is robust but not certified")
    draft.set("train.loss.attack_steps", 1, "one long step from a random point: the cheapest attack")
    draft.set("train.loss.attack_step", 2.0, "of its length, in radii")
    draft.set("train.sparse.method", "gradual", "begins dense, and removes more and more until `freeze`")
    draft.set("train.sparse.importance", "sensitivity", "channels are ranked by what removing one costs")
    draft.set("train.sparse.allocation", "uniform", "every layer loses the same share")
    draft.set("train.sparse.freeze", 0.6, "fraction of the epochs after which what is left is trained on")


def _network(recipe: Recipe, found: DataSurvey) -> Graph:
    outputs = 1 if found.regression else len(found.classes)
    module = make(recipe.network, found.shape, outputs, recipe.data.mean, recipe.data.std, recipe.train.seed)
    return fold_batch_norm(from_torch(module.eval(), found.shape))


def _fit(draft: Draft, found: DataSurvey, target: Target) -> Graph:
    """Settles the width, and the precision where float32 does not fit; returns the untrained network."""
    if target.device.kind != "microcontroller":
        draft.reasons["network.width"] = f"factor of all channels; target {target.name} has room for more"
        return _network(draft.recipe(), found)
    facts = {name: one.model_copy(update={"value": OF_MEMORY * one.value}) for name, one in target.device.facts.items()}
    smaller = target.model_copy(update={"device": target.device.model_copy(update={"facts": facts})})
    flash, ram = target.device.kib("flash"), target.device.kib("ram")
    refusal = InputError("no width was tried")
    for precisions in ((), *((("int8",),) if "int8" in target.precisions else ())):
        for width in WIDTHS:
            draft.set(
                "network.width", width, f"the widest tried whose weights and activations take {OF_MEMORY:.0%} of {target.name}'s memory"
            )
            if precisions:
                draft.set("export.precisions", list(precisions), f"float32 does not fit the {flash:g} KiB of flash and {ram:g} KiB of RAM")
                draft.set("export.int8_epochs", -1, "trained on for a quarter of the epochs as it rounds")
            recipe = draft.recipe()
            try:
                network = _network(recipe, found)
                require_fit(recipe, smaller, network)
                whole = recipe.train.model_copy(update={"sparse": recipe.train.sparse.model_copy(update={"granularity": "element"})})
                require_fit(recipe.model_copy(update={"train": whole}), smaller, network)
            except InputError as error:
                refusal = error
                continue
            return network
    raise InputError(
        f"no width of {draft.values['network.architecture']} from {WIDTHS[-1]} on fits target {target.name}: {refusal}"
    ) from refusal


def _gates(draft: Draft, found: DataSurvey) -> None:
    least = round(found.majority + GATE * (1 - found.majority), 2)
    tests = found.counts["test"]
    draft.set(
        "gates.certified_accuracy",
        least,
        f"a quarter of the way from a constant answer ({100 * found.majority:.1f} % of {tests} test samples) to all; raise it to what the "
        "first build reached",
    )
    draft.set("gates.weights_removed", round(draft.values["train.sparsity"] - 0.05, 2), "what sparsity asks for, less a little")


def _chance(draft: Draft, found: DataSurvey) -> None:
    """Says what the first test of the labels found: whether images tell classes apart at all."""
    samples, reached, few = found.counts["validation"], found.centroid_accuracy, min(found.per_class.values())
    chance = max(found.per_class.values()) / found.counts["train"]
    if reached <= chance + ABOVE_CHANCE:
        draft.warnings.append(
            f"naming the class whose mean image is nearest is right for {100 * reached:.0f} % of {samples} validation samples, and a "
            f"constant answer for about {100 * chance:.0f} %: the first build may stay at chance; check that images and labels go together"
        )
    if few < FEW_OF_A_CLASS:
        least = min(found.per_class, key=lambda name: found.per_class[name])
        draft.warnings.append(
            f'the class "{least}" has {few} training samples: expect little of it, and add more before raising the radius'
        )
    if max(found.per_class.values()) > 5 * few:
        draft.warnings.append(
            f"classes are unbalanced ({few} to {max(found.per_class.values())} training samples): compare each class's share"
        )
    if found.counts["test"] < 50:
        draft.warnings.append(
            f"{found.counts['test']} test samples say a share only to within {100 / found.counts['test'] ** 0.5:.0f} points or so"
        )
