"""The stage: trains one network of a recipe and writes what the next stages need. Runs in a worker process."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from vsparse.artifact.document import write_document
from vsparse.artifact.forms import Variant
from vsparse.artifact.history import Epoch, History, ObjectiveRecord
from vsparse.artifact.stage_files import HISTORY, MASKS, TRAINED, WEIGHTS, write_graph, write_tensors
from vsparse.data import Splits
from vsparse.data.packed import splits_of
from vsparse.errors import InputError
from vsparse.graph import Graph
from vsparse.progress import Emit
from vsparse.recipe import Recipe
from vsparse.stages.train.answer_scale import last_layer
from vsparse.stages.train.answers import answers
from vsparse.stages.train.checks import require_trainable
from vsparse.stages.train.loop import train
from vsparse.stages.train.named_classes import own_code
from vsparse.stages.train.objectives import objective_class
from vsparse.stages.train.own import Own
from vsparse.stages.train.process_group import ProcessGroup
from vsparse.stages.train.start_network import starting_network, write_as_it_is
from vsparse.stages.train.validation import validated_by


def untrained(recipe: Recipe, splits: Splits) -> tuple[Graph, Own]:
    """Returns the recipe's network before training, and what it says of its training; InputError names what no stage could carry."""
    graph, own = starting_network(recipe, splits.train.pixels.shape[1:], len(splits.train.classes))
    if not recipe.train.epochs:
        return graph, Own()
    require_trainable(recipe.train, graph)
    if splits.train.targets is not None:
        last_layer(graph)
    return graph, replace(own, code=own_code(recipe.train))


def train_task(payload: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Trains one network in `scratch`, resuming what is there, and writes weights, masks and history to `output`.

    In this process alone, or in each process of torch's process group, which must have as many as train.processes says (InputError).
    """
    recipe = Recipe.model_validate(payload["recipe"])
    group = ProcessGroup.current()
    if recipe.train.processes != group.size:
        wanted = recipe.train.processes
        raise InputError(f"torchrun started {group.size} processes, and the recipe says train.processes = {wanted}; make them one number")
    splits = splits_of(payload, recipe)
    sparse = bool(payload["sparse"])
    if not recipe.train.epochs:
        if group.is_rank_0:
            write_as_it_is(recipe, splits, Path(payload["output"]))
        return {}
    result = train(
        recipe,
        splits,
        Path(payload["scratch"]),
        sparse=sparse,
        progress=lambda epoch: emit(asdict(epoch)),
        within=lambda batch: emit({"within": asdict(batch)}),
        steps=lambda found: emit({"steps": asdict(found)}),
    )
    if not group.is_rank_0:
        return {}
    output = Path(payload["output"])
    write_graph(result.graph, output / TRAINED)
    write_tensors(output / WEIGHTS, result.graph.params)
    write_tensors(output / MASKS, {name: mask.astype(np.uint8) for name, mask in result.masks.items()})
    found = answers(result.graph, splits.validation, recipe.train.batch_size)
    chosen = objective_class(recipe.train)
    objective = ObjectiveRecord(
        name=recipe.train.objective,
        report=chosen.report,
        certified=chosen.certified,
        validated_by=validated_by(recipe),
        is_cross_entropy=chosen.is_cross_entropy,
        uses_epsilon=chosen.uses_epsilon,
    )
    epochs = tuple(Epoch.model_validate(epoch) for epoch in result.history)
    variant: Variant = "sparse" if sparse else "dense"
    write_document(output / HISTORY, History.of(variant, epochs, objective, found, result.epoch, result.robust_samples))
    return {}
