"""Counter-based draws: the published algorithm, uniformity, and the same numbers on any device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from simulated_device import simulated_device
from vsparse.compute_device import to_host
from vsparse.draws import CounterDraws, Draws, integers, normal, permutation, repeated, uniform

CPU = torch.device("cpu")
WORD = 2**64


def squares(counter: int, key: int) -> int:
    """The upper 32 bits of the fourth round of Widynski's generator, in whole numbers."""
    x = y = counter * key % WORD
    z = (y + key) % WORD
    for added in (y, z, y):
        x = (x * x + added) % WORD
        x = (x >> 32 | x << 32) % WORD
    return (x * x + z) % WORD >> 32


def test_words_are_those_of_the_published_generator() -> None:
    draws = CounterDraws(12345)
    draws.position = 7
    found = [word % 2**32 for word in draws.words((50,), CPU).tolist()]
    assert found == [squares(7 + i, draws.key % WORD) for i in range(50)]
    assert draws.position == 57


def test_keys_have_the_digits_that_the_generator_asks_for() -> None:
    keys = {f"{CounterDraws(seed).key % WORD:016x}" for seed in (*range(300), 2**63 - 1, 2**64 - 1)}
    assert len(keys) == 302
    for key in keys:
        assert "0" not in key
        assert len(set(key[:8])) == len(set(key[8:])) == 8
        assert int(key[-1], 16) % 2 == 1


def test_numbers_are_distributed_as_they_should_be() -> None:
    draws = CounterDraws(1)
    u = uniform(draws, (200, 500), CPU)
    assert u.dtype == torch.float32
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:, :-1].flatten(), u[:, 1:].flatten())[0, 1]) < 0.02
    g = normal(draws, (99_999,), CPU)
    assert g.shape == (99_999,)
    assert stats.kstest(g.numpy(), "norm").pvalue > 1e-3
    counts = torch.bincount(integers(draws, 9, (90_000,), CPU), minlength=9).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3
    order = permutation(draws, 1000, CPU)
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() != list(range(1000))


def test_seeds_and_positions_give_other_numbers_and_a_state_the_same_ones() -> None:
    draws = CounterDraws(3)
    state = draws.position
    first, second = uniform(draws, (100,), CPU), uniform(draws, (100,), CPU)
    draws.position = state
    assert torch.equal(first, uniform(draws, (100,), CPU))
    assert not torch.equal(first, second)
    assert not torch.equal(first, uniform(CounterDraws(4), (100,), CPU))


@pytest.mark.parametrize("draw", [uniform, normal, lambda d, s, w: integers(d, 5, s, w), lambda d, s, w: permutation(d, s[0], w)])
def test_any_device_draws_the_same_and_waits_for_nothing(draw) -> None:  # type: ignore[no-untyped-def]
    here = draw(CounterDraws(9), (33, 2), CPU)
    with simulated_device():
        there = draw(CounterDraws(9), (33, 2), torch.device("cuda", 0))
        assert there.device.type == "cuda"
        assert torch.equal(here, to_host(there))


def test_torch_s_generator_draws_what_it_always_has() -> None:
    assert torch.equal(uniform(torch.Generator().manual_seed(5), (4, 3), CPU), torch.rand(4, 3, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(permutation(torch.Generator().manual_seed(5), 9, CPU), torch.randperm(9, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("source", [CounterDraws(2), torch.Generator().manual_seed(2)])
def test_a_repeated_block_draws_again(source: Draws) -> None:
    with repeated(source):
        first = uniform(source, (5,), CPU)
    assert torch.equal(first, uniform(source, (5,), CPU))
    assert not torch.equal(first, uniform(source, (5,), CPU))
