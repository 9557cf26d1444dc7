"""How long a training is where the recipe leaves it open: batch size and epochs follow from the number of training samples."""

from __future__ import annotations

from vsparse.recipe import Recipe

# Optimiser steps below which networks of a few layers were seen to stay at a constant answer (docs/training.md).
LEAST_STEPS = 3_000
# A batch is the largest power of two of at most this fraction of the samples, within these limits; the upper one is the default.
BATCHES_IN_AN_EPOCH, SMALLEST_BATCH = 16, 8


def leaves_open(recipe: Recipe) -> bool:
    """Whether the recipe leaves its batch size or its epochs to the number of samples."""
    return not {"batch_size", "epochs"} <= recipe.train.model_fields_set


def resolved(recipe: Recipe, samples: int) -> Recipe:
    """Returns the recipe with the batch size and the epochs that fit `samples` training samples, where it leaves them out.

    The batch: the largest power of two of at most samples / 16, from 8 to the default (and at least train.processes). The epochs: the
    default, or as many as give 3,000 steps; then the epochs of pruning and fine-tuning that the recipe leaves out grow as much.
    """
    spec = recipe.train
    if not spec.epochs:
        return recipe
    found: dict[str, int] = {}
    if "batch_size" not in spec.model_fields_set:
        wanted = 1 << max(0, (samples // BATCHES_IN_AN_EPOCH).bit_length() - 1)
        found["batch_size"] = min(spec.batch_size, max(SMALLEST_BATCH, spec.processes, wanted))
    if "epochs" not in spec.model_fields_set:
        in_an_epoch = steps_of_an_epoch(samples, found.get("batch_size", spec.batch_size))
        found["epochs"] = max(spec.epochs, -(-LEAST_STEPS // in_an_epoch))
    if all(getattr(spec, name) == value for name, value in found.items()):
        return recipe
    sparse = spec.sparse
    longer = found.get("epochs", spec.epochs) / spec.epochs
    phases = {
        name: round(getattr(sparse, name) * longer)
        for name in ("prune_epochs", "finetune_epochs")
        if name not in sparse.model_fields_set and longer > 1
    }
    train = spec.model_copy(update={**found, "sparse": sparse.model_copy(update=phases)})
    return recipe.model_copy(update={"train": train})


def steps_of_an_epoch(samples: int, batch_size: int) -> int:
    """Returns how many batches, of at most `batch_size`, the samples are divided into."""
    return max(1, -(-samples // batch_size))


def steps_in_words(recipe: Recipe, samples: int) -> str:
    """Returns how long the recipe trains, in one line: batches, epochs and steps."""
    spec = recipe.train
    if not spec.epochs:
        return f"nothing is trained: the network of {spec.start} as it is (train.epochs = 0; --set train.epochs=20 trains on from it)"
    steps = steps_of_an_epoch(samples, spec.batch_size)
    return (
        f"{samples:,} training samples in batches of at most {spec.batch_size:,}: {steps:,} steps an epoch, {spec.epochs:,} epochs, "
        f"{steps * spec.epochs:,} steps (train.batch_size, train.epochs)"
    )
