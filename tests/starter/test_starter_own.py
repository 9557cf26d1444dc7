"""`vsparse init` on tables, windows and numbers to predict: what it reads, what it chooses, and what it refuses in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vsparse
from vsparse import cli
from vsparse.data import load
from vsparse.dry_run import plan_build
from vsparse.pipeline.build import build
from vsparse.recipe import load_recipe
from vsparse.schema import parse_fraction
from vsparse.starter import recipe_text, survey

RANDOM = np.random.RandomState(0)
ROWS = 200


def table(path: Path, **columns: Any) -> Path:
    """Writes a table: two features that tell the two classes apart, a category, a flag, and the columns given."""
    y = np.arange(ROWS) % 2
    base: dict[str, Any] = {
        "id": range(1000, 1000 + ROWS),
        "size": np.round(RANDOM.normal(8.0 * y, 1.0), 4),
        "weight": np.round(RANDOM.normal(50 - 30.0 * y, 4.0), 4),
        "colour": [("red", "blue", "green")[i % 3] for i in range(ROWS)],
        "flag": (np.arange(ROWS) // 2) % 2,
        "name": [f"row {i}" for i in range(ROWS)],
        "ill": [("no", "yes")[one] for one in y],
    }
    base = {key: value for key, value in {**base, **columns}.items() if value is not None}
    path.write_text("\n".join([",".join(base), *(",".join(map(str, row)) for row in zip(*base.values(), strict=True))]) + "\n")
    return path


def windows(kinds: int = 2, length: int = 32) -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(160) % kinds
    time = np.arange(length)
    phase = RANDOM.uniform(0, 6, (160, 1, 1))
    x = np.sin(2 * np.pi * (y[:, None, None] + 2) * time / length + phase) * [[2.0], [1.0], [0.5]] + RANDOM.normal(0, 0.1, (160, 3, length))
    return x.astype(np.float32), y


def test_a_table_gets_a_recipe_that_is_read_and_planned_as_it_says(tmp_path: Path) -> None:
    found, path = vsparse.init(table(tmp_path / "own.csv"), out=tmp_path / "own.toml")
    seen, recipe = found.survey, load_recipe(str(path))
    assert recipe == found.recipe
    assert (seen.kind, seen.regression, seen.format) == ("table", False, "csv")
    assert recipe.data.target == "ill"
    assert recipe.data.drop == ("id", "name")
    assert recipe.data.categorical == ("flag",)
    assert recipe.network.architecture == "mlp"
    assert (recipe.property.epsilon, recipe.train.epsilon) == ("0.1", "0.1")
    assert seen.centroid_accuracy > 0.9
    splits = load(recipe.data, None, recipe.train.seed)
    assert [one.name for one in splits.features] == ["size", "weight", "flag=0", "flag=1", "colour=blue", "colour=green", "colour=red"]
    plan = plan_build(str(path))
    assert plan.samples == seen.counts
    assert recipe.train.epochs * -(-seen.counts["train"] // recipe.train.batch_size) >= 3000
    text = recipe_text(found)
    assert '"id": it numbers the rows; "name": another text in each row' in " ".join(text.replace("#", "").split())
    assert "standard deviations of each column" in text


def test_the_first_build_of_a_table_is_above_a_constant_answer(tmp_path: Path) -> None:
    _, path = vsparse.init(table(tmp_path / "own.csv"), out=tmp_path / "own.toml")
    faster = ["train.epochs=40", "verify.cross_check=0", "profile.runs=20", "profile.seconds=0.05"]
    result = build(str(path), out=tmp_path / "out", settings=faster)
    assert result.passed, [gate for gate in result.gates if gate.passed is False]
    assert result.figures["sparse"]["certified_accuracy"] > result.figures["sparse"]["majority_accuracy"] + 0.25


def test_identical_rows_of_two_classes_and_near_ones_lower_the_radius(tmp_path: Path) -> None:
    y = np.arange(ROWS) % 2
    near = table(tmp_path / "near.csv", size=np.round(5 + 0.02 * y + 0.0001 * np.arange(ROWS), 5), weight=None, flag=None, name=None)
    found, _ = vsparse.init(near, out=tmp_path / "near.toml", drop=["colour"])
    assert parse_fraction(found.values["property.epsilon"]) < parse_fraction("0.1")
    same = table(tmp_path / "same.csv", size=np.arange(ROWS) // 2 % 5, weight=None, flag=None, name=None)
    found, _ = vsparse.init(same, out=tmp_path / "same.toml", drop=["colour"])
    assert found.values["property.epsilon"] == "0.001"
    assert any("identical" in one for one in found.warnings)


@pytest.mark.parametrize(
    ("values", "regression"),
    [
        (np.arange(ROWS) % 3, False),
        (np.arange(ROWS) % 2 * 0.5, False),
        (np.arange(ROWS) % 50, True),
        (np.round(np.linspace(0, 1, ROWS), 4), True),
    ],
)
def test_numbers_of_many_values_are_predicted_as_numbers(tmp_path: Path, values: np.ndarray, regression: bool) -> None:
    found, path = vsparse.init(table(tmp_path / "own.csv", ill=None, target=values), out=tmp_path / "own.toml")
    recipe = load_recipe(str(path))
    assert recipe.data.target == "target"
    assert found.survey.regression is recipe.data.is_regression is regression
    assert (recipe.train.objective == "regression") is regression
    assert (parse_fraction(recipe.property.delta) > 0) is regression
    assert plan_build(str(path)).samples == found.survey.counts


def test_a_number_is_predicted_with_a_delta_in_its_unit_and_told_without_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = np.round(RANDOM.normal(0, 1, ROWS), 4)
    path = table(tmp_path / "own.csv", size=size, ill=None, price=np.round(1000 + 50 * size, 3))
    assert cli.run(["init", str(path), "--out", str(tmp_path / "own.toml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"]["regression"] is True
    assert found["data"]["linear_fit_explains"] > 0.95
    assert 10 <= float(found["values"]["property.delta"]) <= 20  # 0.3 of a deviation of 50
    assert cli.run(["init", str(path), "--out", str(tmp_path / "own.toml"), "--force"]) == 0
    told = capsys.readouterr().out
    assert "a number, of deviation" in told
    assert "classes, of" not in told
    assert "classes" not in (tmp_path / "own.toml").read_text().split("[data]")[0]
    noise = table(tmp_path / "noise.csv", ill=None, price=np.round(RANDOM.normal(0, 1, ROWS), 4))
    found_noise, _ = vsparse.init(noise, out=tmp_path / "noise.toml")
    assert any("no nearer than their mean" in one for one in found_noise.warnings)


@pytest.mark.parametrize("layout", ["NCT", "NTC"])
def test_windows_get_their_axes_their_range_and_convolutions_along_time(tmp_path: Path, layout: str) -> None:
    x, y = windows()
    np.savez(tmp_path / "own.npz", x=x if layout == "NCT" else x.transpose(0, 2, 1), y=y, track=np.arange(160) // 4 * 2 + y)
    found, path = vsparse.init(tmp_path / "own.npz", out=tmp_path / "own.toml")
    recipe = load_recipe(str(path))
    assert (found.survey.kind, recipe.data.layout, recipe.network.architecture) == ("windows", layout, "cnn1d")
    assert recipe.data.range is not None
    assert recipe.data.range[0] == -recipe.data.range[1]
    assert np.abs(x).max() <= recipe.data.range[1] <= 1.2 * np.abs(x).max()
    assert found.survey.centroid_accuracy == 1.0  # the phase tells nothing, the spectrum all
    assert 0 < parse_fraction(recipe.property.epsilon) <= min(recipe.data.std) / 20
    splits = load(recipe.data, None, recipe.train.seed)
    np.testing.assert_allclose(recipe.data.mean, splits.train.inputs().mean((0, 2, 3)), atol=6e-5)
    assert found.survey.tracks > 0
    assert plan_build(str(path)).samples == found.survey.counts


def test_folders_of_archives_and_tables_are_read_by_their_parts(tmp_path: Path) -> None:
    x, y = windows()
    (tmp_path / "sensor").mkdir()
    np.savez(tmp_path / "sensor" / "train.npz", x=x, y=y)
    np.savez(tmp_path / "sensor" / "test.npz", x=x, y=y)
    seen = survey(tmp_path / "sensor")
    assert (seen.kind, seen.own_test, seen.counts["test"]) == ("windows", True, 160)
    (tmp_path / "tables").mkdir()
    table(tmp_path / "tables" / "train.csv")
    table(tmp_path / "tables" / "val.csv")
    seen = survey(tmp_path / "tables")
    assert (seen.kind, seen.own_validation, seen.own_test) == ("table", True, False)
    (tmp_path / "one").mkdir()
    table(tmp_path / "one" / "export of june.csv")
    found, path = vsparse.init(tmp_path / "one", out=tmp_path / "one.toml")
    assert found.survey.directory.name == "export of june.csv"
    assert plan_build(str(path)).samples == found.survey.counts


def test_features_and_images_of_archives_are_told_apart(tmp_path: Path) -> None:
    y = np.arange(160) % 2
    features = (RANDOM.normal(0, 1, (160, 6)) + 3 * y[:, None]) * 100
    np.savez(tmp_path / "f.npz", x=features, y=y)
    seen = survey(tmp_path / "f.npz")
    assert (seen.kind, seen.keys["layout"][0], seen.shape) == ("table", "NF", (6, 1, 1))
    for name, x in (("square", RANDOM.random_sample((160, 16, 16))), ("bytes", RANDOM.randint(0, 255, (160, 12, 40)).astype(np.uint8))):
        np.savez(tmp_path / f"{name}.npz", x=x.astype(np.float32) if name == "square" else x, y=y)
        assert survey(tmp_path / f"{name}.npz").kind == "images"
    np.savez(tmp_path / "n.npz", x=RANDOM.random_sample((160, 8, 8)).astype(np.float32), y=RANDOM.normal(0, 1, 160))
    seen = survey(tmp_path / "n.npz")
    assert (seen.kind, seen.regression) == ("images", True)
    found, path = vsparse.init(tmp_path / "n.npz", out=tmp_path / "n.toml")
    assert found.values["network.architecture"] == "cnn4"
    assert plan_build(str(path)).samples == found.survey.counts


def mixed() -> list[Any]:
    return ["1.5", *["much"] * (ROWS - 1)]


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({}, ["--column", "il"], 'has no column "il" (did you mean "ill"?)'),
        ({}, ["--drop", "nothing"], 'has no column "nothing"'),
        ({}, ["--drop", "ill", "--column", "ill"], "cannot be left out"),
        ({"size": mixed()}, [], 'the column "size" mixes numbers and text'),
        ({"size": ["", *range(ROWS - 1)]}, [], 'no value in the column "size"'),
        ({"ill": [f"class {i % 70}" for i in range(ROWS)]}, [], "70 classes, and 200 rows are fewer than 4 for each"),
        ({"ill": ["no"] * ROWS}, [], "has one value"),
        ({"ill": None, "y": [7] * ROWS}, [], "has one value"),
    ],
)
def test_bad_tables_end_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, Any], options: list[str], words: str
) -> None:
    path = table(tmp_path / "own.csv", **columns)
    assert cli.run(["init", str(path), "--out", str(tmp_path / "own.toml"), *options]) == 2
    told = capsys.readouterr().err.strip()
    assert words in told
    assert "\n" not in told
    assert not (tmp_path / "own.toml").exists()


def test_options_of_tables_are_refused_elsewhere_and_damaged_archives_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = windows()
    np.savez(tmp_path / "own.npz", x=x, y=y)
    assert cli.run(["init", str(tmp_path / "own.npz"), "--column", "y"]) == 2
    assert "--column is about tables" in capsys.readouterr().err
    x[3, 1, 4] = np.nan
    np.savez(tmp_path / "nan.npz", x=x, y=y)
    assert cli.run(["init", str(tmp_path / "nan.npz")]) == 2
    assert "not finite" in capsys.readouterr().err
    np.savez(tmp_path / "few.npz", x=x[:, :, :20], y=np.array(["a"] * 160))
    assert cli.run(["init", str(tmp_path / "few.npz")]) == 2
    (tmp_path / "no.npz").write_bytes(b"PK")
    assert cli.run(["init", str(tmp_path / "no.npz")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_table_for_a_microcontroller_fits_its_memories(tmp_path: Path) -> None:
    found, path = vsparse.init(table(tmp_path / "own.csv"), out=tmp_path / "own.toml", target="cortex-m4f")
    assert plan_build(str(path), target="cortex-m4f").samples == found.survey.counts


def test_a_parquet_file_is_read_as_a_table(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow, which is optional")
    import pyarrow.csv
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.csv.read_csv(table(tmp_path / "own.csv")), tmp_path / "own.parquet")
    found, path = vsparse.init(tmp_path / "own.parquet", out=tmp_path / "own.toml")
    assert (found.survey.format, found.recipe.data.target) == ("parquet", "ill")
    assert plan_build(str(path)).samples == found.survey.counts
