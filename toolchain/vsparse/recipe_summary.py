"""What a recipe builds, in numbers, before anything is loaded or trained: `vsparse models NAME`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vsparse.data.names import CLASS_NAMES, USUAL_SAMPLES, USUAL_SHAPES
from vsparse.errors import InputError
from vsparse.files import read_bytes
from vsparse.graph import from_torch
from vsparse.graph.cost import macs, parameter_count, weight_count
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.ir import Graph
from vsparse.networks import ARCHITECTURES, descriptions, make
from vsparse.notebook import pairs
from vsparse.pipeline.estimate import stage_seconds
from vsparse.pipeline.steps import resolved
from vsparse.recipe import Recipe, load_recipe
from vsparse.recipe_sources import key_sources
from vsparse.shipped import shipped_file, shipped_names, shipped_settings


@dataclass(frozen=True)
class RecipeSummary:
    """A recipe as a reader wants it.

    `input_shape` is [C, H, W] and None, as are `classes`, `samples` and what follows from them, for data that only loading tells;
    `classes` is None for regression too.
    `weights`, `parameters` and `macs` (multiply-accumulates of one sample) are those of the dense network, its batch norm folded.
    `samples` are those of the splits, `epochs` those that fit them, and `training_seconds` what one network then takes on one core, by
    arithmetic (`vsparse.pipeline.estimate`). `settings` is that of `shipped_settings`, and empty for a recipe of the user's own. `source`
    is the comment at the head of its file, line by line, and `sources` says for each key, by its dotted name, where a shipped recipe has
    the setting from, as far as its file does (`vsparse.recipe_sources`).
    """

    recipe: Recipe
    settings: str
    source: tuple[str, ...]
    input_shape: tuple[int, ...] | None
    classes: int | None
    architecture: str
    weights: int | None
    parameters: int | None
    macs: int | None
    samples: dict[str, int] | None = None
    epochs: int | None = None
    training_seconds: float | None = None
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def gates(self) -> dict[str, float]:
        """The least or greatest values that a build must reach, those that are asked for."""
        return {name: value for name, value in self.recipe.gates.model_dump(mode="json").items() if value}

    def _repr_html_(self) -> str:
        one = self.recipe
        names = ("input_shape", "classes", "architecture", "weights", "macs")
        rows: list[tuple[str, object]] = [(name.replace("_", " "), getattr(self, name)) for name in names]
        rows += [("data", one.data.name), ("epsilon", one.property.epsilon), ("epochs", one.train.epochs), ("gates", self.gates)]
        return pairs(f"{one.name}: {one.description}", rows, " ".join(self.source))

    def as_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON values, with every key of the recipe under `recipe`."""
        recipe = self.recipe
        train, sparse = recipe.train, recipe.train.sparse
        return {
            "schema_version": 1,
            "name": recipe.name,
            "description": recipe.description,
            "settings": self.settings or None,
            "source": list(self.source),
            "sources": self.sources,
            "dataset": {
                "name": recipe.data.name,
                "kind": "regression" if recipe.data.is_regression else "classes",
                "input_shape": None if self.input_shape is None else list(self.input_shape),
                "classes": self.classes,
                "samples": self.samples,
            },
            "network": {
                "architecture": recipe.network.architecture,
                "width": recipe.network.width,
                "description": self.architecture or None,
                "weights": self.weights,
                "parameters": self.parameters,
                "macs": self.macs,
            },
            "property": recipe.property.perturbation.model_dump(mode="json"),
            "train": {
                "objective": train.objective,
                "epsilon": train.epsilon,
                "epochs": train.epochs,
                "epochs_fit_the_data": "epochs" not in train.model_fields_set,
                "epochs_that_fit": self.epochs,
                "estimated_seconds": self.training_seconds,
                "sparsity": train.sparsity,
                "method": sparse.method if train.is_sparse else None,
                "granularity": sparse.granularity if train.is_sparse else None,
                "baseline": train.baseline and train.is_sparse,
            },
            "gates": self.gates,
            "recipe": recipe.model_dump(mode="json"),
        }


def summarise_recipe(name: str) -> RecipeSummary:
    """Returns what a shipped recipe, or one in a .toml file, builds; code of the user's own that it names is not run.

    Raises InputError for a name that is no recipe, with the nearest one, and for a file that is none.
    """
    path = shipped_file("models", name)
    if path is None and name in ARCHITECTURES:
        with_it = [one for one in shipped_names("models") if load_recipe(one).network.architecture == name]
        uses = f"recipes with it: {', '.join(with_it)}" if with_it else f"name it in a recipe: --set network.architecture={name}"
        raise InputError(f'"{name}" is an architecture and no recipe ({descriptions()[name]}); {uses}')
    recipe = load_recipe(name)
    shape, names = USUAL_SHAPES.get(recipe.data.name), CLASS_NAMES.get(recipe.data.name)
    architecture = descriptions().get(recipe.network.architecture, "")
    outputs = 1 if recipe.data.is_regression else len(names or ())
    network = _network(recipe, shape, outputs) if architecture and shape and outputs else None
    samples = _samples(recipe)
    fitted = None if samples is None else resolved(recipe, samples["train"])
    seconds = None if network is None or fitted is None or samples is None else stage_seconds("train", fitted, network, samples)
    text = read_bytes(path or Path(name), "recipe").decode()
    return RecipeSummary(
        recipe,
        shipped_settings(name) if path is not None else "",
        leading_comment(text),
        shape,
        None if names is None else len(names),
        architecture,
        None if network is None else weight_count(network),
        None if network is None else parameter_count(network),
        None if network is None else macs(network),
        samples,
        None if fitted is None else fitted.train.epochs,
        None if seconds is None else round(seconds, 1),
        {} if path is None else key_sources(text),
    )


def shipped_sources(name: str) -> dict[str, str]:
    """Returns where a shipped recipe has its settings from, by dotted key, as far as its file says so."""
    path = shipped_file("models", name)
    return {} if path is None else key_sources(read_bytes(path, "recipe").decode())


def leading_comment(text: str) -> tuple[str, ...]:
    """Returns the lines of the comment that a TOML file begins with, without their signs."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return tuple(lines)


def _samples(recipe: Recipe) -> dict[str, int] | None:
    """Returns how many samples the splits of a built-in dataset have; None for data of one's own."""
    usual = USUAL_SAMPLES.get(recipe.data.name)
    if usual is None:
        return None
    held = round(recipe.data.validation * usual[0])
    return {"train": usual[0] - held, "validation": held, "test": usual[1]}


def _network(recipe: Recipe, shape: tuple[int, ...], classes: int) -> Graph:
    """Returns the recipe's dense network, its batch norm folded."""
    module = make(recipe.network, shape, classes, recipe.data.mean, recipe.data.std, recipe.train.seed)
    return fold_batch_norm(from_torch(module.eval(), shape))
