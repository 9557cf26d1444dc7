"""Numbers to predict, from tables and archives of one's own: read, split, and refused in one sentence where they are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from vsparse.data import load
from vsparse.errors import InputError
from vsparse.recipe import Data

RANDOM = np.random.RandomState(0)
X = RANDOM.random_sample((60, 3))
Y = 10 + 5 * X[:, 0] - 2 * X[:, 1]


def table(folder: Path, y: list[Any] | None = None, name: str = "own.csv") -> Path:
    values = Y.tolist() if y is None else y
    rows = [f"{a:.6f},{b:.6f},{'red' if i % 2 else 'blue'},{value}" for i, ((a, b, _), value) in enumerate(zip(X, values, strict=True))]
    (folder / name).write_text("\n".join(["a,b,colour,y", *rows]) + "\n")
    return folder / name


def data(**keys: Any) -> Data:
    return Data.model_validate({"name": "own", "path": "own.csv", "target": "y", "kind": "regression", **keys})


def test_a_column_of_numbers_is_the_target(tmp_path: Path) -> None:
    table(tmp_path)
    splits = load(data(), tmp_path, 0)
    assert [feature.name for feature in splits.features] == ["a", "b", "colour=blue", "colour=red"]
    found = []
    for split in (splits.train, splits.validation, splits.test):
        assert split.targets is not None
        assert set(split.labels.tolist()) == {0}
        raw = split.inputs()[:, :2, 0, 0] * [one.span for one in splits.features[:2]] + [one.low for one in splits.features[:2]]
        assert np.allclose(split.targets, 10 + 5 * raw[:, 0] - 2 * raw[:, 1], atol=1e-4)  # each row keeps its own number
        found += split.targets.tolist()
    assert sorted(found) == pytest.approx(sorted(Y.tolist()))
    assert splits.train.classes == ("value",)
    assert load(data(test=0.3), tmp_path, 0).sha256 != splits.sha256


def test_parts_of_a_folder_keep_their_targets(tmp_path: Path) -> None:
    table(tmp_path, name="train.csv")
    table(tmp_path, (Y + 1).tolist(), name="test.csv")
    splits = load(data(path=""), tmp_path, 0)
    assert splits.test.targets is not None
    assert np.allclose(splits.test.targets, Y + 1)


@pytest.mark.parametrize(("layout", "shape"), [("NF", (3, 1, 1)), ("NCT", (1, 1, 3)), ("NHW", (1, 1, 3)), ("auto", (1, 1, 3))])
def test_archives_of_any_layout_have_targets(tmp_path: Path, layout: str, shape: tuple[int, ...]) -> None:
    x = X.astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x if layout == "NF" else x[:, None], y=Y, track=np.arange(60) // 3)
    splits = load(data(path="own.npz", target="", layout=layout), tmp_path, 0)
    assert splits.train.pixels.shape[1:] == shape
    assert splits.train.targets is not None
    assert splits.train.groups is not None
    assert splits.test.groups is not None
    assert not set(splits.train.groups.tolist()) & set(splits.test.groups.tolist())


@pytest.mark.parametrize(
    ("y", "keys", "words"),
    [
        (["few" if i % 2 else "many" for i in range(60)], {}, 'the column "y" holds text'),
        ([1.5] * 60, {}, "is 1.5 for every sample"),
        ([*Y[:-1].tolist(), "inf"], {}, "give finite numbers"),
        ([*Y[:-1].tolist(), 1e31], {}, "beyond 1e30"),
        ([*Y[:-1].tolist(), ""], {}, 'no value in the column "y"'),
        (None, {"target": "z"}, 'has no column "z"'),
        (None, {"target": ""}, "does not say which column is predicted"),
        (None, {"kind": "auto"}, 'predict it as a number (data.kind = "regression")'),
    ],
)
def test_tables_without_numbers_to_predict_are_refused(tmp_path: Path, y: list[Any] | None, keys: dict[str, Any], words: str) -> None:
    table(tmp_path, y)
    with pytest.raises(InputError) as caught:
        load(data(**keys), tmp_path, 0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("y", "kind", "words"),
    [
        (Y, "auto", 'to predict them, set data.kind = "regression"'),
        (np.stack([Y, Y], 1), "regression", "one number a sample"),
        (np.array(["a"] * 60), "regression", "one number a sample"),
        (np.where(np.arange(60) == 3, np.nan, Y), "regression", "not finite"),
        (np.ones(60), "regression", "for every sample"),
        (Y[:-1], "regression", "60 images and 59 labels"),
    ],
)
def test_archives_without_numbers_to_predict_are_refused(tmp_path: Path, y: Any, kind: str, words: str) -> None:
    np.savez(tmp_path / "own.npz", x=X.astype(np.float32), y=y)
    with pytest.raises(InputError) as caught:
        load(data(path="own.npz", target="", layout="NF", kind=kind), tmp_path, 0)
    assert words in str(caught.value)


def test_images_in_folders_have_no_numbers(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (8, 8), 20 * i).save(tmp_path / "own" / name / f"{i}.png")
    with pytest.raises(InputError, match=r'data\.kind = "regression" wants numbers'):
        load(Data(name="own", kind="regression"), tmp_path, 0)


@pytest.mark.parametrize("keys", [{"name": "digits"}, {"name": "own", "format": "folder"}, {"name": "own", "format": "breast-cancer"}])
def test_a_kind_that_data_cannot_be_of_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="regression"):
        Data.model_validate({**keys, "kind": "regression"})
    with pytest.raises(ValidationError, match="number to predict"):
        Data.model_validate({"name": "diabetes", "kind": "classes"})
