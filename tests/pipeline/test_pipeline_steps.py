"""Steps of a training that the recipe leaves open: they follow from the number of samples, and what is set stays."""

from __future__ import annotations

import pytest

from vsparse.pipeline.steps import LEAST_STEPS, leaves_open, resolved, steps_in_words, steps_of_an_epoch
from vsparse.recipe import Recipe, load_recipe
from vsparse.schema import validate
from vsparse.shipped import shipped_names


def recipe(**train: object) -> Recipe:
    return validate(Recipe, {"name": "own", "train": train}, "test")


@pytest.mark.parametrize(
    ("samples", "batch", "epochs"),
    [
        (54_000, 128, 40),
        (9_600, 128, 40),
        (9_000, 128, 43),
        (2_048, 128, 188),
        (2_047, 64, 94),
        (258, 16, 177),
        (100, 8, 231),
        (1, 8, 3000),
    ],
)
def test_batch_and_epochs_follow_from_the_samples(samples: int, batch: int, epochs: int) -> None:
    found = resolved(recipe(), samples)
    assert (found.train.batch_size, found.train.epochs) == (batch, epochs)
    assert steps_of_an_epoch(samples, batch) * epochs >= LEAST_STEPS


def test_what_is_set_stays_even_at_its_default() -> None:
    assert resolved(recipe(epochs=40, batch_size=128), 100) == recipe(epochs=40, batch_size=128)
    one = resolved(recipe(batch_size=128), 300).train
    assert (one.batch_size, one.epochs) == (128, 1000)
    other = resolved(recipe(epochs=7), 300).train
    assert (other.batch_size, other.epochs) == (16, 7)
    assert resolved(recipe(processes=12), 100).train.batch_size == 12


def test_later_phases_grow_as_much() -> None:
    found = resolved(recipe(sparse={"method": "hydra", "prune_epochs": 3}), 258).train
    assert found.epochs == 177
    assert (found.sparse.prune_epochs, found.sparse.finetune_epochs) == (3, round(10 * 177 / 40))


def test_a_resolved_recipe_leaves_nothing_open() -> None:
    found = resolved(recipe(), 258)
    again = validate(Recipe, found.model_dump(mode="json"), "test")
    assert not leaves_open(again)
    assert resolved(again, 10) == again == found
    assert steps_in_words(found, 258).startswith(
        "258 training samples in batches of at most 16: 17 steps an epoch, 177 epochs, 3,009 steps"
    )


@pytest.mark.parametrize("name", shipped_names("models"))
def test_shipped_recipes_set_both(name: str) -> None:
    assert not leaves_open(load_recipe(name))
