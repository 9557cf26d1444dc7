"""Schedules: values at the ends, the shape of the ramp, where milestones fall, and what a phase changes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import cos, pi

import pytest

from vsparse.recipe import Train
from vsparse.stages.train.phases import Phase, epoch_position, total_epochs
from vsparse.stages.train.schedule import Schedule, rate_setting, smoothed_ramp


def spec(**settings: object) -> Train:
    return Train.model_validate({"epsilon": "0.2", "epochs": 100, "warmup": 0.1, "ramp": 0.4, **settings})


def schedule(**settings: object) -> Schedule:
    wanted = spec(**settings)
    return Schedule(wanted, Phase("train", wanted.epochs, wanted.learning_rate))


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
    ramp = schedule()
    assert [ramp.epsilon(epoch) for epoch in (0, 5, 10)] == [0, 0, 0]
    assert 0 < ramp.epsilon(20) < ramp.epsilon(40) < 0.2
    assert ramp.epsilon(50) == pytest.approx(0.2)
    assert ramp.epsilon(99.9) == pytest.approx(0.2)
    assert ramp.full_from == 50


def test_no_ramp_is_a_step() -> None:
    assert [schedule(ramp=0.0).epsilon(position) for position in (9.99, 10)] == [0, 0.2]


def test_a_phase_without_a_ramp_has_the_full_radius_from_its_first_step() -> None:
    wanted = spec()
    short = Schedule(wanted, Phase("fine-tune", 8, 1e-4, ramp=False))
    assert [short.epsilon(position) for position in (0, 0.1, 7.9)] == [0.2, 0.2, 0.2]
    assert short.full_from == 0
    assert short.kappa(short.fraction(0)) == wanted.kappa_end


def test_warm_up_and_ramp_are_shares_of_the_phase_not_of_the_recipe() -> None:
    short = Schedule(spec(), Phase("round 2", 20, 1e-3))
    assert short.epsilon(2) == 0
    assert short.epsilon(10) == pytest.approx(0.2)
    assert short.full_from == 10


def test_an_exact_fraction_is_trained_at_its_nearest_double() -> None:
    assert schedule(epsilon="8/255").epsilon(99) == 8 / 255


def test_kappa_moves_with_epsilon() -> None:
    moving = schedule(kappa_start=0.9, kappa_end=0.5)
    assert moving.kappa(moving.fraction(0)) == 0.9
    assert moving.kappa(moving.fraction(99)) == pytest.approx(0.5)
    assert moving.kappa(0.25) == pytest.approx(0.9 - 0.4 * 0.25)


def test_learning_rate_falls_at_each_milestone() -> None:
    steps = schedule(learning_rate=1.0, milestones=(0.5, 0.75), decay=0.1)
    assert [steps.learning_rate(epoch) for epoch in (0, 49)] == [1.0, 1.0]
    assert [steps.learning_rate(epoch) for epoch in (50, 74)] == pytest.approx([0.1, 0.1])
    assert steps.learning_rate(75) == pytest.approx(0.01)


def test_a_cosine_goes_from_the_phases_rate_towards_zero_by_hand() -> None:
    wanted = spec(rate_schedule="cosine", learning_rate=1.0)
    half = Schedule(wanted, Phase("fine-tune", 4, 0.2, ramp=False))
    assert [half.learning_rate(epoch) for epoch in range(4)] == pytest.approx([0.2, 0.1 * (1 + cos(pi / 4)), 0.1, 0.1 * (1 - cos(pi / 4))])


def test_there_is_always_an_epoch_at_full_radius() -> None:
    for epochs in (1, 2, 3, 7):
        assert 0 <= schedule(epochs=epochs, warmup=0.3, ramp=0.6).full_from < epochs


def test_a_plan_finds_phase_and_epoch_and_stays_at_its_end() -> None:
    phases = (Phase("a", 2, 1.0), Phase("b", 1, 1.0), Phase("c", 3, 1.0))
    assert total_epochs(phases) == 6
    found = [(at.phase.name, at.inside, at.last) for at in (epoch_position(phases, epoch) for epoch in range(6))]
    assert found == [("a", 0, False), ("a", 1, False), ("b", 0, False), ("c", 0, True), ("c", 1, True), ("c", 2, True)]
    assert replace(epoch_position(phases, 9), epoch=5) == epoch_position(phases, 5)


def test_the_key_of_a_phases_learning_rate() -> None:
    wanted = spec(learning_rate=0.01)
    assert rate_setting(wanted, Phase("train", 9, 0.01)) == ("train.learning_rate", 0.01)
    assert rate_setting(wanted, Phase("prune", 9, 0.1, trains="scores")) == ("train.sparse.prune_learning_rate", 0.1)
    assert rate_setting(wanted, Phase("fine-tune", 9, 0.001)) == ("train.sparse.finetune_learning_rate", 0.001)
