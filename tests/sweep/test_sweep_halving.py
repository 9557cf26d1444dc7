"""The ladder: how many enter each rung, for how many epochs, and who goes on."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from sweep_fakes import resolver, row

from vsparse.errors import InputError
from vsparse.sweep.halving import Halving, check_axes, kept, rungs, shortened


def ladder(configurations: int, epochs: int, halving: Halving) -> list[tuple[int, int]]:
    return [(rung.configurations, round(epochs * rung.fraction)) for rung in rungs(configurations, epochs, halving)]


def test_without_halving_there_is_one_whole_rung() -> None:
    (only,) = rungs(7, 40, None)
    assert (only.configurations, only.fraction) == (7, 1)


def test_rungs_by_hand() -> None:
    assert ladder(12, 36, Halving(3)) == [(12, 4), (4, 12), (2, 36)]
    assert ladder(9, 81, Halving(3)) == [(9, 9), (3, 27), (1, 81)]
    assert ladder(8, 80, Halving(2, first_epochs=20)) == [(8, 20), (4, 40), (2, 80)]
    assert ladder(100, 7, Halving(2, first_epochs=3)) == [(100, 4), (50, 7)]


@pytest.mark.parametrize("eta", [2, 3, 4])
@pytest.mark.parametrize("configurations", [2, 3, 10, 27, 100])
@pytest.mark.parametrize("epochs", [12, 40, 250])
def test_every_ladder_ends_with_the_whole_recipe_and_never_begins_too_short(eta: int, configurations: int, epochs: int) -> None:
    found = rungs(configurations, epochs, Halving(eta, first_epochs=3))
    assert found[0].configurations == configurations
    assert found[-1].fraction == 1
    assert epochs * found[0].fraction >= 3
    for before, after in pairwise(found):
        assert after.fraction == eta * before.fraction
        assert after.configurations == -(-before.configurations // eta)
    # It could not be longer: nothing is left to halve, or the next first rung would be too short.
    assert found[-1].configurations == 1 or epochs * found[0].fraction / eta < 3


def test_what_cannot_be_halved_is_refused() -> None:
    with pytest.raises(InputError, match="first-epochs"):
        rungs(10, 5, Halving(3, first_epochs=3))
    with pytest.raises(InputError, match="there is one only"):
        rungs(1, 500, Halving(3))


def test_a_short_rung_shortens_every_count_of_epochs() -> None:
    wanted = ["train.epochs=40", "train.sparse.finetune_epochs=9", "train.sparse.prune_epochs=4", "train.sparse.rewind_epoch=1"]
    recipe = resolver()(wanted)
    assert shortened(recipe, Fraction(1)) == {}
    assert shortened(recipe, Fraction(1, 4)) == {
        "train.epochs": 10,
        "train.sparse.finetune_epochs": 2,
        "train.sparse.prune_epochs": 1,
        "train.sparse.rewind_epoch": 1,
    }
    none = resolver()(["train.epochs=40", "train.sparse.finetune_epochs=0"])
    assert "train.sparse.finetune_epochs" not in shortened(none, Fraction(1, 4))


def test_keeping_the_front_keeps_sparse_networks_and_keeping_the_certified_does_not() -> None:
    rows = [row("dense", 0.9, 1000), row("dense2", 0.89, 1000), row("half", 0.8, 500), row("half2", 0.7, 500), row("tenth", 0.5, 100)]
    axes = ("certified", "macs")
    assert [one.configuration.id for one in kept(rows, 3, "front", axes)] == ["dense", "half", "tenth"]
    assert [one.configuration.id for one in kept(rows, 3, "certified", axes)] == ["dense", "dense2", "half"]


def test_ties_in_certified_go_to_clean_and_failures_never_go_on() -> None:
    rows = [row("a", 0.9, 10, status="failed"), row("b", 0.5, 10, clean=0.6), row("c", 0.5, 10, clean=0.7)]
    assert [one.configuration.id for one in kept(rows, 1, "certified", ("certified", "macs"))] == ["c"]
    assert [one.configuration.id for one in kept(rows, 3, "certified", ("certified", "macs"))] == ["b", "c"]
    assert kept(rows[:1], 1, "front", ("certified", "macs")) == []


def test_axes_are_named_and_different() -> None:
    check_axes(("clean", "seconds"))
    for axes in (("certified",), ("certified", "certified"), ("certified", "speed")):
        with pytest.raises(InputError, match="--axes"):
            check_axes(axes)
