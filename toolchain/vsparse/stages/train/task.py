"""The stage: trains one network of a recipe and writes what the next stages need. Runs in a worker process."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsparse.artifact.stage_files import HISTORY, MASKS, TRAINED, WEIGHTS, write_graph, write_tensors
from vsparse.data import Dataset, Splits, load
from vsparse.files import write_json
from vsparse.graph import Graph, from_torch, run
from vsparse.majority import AgainstMajority, against_majority
from vsparse.networks import make
from vsparse.progress import Say
from vsparse.recipe import Recipe
from vsparse.stages.train.loop import train
from vsparse.stages.train.own import Own, read_own
from vsparse.stages.train.parallel import train_in_processes
from vsparse.stages.train.team import Team


def untrained(recipe: Recipe, splits: Splits) -> tuple[Graph, Own]:
    """Returns the recipe's network before training, and what it says of its training; InputError names what no stage could carry."""
    shape = splits.train.pixels.shape[1:]
    module = make(recipe.network, shape, len(splits.train.classes), recipe.data.mean, recipe.data.std, recipe.train.seed)
    graph = from_torch(module, shape)
    return graph, read_own(module, graph, recipe.train)


def answers(graph: Graph, data: Dataset, batch_size: int) -> AgainstMajority:
    """Returns how the predictions of a network on a split compare with a constant answer."""
    params = graph.tensors()
    with torch.no_grad():
        parts = [
            run(graph, params, torch.from_numpy(data.inputs(slice(start, start + batch_size)))).argmax(1).numpy()
            for start in range(0, len(data), batch_size)
        ]
    return against_majority(data.labels.tolist(), np.concatenate(parts).tolist())


def train_task(payload: dict[str, Any], say: Say) -> dict[str, Any]:
    """Trains one network in `scratch`, resuming what is there, and writes weights, masks and history to `output`.

    Where the recipe wants several processes and this is not one of them, it starts them and waits.
    """
    recipe = Recipe.model_validate(payload["recipe"])
    team = Team.current()
    if recipe.train.processes > team.size:
        return train_in_processes(payload, recipe.train.processes, say)
    splits = load(recipe.data, None if payload["data"] is None else Path(payload["data"]), recipe.train.seed)
    sparse = bool(payload["sparse"])
    result = train(recipe, splits, Path(payload["scratch"]), sparse=sparse, progress=lambda epoch: say(asdict(epoch)))
    if not team.leads:
        return {}
    output = Path(payload["output"])
    write_graph(result.graph, output / TRAINED)
    write_tensors(output / WEIGHTS, result.graph.params)
    write_tensors(output / MASKS, {name: mask.astype(np.uint8) for name, mask in result.masks.items()})
    found = answers(result.graph, splits.validation, recipe.train.batch_size)
    write_json(output / HISTORY, {"schema_version": 1, "sparse" if sparse else "dense": result.history, "validation": found.as_dict()})
    return {}
