"""The search with a stand-in for training: order, failures as rows, seeds, rungs, side by side, interrupts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import stdev
from typing import Any

import pytest
from sweep_fakes import FakeTraining, measured, resolver, row

from vsparse.errors import GateError, InputError
from vsparse.progress import Event, silent
from vsparse.recipe import Recipe
from vsparse.sweep.grid import Grid, expand
from vsparse.sweep.halving import Halving, kept, rungs
from vsparse.sweep.results import Measured, Row, TrainingRun
from vsparse.sweep.search import mark_front, search


def run(axes: dict[str, list[Any]], rule: Callable[[Recipe], Measured], **more: Any) -> tuple[list[Row], FakeTraining]:
    fake = FakeTraining(rule)
    configurations = expand(Grid(axes))
    halving: Halving | None = more.pop("halving", None)
    options: dict[str, Any] = {
        "seeds": [0],
        "resolve": resolver(),
        "axes": ("certified", "macs"),
        "jobs": 2,
        "reporter": silent,
        "stop": lambda: None,
        **more,
    }
    seeds, resolve = options.pop("seeds"), options.pop("resolve")
    ladder = rungs(len(configurations), 250, halving)
    return search(configurations, seeds, ladder, resolve, fake, halving=halving, **options), fake


def by_sparsity(recipe: Recipe) -> Measured:
    """Sparser is smaller and certifies less; objective ibp certifies less still."""
    sparsity = recipe.train.sparsity
    return measured(0.9 - sparsity**4 / 2 - 0.1 * (recipe.train.objective == "ibp"), macs=round(1000 * (1 - sparsity)))


def test_rows_come_in_order_with_the_front_marked() -> None:
    rows, fake = run({"train.sparsity": [0, 0.5, 0.9], "train.objective": ["ibp", "sabr"]}, by_sparsity)
    assert [row.configuration.id for row in rows] == ["c01", "c02", "c03", "c04", "c05", "c06"]
    assert [row.pareto for row in rows] == [False, True, False, True, False, True]
    assert len(fake.asked) == 6


def test_a_failing_configuration_is_a_row_with_its_reason_and_the_rest_go_on() -> None:
    def rule(recipe: Recipe) -> Measured:
        if recipe.train.sparsity == 0.5:
            raise GateError("training diverged in epoch 3 of 250")
        if recipe.train.sparsity == 0.9:
            raise InputError("layer fc2 has 10 units")
        if recipe.train.sparsity == 0.95:
            raise ZeroDivisionError("line one\nthe last line")
        return by_sparsity(recipe)

    rows, _ = run({"train.sparsity": [0.5, 0.9, 0.95, 0.2]}, rule)
    assert [row.status for row in rows] == ["failed", "failed", "failed", "finished"]
    assert rows[0].reason == "training diverged in epoch 3 of 250"
    assert rows[1].reason == "layer fc2 has 10 units"
    assert "bug in vsparse (ZeroDivisionError: the last line)" in rows[2].reason
    assert [row.pareto for row in rows] == [False, False, False, True]
    assert rows[0].as_json()["mean"]["certified_accuracy"] is None


def test_a_full_disk_ends_the_sweep() -> None:
    def rule(recipe: Recipe) -> Measured:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        run({"train.sparsity": [0.5, 0.9]}, rule)


def test_nothing_starts_between_an_error_and_the_end_of_the_sweep() -> None:
    asked: list[float] = []

    def rule(recipe: Recipe) -> Measured:
        asked.append(recipe.train.sparsity)
        if len(asked) == 2:
            raise OSError(28, "No space left on device")
        return by_sparsity(recipe)

    with pytest.raises(OSError, match="No space"):
        run({"train.sparsity": [0.1 * step for step in range(8)]}, rule, jobs=1)
    assert asked == [0, 0.1], "trainings of no time at all must not slip in while the error travels to the main thread"


def test_settings_that_do_not_go_together_are_a_row_and_never_trained() -> None:
    rows, fake = run({"train.sparse.method": ["vericompress", "rigl"], "train.sparse.granularity": ["channel", "element"]}, by_sparsity)
    assert [row.status for row in rows] == ["finished", "finished", "failed", "finished"]
    assert "works on weights" in rows[2].reason
    assert len(fake.asked) == 3


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"train.objective": ["ibp", "mlt-ibp"]}, "mlt-ibp"),
        ({"train.sparsity": [0.5, 1.5]}, "less than 1"),
        ({"train.epochs": [3, "many"]}, "integer"),
        ({"train.epsilon": ["0.1", "wide"]}, "wide"),
    ],
)
def test_a_slip_in_a_value_is_refused_before_anything_is_trained(axes: dict[str, list[Any]], words: str) -> None:
    trained: list[Recipe] = []
    with pytest.raises(InputError, match=words):
        run(axes, lambda recipe: trained.append(recipe) or measured(0.5))  # type: ignore[func-returns-value]
    assert trained == []


def test_seeds_are_averaged_and_one_failed_seed_keeps_a_row_off_the_front() -> None:
    shares = {(0.2, 0): 0.8, (0.2, 1): 0.6, (0.2, 2): 0.7}

    def rule(recipe: Recipe) -> Measured:
        if recipe.train.sparsity == 0.5 and recipe.train.seed == 1:
            raise GateError("diverged")
        return measured(shares.get((recipe.train.sparsity, recipe.train.seed), 0.9))

    rows, fake = run({"train.sparsity": [0.2, 0.5], "train.seed": [0, 1, 2]}, rule, seeds=[0, 1, 2])
    assert len(fake.asked) == 6
    assert rows[0].mean("certified_accuracy") == pytest.approx(0.7)
    assert rows[0].spread("certified_accuracy") == pytest.approx(stdev([0.8, 0.6, 0.7]))
    assert [run.seed for run in rows[0].runs] == [0, 1, 2]
    assert rows[1].status == "failed"
    assert rows[1].reason == "1 of 3 seeds failed: diverged"
    assert rows[1].mean("certified_accuracy") == pytest.approx(0.9)
    assert [row.pareto for row in rows] == [True, False]


def test_halving_trains_few_in_full_and_each_rung_is_a_recipe_of_its_own_length() -> None:
    axes = {"train.sparsity": [0, 0.5, 0.9], "train.objective": ["ibp", "sabr", "mtl-ibp"]}
    rows, fake = run(axes, by_sparsity, halving=Halving(3, 3, "front"))
    assert sorted(recipe.train.epochs for recipe in fake.asked) == [28] * 9 + [83] * 3 + [250]
    assert sorted(row.status for row in rows) == ["finished"] + ["stopped"] * 8
    survivors = [recipe.train.sparsity for recipe in fake.asked if recipe.train.epochs == 83]
    assert sorted(survivors) == [0, 0.5, 0.9], "the front has one network of each size"
    assert [row.runs[0].epochs for row in rows if row.status == "finished"] == [250]
    assert sum(row.pareto for row in rows) == 1
    rows, fake = run(axes, by_sparsity, halving=Halving(3, 3, "certified"))
    assert sorted(recipe.train.sparsity for recipe in fake.asked if recipe.train.epochs == 83) == [0, 0, 0.5]


def test_trainings_run_side_by_side_and_the_number_changes_nothing() -> None:
    def rule(recipe: Recipe) -> Measured:
        time.sleep(0.03)
        return by_sparsity(recipe)

    axes = {"train.sparsity": [0.1 * step for step in range(8)]}
    alone, one = run(axes, rule, jobs=1)
    together, four = run(axes, rule, jobs=4)
    assert alone == together
    assert (one.most_together, four.most_together > 1) == (1, True)


def test_an_interrupt_stops_the_trainings_and_is_raised() -> None:
    stopped = threading.Event()
    started: list[Recipe] = []
    lock = threading.Lock()

    def rule(recipe: Recipe) -> Measured:
        with lock:
            started.append(recipe)
            first = len(started) == 1
        if not first:
            assert stopped.wait(10), "the interrupt must reach trainings that still run"
            raise InputError("the build was stopped")
        return by_sparsity(recipe)

    notes: list[str] = []

    def interrupt(event: Event) -> None:
        if event.kind == "note":
            notes.append(event.text)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run({"train.sparsity": [0.1, 0.2, 0.3, 0.4, 0.5]}, rule, jobs=2, reporter=interrupt, stop=stopped.set)
    assert stopped.is_set()
    assert len(started) < 5
    assert len(notes) == 1, "what the interrupt ended is not told as a failure"


def test_progress_tells_each_outcome_once() -> None:
    events: list[Event] = []

    def tell(event: Event) -> None:
        events.append(event)

    run({"train.sparsity": [0, 0.5]}, by_sparsity, reporter=tell)
    notes: Sequence[str] = [event.text for event in events if event.kind == "note"]
    assert sorted(note.split(",")[0] for note in notes) == ["c01 (sparsity 0)", "c02 (sparsity 0.5)"]
    assert [(event.done, event.total) for event in events if event.kind == "progress"] == [(0, 2), (1, 2), (2, 2)]


# Collapse -------------------------------------------------------------------------------------------------------------


def test_a_network_that_collapsed_is_not_on_the_front_and_goes_on_last() -> None:
    small = replace(measured(0.1, macs=1, size=4), collapse="all 145 predictions are one class")
    rows = [row("a", 0.8, 100), row("b", 0.1, 1), row("c", 0.7, 50)]
    rows[1] = replace(rows[1], runs=(TrainingRun(0, 10, small),))
    marked = mark_front(rows, ("certified", "macs"))
    assert [one.pareto for one in marked] == [True, False, True]
    assert [one.as_json()["collapse"] for one in marked] == ["", "all 145 predictions are one class", ""]
    for keep in ("front", "certified"):
        assert {one.configuration.id for one in kept(rows, 2, keep, ("certified", "macs"))} == {"a", "c"}  # type: ignore[arg-type]
        assert len(kept(rows, 3, keep, ("certified", "macs"))) == 3  # type: ignore[arg-type]
    two = replace(rows[1], runs=(TrainingRun(0, 10, small), TrainingRun(1, 10, measured(0.8))))
    assert two.collapse == "1 of 2 seeds collapsed: all 145 predictions are one class"
