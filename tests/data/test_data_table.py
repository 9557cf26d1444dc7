"""Tables: types of columns, what is refused in one sentence, the map to inputs, and the radius of each feature."""

from __future__ import annotations

import builtins
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsparse.artifact.features import features_of
from vsparse.data import load
from vsparse.data.dataset import Dataset, Splits
from vsparse.data.features import Feature, scaled
from vsparse.data.table import MAX_ROW, read_table, row_values
from vsparse.errors import InputError, UnavailableError
from vsparse.pipeline.tables import with_features
from vsparse.recipe import Data, Recipe

ROWS = [(20 + i % 50, 1.5 * i, "red" if i % 3 else "blue", 7, "yes" if i % 2 else "no") for i in range(60)]
HEADER = "age,dose,colour,constant,ill"


def write(folder: Path, rows: list[Any] = ROWS, header: str = HEADER, name: str = "own.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def data(**keys: Any) -> Data:
    return Data.model_validate({"name": "own", "path": "own.csv", "target": "ill", **keys})


def recipe(epsilon: str = "0.1", **asked: Any) -> Recipe:
    content = {"name": "own", "data": data().model_dump(), "property": {"epsilon": epsilon, **asked}}
    return Recipe.model_validate(content)


def test_columns_are_found_and_scaled(tmp_path: Path) -> None:
    write(tmp_path)
    splits = load(data(), tmp_path, 0)
    assert [feature.name for feature in splits.features] == ["age", "dose", "constant", "colour=blue", "colour=red"]
    assert [feature.fixed for feature in splits.features] == [False, False, True, True, True]
    assert splits.train.classes == ("no", "yes")
    assert splits.train.pixels.shape[1:] == (5, 1, 1)
    assert splits.train.pixels.dtype == np.float32
    x = splits.train.inputs()[:, :, 0, 0]
    assert x.min() >= 0
    assert x.max() <= 1
    assert set(np.unique(x[:, 3:])) == {0.0, 1.0}
    # One standard deviation of each feature that may change is the same distance, of the training split alone.
    for feature, column in zip(splits.features[:2], x.T, strict=False):
        assert column.std() == pytest.approx(1 / feature.deviations, rel=1e-5)
        assert column.mean() == pytest.approx(feature.normal_mean, abs=1e-6)
    raw = x[:, 0].astype(np.float64) * splits.features[0].span + splits.features[0].low
    assert np.allclose(raw, np.rint(raw), atol=1e-4)  # ages are whole numbers again


def test_values_beyond_the_training_range_are_clipped_and_told(tmp_path: Path) -> None:
    write(tmp_path, name="train.csv")
    write(tmp_path, [(10**6, 0, "red", 7, "yes"), *ROWS[:9]], name="test.csv")
    splits = load(data(path="", format="csv"), tmp_path, 0)
    assert any("1 values of the test split lie outside" in note for note in splits.notes)
    assert splits.test.inputs()[0, 0, 0, 0] == 1.0
    assert splits.origins["test"] == "test.csv"


def test_scales_count_standard_deviations_and_own_units() -> None:
    one = Dataset(np.zeros((2, 3, 1, 1), np.float32), 1.0, np.array([0, 1]), ("a", "b"), None)
    features = (
        Feature("age", "age", False, 0.0, 80.0, 40.0, 10.0, 8),
        Feature("dose", "dose", False, 0.0, 3.0, 1.0, 0.375, 8),
        Feature("colour=red", "colour", True, 0.0, 1.0, 0.5, 0.5, 8),
    )
    splits = Splits(one, one, one, "own", "", features=features)
    found = with_features(recipe(), splits)
    assert found.property.scales == ("1/8", "1/8", "0")
    assert Fraction(found.train.epsilon) == Fraction(1, 80)
    assert found.data.mean[0] == 0.5
    assert with_features(found, splits) == found  # what an artifact's recipe says is kept
    own = with_features(recipe(features={"dose": "0.07"}), splits)
    radii = own.property.perturbation.radii()
    assert radii[0] == Fraction(1, 80)
    assert Fraction("0.07") <= radii[1] * 3 < Fraction("0.07") * (1 + Fraction(1, 10**9))
    listed = features_of(splits, own.property.perturbation)
    assert listed is not None
    assert listed.features[1].epsilon == pytest.approx(0.07)
    assert listed.features[0].epsilon <= 1.0
    assert listed.features[2].epsilon == 0
    for asked, words in (
        ({"features": {"colour": "0.1"}}, 'the column "colour" is categorical or constant'),
        ({"features": {"agee": "1"}}, 'there is no column "agee" .did you mean "age"'),
        ({"features": {"age": "1"}, "epsilon": "0"}, "property.epsilon is 0"),
        ({"norm": "l2"}, "norm linf alone"),
        ({"brightness": "0.1"}, "norm linf alone"),
    ):
        with pytest.raises(InputError, match=words):
            with_features(recipe(**asked), splits)
    with pytest.raises(InputError, match="is none; leave it out"):
        with_features(recipe(features={"age": "1"}), Splits(one, one, one, "own", ""))
    for key, wrong in (("property", {"epsilon": "8"}), ("train", {"epsilon": "8"})):
        asked = Recipe.model_validate({"name": "own", "property": {"epsilon": "0.1"}, key: wrong})
        with pytest.raises(InputError, match=rf"{key}\.epsilon = 8 is more than 1, the width of the data range"):
            with_features(asked, Splits(one, one, one, "own", ""))


BAD: list[tuple[list[Any], str, dict[str, Any], str]] = [
    ([(1, "", "x", 1, "no"), *ROWS], HEADER, {}, 'row 2 has no value in the column "dose"'),
    ([*ROWS, ("NaN", 1, "x", 1, "no")], HEADER, {}, 'no value in the column "age"'),
    ([*ROWS, ("old", 1, "red", 1, "no")], HEADER, {}, 'the column "age" mixes numbers and text'),
    ([*ROWS, (1, 1, "5", 1, "no")], HEADER, {}, 'the column "colour" mixes text and numbers'),
    ([*ROWS, ("inf", 1, "red", 1, "no")], HEADER, {}, "finite"),
    ([*ROWS, (1, 1)], HEADER, {}, "has 2 cells"),
    (ROWS, "age,age,colour,constant,ill", {}, "two columns named"),
    (ROWS, "1,2,3,4,5", {}, "begins with numbers"),
    (ROWS, HEADER, {"target": "il"}, 'no column "il", which data.target names'),
    (ROWS, HEADER, {"target": ""}, "data.target does not say"),
    (ROWS, HEADER, {"target": "dose"}, "60 classes, and 60 rows are fewer than 4 for each"),
    (ROWS, HEADER, {"target": "constant"}, "has one value"),
    (ROWS, HEADER, {"categorical": ["nothing"]}, "data.categorical names"),
    ([], HEADER, {}, "no rows"),
    ([(i, i, f"c{i}", 1, i % 2) for i in range(99)], HEADER, {}, "99 different texts"),
    ([("1e300", 1, "red", 1, "no"), *ROWS], HEADER, {}, "which float32 does not hold"),
]


@pytest.mark.parametrize(("rows", "header", "keys", "words"), BAD)
def test_bad_tables_are_refused_in_one_sentence(tmp_path: Path, rows: list[Any], header: str, keys: dict[str, Any], words: str) -> None:
    write(tmp_path, rows, header)
    with pytest.raises(InputError) as caught:
        load(data(**keys), tmp_path, 0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.csv"
    for content in (b"", b"\xff\xfea,b\n1,2\n", b'a,b\n"1,2\n', b"\0\0\0"):
        path.write_bytes(content)
        with pytest.raises(InputError):
            load(data(), tmp_path, 0)
    monkeypatch.setattr("vsparse.data.table.MAX_CELLS", 20)
    write(tmp_path)
    with pytest.raises(InputError, match="more than the 20 cells"):
        load(data(), tmp_path, 0)
    monkeypatch.setattr("vsparse.data.table.MAX_FILE_BYTES", 10)
    with pytest.raises(InputError, match="MiB that are read"):
        load(data(), tmp_path, 0)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def absent(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return plain(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    (tmp_path / "own.parquet").write_bytes(b"PAR1")
    with pytest.raises(UnavailableError, match="pip install pyarrow"):
        load(data(path="own.parquet"), tmp_path, 0)


def test_parquet_is_read_as_csv(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, which is optional")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = HEADER.split(",")
    parquet.write_table(
        pyarrow.table({name: list(column) for name, column in zip(names, zip(*ROWS, strict=True), strict=True)}), tmp_path / "own.parquet"
    )
    write(tmp_path)
    one, other = load(data(path="own.parquet"), tmp_path, 0), load(data(), tmp_path, 0)
    assert one.sha256 == other.sha256


def test_semicolons_groups_and_categories_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    rows = [f"{i};{i % 3};{i // 2};{'a' if (i // 2) % 2 else 'b'}" for i in range(80)]
    path.write_text("\ufeffvalue;kind;patient;ill\n" + "\n".join(rows))
    splits = load(data(group="patient", categorical=["kind"]), tmp_path, 0)
    assert [feature.name for feature in splits.features] == ["value", "kind=0", "kind=1", "kind=2"]
    groups = [set(part.groups.tolist()) for part in (splits.train, splits.validation, splits.test) if part.groups is not None]
    assert len(groups) == 3
    assert len(set.union(*groups)) == sum(map(len, groups))


def test_rows_to_predict_are_mapped_as_the_training_table(tmp_path: Path) -> None:
    write(tmp_path)
    splits = load(data(), tmp_path, 0)
    inputs = [(one.column, one.name.partition("=")[2] or None) for one in splits.features]
    path = write(tmp_path, [("red", 25, 9.0, 7)], "colour,age,dose,constant", "new.csv")
    x, clipped = scaled(splits.features, row_values(path, inputs))
    assert clipped == 0
    assert x[0, 3:].tolist() == [0.0, 1.0]
    assert x[0, 0] == pytest.approx((25 - splits.features[0].low) / splits.features[0].span, abs=1e-6)
    path = write(tmp_path, [("green", 25, 9.0, 7)], "colour,age,dose,constant", "new.csv")
    with pytest.raises(InputError, match='has "green", which the training rows do not have'):
        row_values(path, inputs)
    with pytest.raises(InputError, match='no column "dose"'):
        row_values(write(tmp_path, [("red", 25, 7)], "colour,age,constant", "new.csv"), inputs)


def test_bundled_tables_and_windows() -> None:
    cancer = load(Data(name="breast-cancer"), None, 0)
    assert (len(cancer.train), len(cancer.validation), len(cancer.test)) == (410, 46, 113)
    assert len(cancer.features) == 30
    shaft, again = load(Data(name="vibration"), None, 0), load(Data(name="vibration"), None, 0)
    assert shaft.sha256 == again.sha256
    assert shaft.train.pixels.shape[1:] == (3, 1, 64)
    machines = [set(one.groups.tolist()) for one in (shaft.train, shaft.validation, shaft.test) if one.groups is not None]
    assert [len(one) for one in machines] == [29, 3, 8]
    assert len(set.union(*machines)) == 40  # no machine is on two sides
    assert np.array_equal(shaft.train.pixels, np.rint(shaft.train.pixels))


@pytest.mark.parametrize(
    ("layout", "shape", "wanted"),
    [
        ("NCT", (12, 3, 40), (3, 1, 40)),
        ("NTC", (12, 40, 3), (3, 1, 40)),
        ("NHW", (12, 5, 6), (1, 5, 6)),
        ("NHWC", (12, 5, 6, 2), (2, 5, 6)),
        ("NCHW", (12, 2, 5, 6), (2, 5, 6)),
        ("NF", (12, 9), (9, 1, 1)),
    ],
)
def test_archives_are_read_as_their_layout_says(tmp_path: Path, layout: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    x = np.random.RandomState(0).uniform(-4, 4, shape)
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(12) % 2)
    spec = Data.model_validate({"name": "own", "path": "own.npz", "layout": layout, "range": (-4, 4)})
    splits = load(spec, tmp_path, 0)
    assert splits.train.pixels.shape[1:] == wanted
    all_values = np.sort(np.concatenate([part.inputs().ravel() for part in (splits.train, splits.validation, splits.test)]))
    assert np.allclose(all_values, np.sort(((x + 4) / 8).ravel()), atol=1e-6)
    if layout == "NTC":  # the axes themselves, not only the count of values
        first = ((x + 4) / 8)[:, :, 0].astype(np.float32)
        assert all(any(np.allclose(row, one) for one in first) for row in splits.test.inputs()[:, 0, 0])
    wrong = Data.model_validate({"name": "own", "path": "own.npz", "layout": "NF" if x.ndim != 2 else "NCT"})
    with pytest.raises(InputError, match=r"names . axes"):
        load(wrong, tmp_path, 0)


def test_features_of_an_archive_in_their_own_units(tmp_path: Path) -> None:
    x = np.random.RandomState(0).normal(size=(40, 3)) * [1, 100, 1e4]
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(40) % 2)
    splits = load(Data.model_validate({"name": "own", "path": "own.npz", "layout": "NF"}), tmp_path, 0)
    assert [feature.name for feature in splits.features] == ["feature 0", "feature 1", "feature 2"]
    assert splits.train.inputs().std((0, 2, 3)) == pytest.approx([1 / splits.features[0].deviations] * 3, rel=1e-4)


def test_dropped_columns_are_left_out_and_texts_kept(tmp_path: Path) -> None:
    table = read_table(write(tmp_path), ["constant"], ["ill"])
    assert set(table.numbers) == {"age", "dose"}
    assert set(table.texts) == {"colour", "ill"}
    assert table.rows == len(ROWS)


@pytest.mark.parametrize(
    ("epsilon", "asked", "words"),
    [
        ("0.000000001", {"features": {"dose": "999999"}}, 'the radius 999999 of the column "dose"'),
        ("1000000", {"features": {"dose": "0.000000000001"}}, 'the radius 0.000000000001 of the column "dose"'),
        ("0.000000000001", {}, "train.epsilon times the largest factor"),
    ],
)
def test_radii_that_no_recipe_can_state_are_refused(tmp_path: Path, epsilon: str, asked: dict[str, Any], words: str) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=words):
        with_features(recipe(epsilon, **asked), load(data(), tmp_path, 0))


@pytest.mark.parametrize("content", ["," * (MAX_ROW + 1), "a,b\n" + "," * (MAX_ROW + 1), "a,b\n" + '"\n",' * (MAX_ROW // 4 + 1)])
def test_a_row_is_bounded_before_it_is_divided(tmp_path: Path, content: str) -> None:
    path = tmp_path / "own.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=f"row of more than the {MAX_ROW} characters"):
        read_table(path, ())


def test_many_rows_have_each_the_whole_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsparse.data.table.MAX_ROW", 40)
    assert read_table(write(tmp_path), ()).rows == len(ROWS)
