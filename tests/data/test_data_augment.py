"""Shifts and flips against a plain loop, and their determinism."""

from __future__ import annotations

import torch

from vsparse.data import augment
from vsparse.recipe import Data


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
    result = augment(batch, Data(shift=1, flip=True), seeded(0))
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
    result = augment(batch, Data(flip=True), seeded(0))
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
    spec = Data(shift=2, flip=True)
    assert torch.equal(augment(batch, spec, seeded(3)), augment(batch, spec, seeded(3)))
    assert not torch.equal(augment(batch, spec, seeded(3)), augment(batch, spec, seeded(4)))
    before = batch.clone()
    augment(batch, spec, seeded(3))
    assert torch.equal(batch, before)


def test_a_shift_larger_than_the_image_and_an_empty_batch() -> None:
    assert augment(torch.ones(8, 1, 2, 2), Data(shift=8), seeded(0)).shape == (8, 1, 2, 2)
    assert augment(torch.ones(0, 3, 4, 4), Data(shift=1, flip=True), seeded(0)).shape == (0, 3, 4, 4)
