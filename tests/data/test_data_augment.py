"""Crops, shifts and flips against a plain loop, and their determinism."""

from __future__ import annotations

import pytest
import torch

from vsparse.data import augment
from vsparse.errors import InputError
from vsparse.recipe import Data, Recipe
from vsparse.schema import validate


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                result[:, row, column] = image[:, row + down, column + right]
    return result


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_result_is_one_of_the_possible_ones_and_all_occur() -> None:
    image = torch.rand(2, 3, 4, generator=seeded(1)) + 0.1
    batch = image.expand(400, -1, -1, -1).contiguous()
    result = augment(batch, Data(shift=1, flip=True, name="own"), seeded(0))
    assert result.shape == batch.shape
    assert result.dtype == batch.dtype
    moves = [shifted(image, down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    possible = torch.stack([*moves, *[move.flip(-1) for move in moves]]).flatten(1)
    matches = (result.flatten(1)[:, None] == possible[None]).all(-1)
    assert matches.any(1).all()
    counts = matches.sum(0)
    assert counts.min() >= 6  # 22 are expected of each


def test_flip_alone_flips_half() -> None:
    batch = torch.rand(1000, 1, 2, 3, generator=seeded(1))
    result = augment(batch, Data(flip=True, name="own"), seeded(0))
    same, mirrored = (result == batch).flatten(1).all(1), (result == batch.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 400 < mirrored.sum() < 600


def test_nothing_asked_for_draws_nothing() -> None:
    generator = seeded(5)
    state = generator.get_state()
    batch = torch.rand(4, 1, 3, 3)
    assert augment(batch, Data(), generator) is batch
    assert torch.equal(generator.get_state(), state)


def test_the_generator_decides() -> None:
    batch = torch.rand(16, 1, 5, 5, dtype=torch.float64)
    spec = Data(shift=2, flip=True, name="own")
    assert torch.equal(augment(batch, spec, seeded(3)), augment(batch, spec, seeded(3)))
    assert not torch.equal(augment(batch, spec, seeded(3)), augment(batch, spec, seeded(4)))
    before = batch.clone()
    augment(batch, spec, seeded(3))
    assert torch.equal(batch, before)


def test_a_shift_larger_than_the_image_and_an_empty_batch() -> None:
    assert augment(torch.ones(8, 1, 2, 2), Data(shift=8), seeded(0)).shape == (8, 1, 2, 2)
    assert augment(torch.ones(0, 3, 4, 4), Data(shift=1, flip=True, name="own"), seeded(0)).shape == (0, 3, 4, 4)


def test_a_crop_is_a_window_of_the_image_with_repeated_edges_and_all_occur() -> None:
    image = torch.rand(2, 3, 4, generator=seeded(1))
    # Padded by hand: row r of 5 rows is row max(0, min(2, r − 1)) of the image.
    padded = image[:, [0, 0, 1, 2, 2]][:, :, [0, 0, 1, 2, 3, 3]]
    possible = torch.stack([padded[:, top : top + 3, left : left + 4] for top in range(3) for left in range(3)]).flatten(1)
    result = augment(image.expand(300, -1, -1, -1).contiguous(), Data(crop=1), seeded(0))
    matches = (result.flatten(1)[:, None] == possible[None]).all(-1)
    assert (matches.sum(1) == 1).all()
    assert matches.sum(0).min() >= 15  # 33 are expected of each


def test_a_crop_uncovers_no_black_border_and_a_shift_does() -> None:
    batch = torch.ones(200, 3, 5, 6)
    assert torch.equal(augment(batch, Data(crop=8), seeded(0)), batch)
    assert bool((augment(batch, Data(shift=2), seeded(0)) == 0).any())


def test_crop_and_shift_and_flip_go_together_and_keep_what_is_given() -> None:
    batch = torch.rand(64, 3, 6, 5, dtype=torch.float64, generator=seeded(2))
    before = batch.clone()
    spec = Data(crop=2, shift=1, flip=True, name="own")
    first, again = (augment(batch, spec, seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == batch.shape
    assert first.dtype == batch.dtype
    assert torch.equal(batch, before)
    assert augment(torch.ones(0, 1, 4, 4), Data(crop=2), seeded(0)).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("name", ["digits", "mnist", "gtsrb"])
def test_flips_that_change_the_label_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InputError, match=rf"flip = true would train {name} on wrong labels: a mirrored .*; set flip to false") as caught:
        validate(Recipe, {"name": "x", "data": {"name": name, "flip": True}}, "recipe x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10", "my-photos"])
def test_flips_are_allowed_where_a_mirror_image_keeps_its_label_or_the_user_decides(name: str) -> None:
    assert validate(Recipe, {"name": "x", "data": {"name": name, "flip": True}}, "recipe x").data.flip
