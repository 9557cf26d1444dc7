"""Collapse: trainings that were seen to end as a constant answer with every gate passed, and trainings that must never be taken for it."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vsparse.artifact.facts import gather
from vsparse.artifact.history import Epoch, History, ObjectiveRecord
from vsparse.data import Splits, load
from vsparse.majority import AgainstMajority
from vsparse.pipeline.build import build
from vsparse.pipeline.collapse import collapse_of_trained, reasons_of_training, too_few_to_tell, ways_out
from vsparse.recipe import Recipe, load_recipe
from vsparse.stages.train.task import train_task

DIGITS = ("network.architecture=cnn4", "network.width=0.5", "train.baseline=false")
OBJECTIVE = ObjectiveRecord(name="ibp", report="", certified=True, validated_by="interval", is_cross_entropy=True)
LEARNT = AgainstMajority(samples=145, correct=120, majority=15, gained=107, lost=2, answers=10)


def splits_of(recipe: Recipe) -> Splits:
    return load(recipe.data, None, recipe.train.seed)


def trained(folder: Path, *settings: str, data: Path | None = None, source: str = "digits") -> tuple[Recipe, History]:
    """Trains in this process and returns the recipe and the history."""
    recipe = load_recipe(source, list(settings))
    paths = {"scratch": folder / "scratch", "output": folder / "output"}
    for path in paths.values():
        path.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    task: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "data": None if data is None else str(data), "sparse": True}
    train_task({**task, **{name: str(path) for name, path in paths.items()}}, lambda message: None)
    return recipe, History.model_validate_json((paths["output"] / "history.json").read_text())


# What was seen -------------------------------------------------------------------------------------------------------

# Short trainings of objective × method × granularity: those on bounds end as a constant answer, those on attacks learn.
SHORT = [
    (objective, method, granularity, objective != "pgd")
    for objective, method, granularity in product(
        ("ibp", "crown-ibp", "mtl-ibp", "pgd"), ("gradual", "vericompress"), ("channel", "element")
    )
    if objective != "mtl-ibp" or granularity == "channel"  # the dearest
]


@pytest.mark.parametrize(("objective", "method", "granularity", "collapses"), SHORT)
def test_short_trainings_are_judged_by_what_they_learnt(
    tmp_path: Path, objective: str, method: str, granularity: str, collapses: bool
) -> None:
    wanted = (f"train.objective={objective}", f"train.sparse.method={method}", f"train.sparse.granularity={granularity}")
    recipe, history = trained(tmp_path, *DIGITS, *wanted, "train.epochs=3")
    reasons = reasons_of_training(recipe, history, 10)
    assert bool(reasons) is collapses, (reasons, history.validation)
    if collapses:
        assert ways_out(recipe, history, 1292).startswith("raise train.epochs (3 now, 33 steps), lower train.learning_rate (0.005 now)")


def test_there_are_nine_such_cases_and_more() -> None:
    assert sum(collapses for *_, collapses in SHORT) >= 9


def test_a_rate_that_is_far_too_high_collapses_and_is_named_first(tmp_path: Path) -> None:
    recipe, history = trained(tmp_path, *DIGITS, "train.learning_rate=10", "train.epochs=3")
    assert reasons_of_training(recipe, history, 10)
    assert ways_out(recipe, history, 1292).startswith("lower train.learning_rate (10 now)")


MLP = ("network.architecture=mlp", "network.width=0.5", "train.baseline=false")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("train.epochs=3",), ("train.epochs=20",)),
        (("train.epochs=20", "train.learning_rate=0.5"), ("train.epochs=20", "train.learning_rate=0.005")),
        (("train.epochs=20", "train.epsilon='0.4'"), ("train.epochs=20", "train.epsilon='0.08'")),
        (
            ("train.epochs=20", "train.epsilon='0.1'", "train.warmup=0", "train.ramp=0"),
            ("train.epochs=20", "train.epsilon='0.1'", "train.warmup=0", "train.ramp=0.6"),
        ),
    ],
)
def test_each_way_out_leads_out(tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    recipe, history = trained(tmp_path / "a", *MLP, *before)
    assert reasons_of_training(recipe, history, 10)
    recipe, history = trained(tmp_path / "b", *MLP, *after)
    assert reasons_of_training(recipe, history, 10) == []


# Losses --------------------------------------------------------------------------------------------------------------


def with_losses(losses: list[float], epsilons: list[float] | None = None, cross_entropy: bool = True) -> History:
    found = enumerate(zip(losses, epsilons or [0.1] * len(losses), strict=True), 1)
    epochs = tuple(
        Epoch(
            epoch=number,
            loss=loss,
            clean_accuracy=0.8,
            robust_accuracy=0.5,
            measure="interval",
            phase="train",
            density=1.0,
            epsilon=epsilon,
            learning_rate=1e-3,
            seconds=1.0,
        )
        for number, (loss, epsilon) in found
    )
    return History.of("sparse", epochs, OBJECTIVE.model_copy(update={"is_cross_entropy": cross_entropy}), LEARNT)


@pytest.mark.parametrize(
    ("losses", "epsilons", "cross_entropy", "falls"),
    [
        ([10.6, 1468.6, 6.6], None, True, True),  # was seen: exploded, and ended above ln 10 = 2.303
        ([10.6, 1468.6, 1.9], None, True, False),  # came back
        ([2.3, 0.4, 1.1, 1.9, 1.95, 1.9, 1.85], [0, 0, 0.03, 0.1, 0.1, 0.1, 0.1], True, False),  # the ramp raises what it may
        ([2.3, 0.4, 1.1, 2.6, 2.5, 2.2, 2.1], [0, 0, 0.03, 0.1, 0.1, 0.1, 0.1], True, False),  # above a constant for a while
        ([2.3, 0.4, 1.1, 2.31, 2.305, 2.303, 2.3031], [0, 0, 0.03, 0.1, 0.1, 0.1, 0.1], True, True),  # and for good
        ([2.3, 0.4, 1.1, 2.9], [0, 0, 0.03, 0.1], True, True),  # one epoch at the full radius
        ([2.3, 1.0, 5.0, 6.0, 6.0], None, False, False),  # a loss of another kind may lie above it
        ([2.3, 1.0, 50.0, 60.0, 60.0], None, False, True),  # but not explode
        ([2.3, 1.0, 50.0, 60.0, 2.0], None, False, False),
    ],
)
def test_losses_that_rose_and_never_came_back(losses: list[float], epsilons: list[float] | None, cross_entropy: bool, falls: bool) -> None:
    reasons = reasons_of_training(load_recipe("digits"), with_losses(losses, epsilons, cross_entropy), 10)
    assert bool(reasons) is falls
    assert not falls or "never came back below 2.303, that of a constant answer" in reasons[0]
    if losses == [10.6, 1468.6, 6.6]:
        assert "the loss was 10.600 at first, rose to 1,468.600" in reasons[0]
        assert "at the end 6.600" in reasons[0]


def test_the_dense_parent_is_judged_in_train_too(tiny_artifact: Path) -> None:
    facts, recipe = gather(tiny_artifact), load_recipe("digits")
    assert collapse_of_trained(recipe, facts).passed
    assert facts.history_dense is not None
    one = AgainstMajority(samples=145, correct=15, majority=15, gained=0, lost=0, answers=1)
    dense = facts.history_dense.model_copy(update={"validation": one})
    gate = collapse_of_trained(recipe, dataclasses.replace(facts, history_dense=dense))
    assert gate.passed is False
    assert "dense, validation: all 145 predictions are one class: 10.3 % are right" in gate.got
    assert "sparse, validation" not in gate.got
    assert "lower train.learning_rate (0.005 now)" in gate.got


def test_an_epoch_that_only_its_choice_makes_good_is_no_better() -> None:
    """Of many epochs that guess, the best looks like more; that all of them look like more is no luck."""
    lucky = AgainstMajority(samples=30, correct=12, majority=5, gained=10, lost=3, answers=6)
    assert lucky.beaten
    history = with_losses([1.79] * 40).model_copy(update={"validation": lucky})
    guessed = tuple(epoch.model_copy(update={"clean_accuracy": 5 / 30}) for epoch in history.epochs)
    learnt = tuple(epoch.model_copy(update={"clean_accuracy": 12 / 30}) for epoch in history.epochs)
    recipe = load_recipe("digits")
    reasons = reasons_of_training(recipe, history.model_copy(update={"sparse": guessed}), 6)
    assert "40.0 % are right in the epoch that was chosen by these 30 samples, but 16.7 % in the mean of the 40 epochs" in reasons[0]
    assert reasons_of_training(recipe, history.model_copy(update={"sparse": learnt}), 6) == []


@pytest.mark.parametrize(("samples", "majority"), [(1, 1), (2, 1), (3, 2), (24, 23)])
def test_all_right_of_too_few_samples_is_not_called_no_better_and_its_way_out_is_more_samples(samples: int, majority: int) -> None:
    """No training passes on such a split, so no other learning rate, radius or ramp leads out."""
    right = AgainstMajority(samples=samples, correct=samples, majority=majority, gained=samples - majority, lost=0, answers=2)
    history = with_losses([0.5] * 40).model_copy(update={"validation": right})
    perfect = tuple(epoch.model_copy(update={"clean_accuracy": 1.0}) for epoch in history.epochs)
    history, recipe = history.model_copy(update={"sparse": perfect}), load_recipe("digits")
    (reason,) = reasons_of_training(recipe, history, 2)
    assert "no better" not in reason
    assert too_few_to_tell(recipe, [history], 2)
    assert ways_out(recipe, history, 216, True).startswith("raise data.validation (0.1 now")
    enough = AgainstMajority(samples=118, correct=118, majority=112, gained=6, lost=0, answers=2)
    assert reasons_of_training(recipe, history.model_copy(update={"validation": enough}), 2) == []


# An own folder of 360 images -----------------------------------------------------------------------------------------


def folder(root: Path, learnable: bool, size: int = 10, per_class: int = 60) -> Path:
    """Six classes of grey images: bars, crosses and discs at random places in noise, or noise alone."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    radius = size // 5
    for kind, number in product(range(6), range(per_class)):
        image = random.normal(90, 25, (size, size))
        centre = random.integers(radius + 1, size - radius - 1, 2)
        dy, dx = y - centre[0], x - centre[1]
        shapes = (abs(dy) <= 1, abs(dx) <= 1, abs(dy - dx) <= 1, abs(dy + dx) <= 1, dy**2 + dx**2 <= radius**2)
        if learnable:
            image[shapes[kind] if kind < 5 else shapes[0] | shapes[1]] += 100
        path = root / f"class{kind}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)
    return root


def own(tmp_path: Path, learnable: bool, *settings: str) -> dict[str, Any]:
    """The gate, the recipe and the figures of `train` on such a folder; the recipe is what a user writes."""
    path = tmp_path / "own.toml"
    path.write_text('name = "own"\n[data]\nname = "own"\n[property]\nepsilon = "2/255"\n[train]\nsparsity = 0.8\n')
    found = build(
        str(path),
        data=folder(tmp_path / "images", learnable),
        settings=list(settings),
        out=tmp_path / "artifact",
        until="train",
        jobs=1,
    )
    recipe = load_recipe(str(found.directory / "recipe.toml"))
    return {"gate": found.gates[0], "recipe": recipe, "passed": found.passed, "figures": found.figures}


def test_360_images_that_train_at_chance_with_their_dense_parent_fail(tmp_path: Path) -> None:
    found = own(tmp_path, True, "network.width=0.25", "train.batch_size=128", "train.epochs=40")
    assert not found["passed"]
    assert "sparse, validation: " in found["gate"].got
    assert "dense, validation: " in found["gate"].got
    assert "raise train.epochs (40 now, 120 steps)" in found["gate"].got


@pytest.mark.slow
def test_360_images_learn_where_the_recipe_leaves_the_steps_open(tmp_path: Path) -> None:
    found = own(tmp_path, True, "network.architecture=mlp", "network.width=0.5", "train.baseline=false")
    assert found["passed"], found["gate"].got
    assert (found["recipe"].train.batch_size, found["recipe"].train.epochs) == (16, 177)
    assert found["figures"]["sparse"]["clean_accuracy"] > 0.7


@pytest.mark.slow
def test_360_images_learn_with_their_dense_parent_and_the_default_network(tmp_path: Path) -> None:
    found = own(tmp_path, True)
    assert found["passed"], found["gate"].got
    assert min(found["figures"][variant]["clean_accuracy"] for variant in ("sparse", "dense")) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_360_images_of_noise_fail(tmp_path: Path, seed: int) -> None:
    found = own(tmp_path, False, "network.architecture=mlp", "network.width=0.5", f"train.seed={seed}")
    assert not found["passed"]
    assert "check that images and labels belong together" in found["gate"].got


# Shipped recipes -----------------------------------------------------------------------------------------------------

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "training" / "results"
# Rows with 99 % of the weights removed, which no shipped recipe asks for; they are on record as what they are.
CONSTANT = ("smoothing-hydra-99-seed0", "smoothing-magnitude-99-seed0")
# Samples of the validation split and in its largest class, at most; of MNIST and CIFAR-10 a tenth of the training split is held out.
VALIDATION = {"mnist": (6000, 680), "cifar10": (5000, 500), "gtsrb": (2600, 160)}


def on_record(tables: str = "*") -> list[Path]:
    return [path for path in sorted(RESULTS.glob(f"{tables}/*.json")) if "curve" in json.loads(path.read_text())]


@pytest.mark.parametrize("path", on_record(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_of_the_trainings_on_record_those_alone_count_as_collapsed_that_test_as_a_constant_answer(path: Path) -> None:
    """The epochs on record have no loss; the answers are taken to be wrong on the whole largest class, which is the worst case."""
    record = json.loads(path.read_text())
    samples, majority = next((counts for name, counts in VALIDATION.items() if name in record["recipe"]), VALIDATION["mnist"])
    columns = {name: text.split() for name, text in record["curve"].items()}
    numbers = {name: [float(text) for text in columns[name]] for name in ("clean", "certified", "density", "epsilon", "seconds")}
    epochs = tuple(
        Epoch(
            epoch=index + 1,
            loss=0.0,
            clean_accuracy=numbers["clean"][index],
            robust_accuracy=numbers["certified"][index],
            measure=record["measure"],
            phase=columns["phase"][index],
            density=numbers["density"][index],
            epsilon=numbers["epsilon"][index],
            learning_rate=1e-3,
            seconds=numbers["seconds"][index],
        )
        for index in range(len(columns["epoch"]))
    )
    correct = round(numbers["clean"][-1] * samples)
    found = AgainstMajority(samples=samples, correct=correct, majority=majority, gained=correct, lost=majority, answers=10)
    history = History.of("sparse", epochs, OBJECTIVE, found)
    assert len(history.candidates) >= 1
    reasons = reasons_of_training(load_recipe("digits"), history, 10)
    assert bool(reasons) is (path.stem in CONSTANT), reasons
    assert (record["clean"] == 0.1135) is (path.stem in CONSTANT)  # of MNIST's test split 11.35 % are of the largest class


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "digits-crown-ibp", "digits-unstructured"])
def test_shipped_recipes_for_digits_do_not_collapse(tmp_path: Path, name: str) -> None:
    found = build(name, out=tmp_path / "a", until="train")
    assert found.passed, found.gates[0].got


def test_a_signal_in_a_stated_range_is_to_be_normalised_first() -> None:
    stated = ["data.name=imu", "data.layout=NCT", "data.range=[-16, 16]"]
    way = "set data.mean and data.std"
    assert ways_out(load_recipe("digits", stated), None, 400).find(way) >= 0
    normalised = [*stated, "data.mean=[0.5]", "data.std=[0.1]"]
    assert way not in ways_out(load_recipe("digits", normalised), None, 400)
    assert way not in ways_out(load_recipe("digits"), None, 400)


@pytest.mark.parametrize(
    ("given", "of_numbers", "of_classes"),
    [
        (
            ["train.start=net.onnx", "train.epochs=0", "train.sparsity=0"],
            "its answer is in the unit of the target",
            "classes are in its order",
        ),
        ([], "samples and targets belong together", "images and labels belong together"),
    ],
)
def test_advice_for_a_number_to_predict_speaks_of_no_classes(given: list[str], of_numbers: str, of_classes: str) -> None:
    told = [ways_out(load_recipe(name, given), None, 400_000) for name in ("regression", "digits")]
    assert of_numbers in told[0]
    assert "class" not in told[0]
    assert "image" not in told[0]
    assert of_classes in told[1]
