"""The training loop: epoch after epoch, with a checkpoint after each, from where an earlier run stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from vsparse.data import Splits
from vsparse.recipe import Recipe
from vsparse.stages.train.determinism import deterministic
from vsparse.stages.train.named_classes import errors_of_own_classes
from vsparse.stages.train.placement import room_for_samples, training_device
from vsparse.stages.train.result import BatchReport, EpochReport, StepsReport, TrainResult
from vsparse.stages.train.trainer import Trainer

# How often a checkpoint waits for the disk; the others, after every epoch, cost next to nothing.
DURABLE_SECONDS = 0.5


def train(
    recipe: Recipe,
    splits: Splits,
    directory: Path,
    *,
    sparse: bool,
    progress: Callable[[EpochReport], None] | None = None,
    within: Callable[[BatchReport], None] | None = None,
    steps: Callable[[StepsReport], None] | None = None,
) -> TrainResult:
    """Trains the recipe's network to its budget (`sparse`) or dense, and continues from the checkpoint in `directory` where there is one.

    Deterministic from recipe.train.seed: an interrupted training ends in the same bits as one that was not, and an interrupt loses at
    most the epoch that was running (a loss of power half a second more). In a process group (parallel.py) every process calls this; the
    first one evaluates, writes and reports: to `progress` after every epoch, to `within` at most twice a second inside one, to `steps`
    its steps at its end. Raises InputError for a recipe that cannot be met (architecture, budget, damaged checkpoint) and for a full
    disk, GateError when the loss is no longer finite.
    """
    device = training_device(recipe.train)
    with deterministic(device), errors_of_own_classes(recipe.train):
        with room_for_samples(device):
            trainer = Trainer(recipe, splits, directory, sparse)
        trainer.within, trainer.steps = (within, steps) if trainer.process_group.is_rank_0 else (None, None)
        waited = time.perf_counter()
        while not trainer.finished:
            try:
                report = trainer.run_epoch()
            except torch.OutOfMemoryError as error:
                raise trainer.out_of_memory() from error
            durable = trainer.finished or time.perf_counter() - waited >= DURABLE_SECONDS
            trainer.save(durable)
            if durable:
                waited = time.perf_counter()
            if progress is not None and trainer.process_group.is_rank_0:
                progress(report)
        return trainer.result()
