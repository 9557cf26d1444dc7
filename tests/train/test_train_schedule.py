"""Schedules: values at the ends, the shape of the ramp, and where milestones fall."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vsparse.recipe import Sparse, Train
from vsparse.stages.train.schedule import Schedule, smoothed_ramp


def spec(**settings: object) -> Train:
    return Train.model_validate({"epsilon": "0.2", "epochs": 100, "warmup": 0.1, "ramp": 0.4, **settings})


def test_ramp_ends_values_and_the_formula_by_hand() -> None:
    # c · 0.4⁴ + 4c · 0.4³ · 0.6 = 1, so c = 1 / 0.1792.
    assert smoothed_ramp(0) == 0
    assert smoothed_ramp(1) == pytest.approx(1)
    assert smoothed_ramp(0.2) == pytest.approx(0.2**4 / 0.1792)
    assert smoothed_ramp(0.4) == pytest.approx(0.4**4 / 0.1792)
    assert smoothed_ramp(0.7) == pytest.approx((0.4**4 + 4 * 0.4**3 * 0.3) / 0.1792)
    assert smoothed_ramp(-1) == 0
    assert smoothed_ramp(2) == pytest.approx(1)


def test_ramp_never_falls_and_has_no_jump_of_slope() -> None:
    values = [smoothed_ramp(i / 1000) for i in range(1001)]
    steps = [b - a for a, b in pairwise(values)]
    assert min(steps) >= 0
    assert max(abs(b - a) for a, b in pairwise(steps)) < 2e-5


def test_epsilon_is_zero_through_the_warm_up_and_full_after_the_ramp() -> None:
    schedule = Schedule(spec())
    assert [schedule.epsilon(epoch) for epoch in (0, 5, 10)] == [0, 0, 0]
    assert 0 < schedule.epsilon(20) < schedule.epsilon(40) < 0.2
    assert schedule.epsilon(50) == pytest.approx(0.2)
    assert schedule.epsilon(99.9) == pytest.approx(0.2)
    assert schedule.full_from == 50


def test_no_ramp_is_a_step() -> None:
    schedule = Schedule(spec(ramp=0.0))
    assert [schedule.epsilon(position) for position in (9.99, 10)] == [0, 0.2]


def test_an_exact_fraction_is_trained_at_its_nearest_double() -> None:
    assert Schedule(spec(epsilon="8/255")).epsilon(99) == 8 / 255


def test_kappa_moves_with_epsilon() -> None:
    schedule = Schedule(spec(kappa_start=0.9, kappa_end=0.5))
    assert schedule.kappa(0) == 0.9
    assert schedule.kappa(99) == pytest.approx(0.5)
    assert schedule.kappa(30) == pytest.approx(0.9 - 0.4 * schedule.share(30))


def test_learning_rate_falls_at_each_milestone() -> None:
    schedule = Schedule(spec(learning_rate=1.0, milestones=(0.5, 0.75), decay=0.1))
    assert [schedule.learning_rate(epoch) for epoch in (0, 49)] == [1.0, 1.0]
    assert [schedule.learning_rate(epoch) for epoch in (50, 74)] == pytest.approx([0.1, 0.1])
    assert schedule.learning_rate(75) == pytest.approx(0.01)


def test_there_is_always_an_epoch_at_full_radius_and_with_the_final_mask() -> None:
    for epochs in (1, 2, 3, 7):
        schedule = Schedule(spec(epochs=epochs, warmup=0.3, ramp=0.6, sparse=Sparse(freeze=1.0)))
        assert 0 <= schedule.full_from < epochs
        assert 0 <= schedule.freeze_from < epochs
