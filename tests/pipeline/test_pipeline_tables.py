"""A table through the whole pipeline: its map from columns to inputs in JSON and in C, and what the checker holds it against."""

from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_build import TINY
from vsparse.artifact import write_manifest
from vsparse.artifact.document import read_document
from vsparse.artifact.features import FEATURES, FeatureList
from vsparse.data import load
from vsparse.errors import InputError
from vsparse.pipeline.build import build
from vsparse.pipeline.tables import with_features
from vsparse.recheck import recheck
from vsparse.recipe import load_recipe
from vsparse.stages.export.c_source.columns import columns_header
from vsparse_check import check

COLOURS = ("red", 'bl"ue*/', "green")
COMPILER = shutil.which("gcc") or shutil.which("cc")
WARNINGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-pedantic")
RECIPE = """
schema_version = 1
[data]
name = "own"
path = "own.csv"
target = "ill"
[property]
epsilon = "0.1"
features = { age = "2" }
[train]
baseline = false
"""


def write(folder: Path, shift: float = 0.0) -> Path:
    random = np.random.RandomState(0)
    rows = [
        f"{20 + i % 50},{random.normal(3 * (i % 2) + shift, 0.7):.4f},{COLOURS[i % 3]!r},7,{'yes' if i % 2 else 'no'}" for i in range(300)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "own.csv").write_text("\n".join(["age,dose,colour,constant,ill", *rows]) + "\n")
    (folder / "own.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def built(folder: Path) -> Path:
    settings = [one for one in TINY if "epsilon" not in one and "curve" not in one]
    build(str(folder / "own.toml"), data=folder, out=folder / "out", settings=[*settings, "verify.cross_check=0"])
    return folder / "out"


@pytest.fixture
def artifact(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def change(artifact: Path, how: Callable[[list[dict[str, Any]]], None]) -> Path:
    """Changes features.json, and signs the artifact again as one who may write all of it would."""
    content = json.loads((artifact / FEATURES).read_text())
    how(content["features"])
    (artifact / FEATURES).write_text(json.dumps(content))
    manifest = json.loads((artifact / "manifest.json").read_text())
    write_manifest(artifact, seed=manifest["seed"], until=manifest["until"], road_key=manifest["road_key"], lineage=[])
    return artifact


def test_a_table_is_confirmed_with_and_without_its_rows(built: Path, folder: Path) -> None:
    assert check(built).passed
    found = recheck(built, data=str(folder))
    assert found.passed, found.sentence
    assert FEATURES not in found.left
    assert FEATURES in recheck(built).left


def test_other_rows_than_those_of_the_training_are_refuted(built: Path, tmp_path: Path) -> None:
    assert not recheck(built, data=str(write(tmp_path / "other", shift=0.5))).passed


def test_a_unit_that_was_changed_throughout_is_seen_with_the_rows(artifact: Path, folder: Path) -> None:
    """All numbers of one column in another unit agree with each other: what follows from the artifact alone cannot tell."""

    def rescale(features: list[dict[str, Any]]) -> None:
        for key in ("low", "span", "mean", "std", "epsilon"):
            features[1][key] *= 2.0

    change(artifact, rescale)
    assert check(artifact).passed
    again = columns_header(read_document(FeatureList, artifact / FEATURES), "vsparse", load_recipe(str(artifact / "recipe.toml")).name)
    for place in ("model", "device"):
        (artifact / place / "model_columns.h").write_text(again)
    manifest = json.loads((artifact / "manifest.json").read_text())
    write_manifest(artifact, seed=manifest["seed"], until=manifest["until"], road_key=manifest["road_key"], lineage=[])
    found = recheck(artifact, data=str(folder))
    assert (found.verdict, found.status) == ("refuted", 1)


MUTATIONS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "a larger radius": lambda all_: all_[1].update(epsilon=all_[1]["epsilon"] * 1.01),
    "a smaller radius": lambda all_: all_[1].update(epsilon=all_[1]["epsilon"] * 0.99),
    "another range": lambda all_: all_[1].update(low=all_[1]["low"] + 0.1),
    "a wider range": lambda all_: all_[1].update(span=all_[1]["span"] * 1.1, epsilon=all_[1]["epsilon"] * 1.1),
    "another mean": lambda all_: all_[0].update(mean=all_[0]["mean"] * 1.01),
    "another deviation": lambda all_: all_[0].update(std=all_[0]["std"] * 1.01),
    "a range of nothing": lambda all_: all_[0].update(span=0),
    "fixed": lambda all_: all_[0].update(fixed=True),
    "a category with a radius": lambda all_: all_[-1].update(epsilon=0.1),
    "a category of another column": lambda all_: all_[-1].update(column="age"),
    "a column that was left out": lambda all_: all_[0].update(column="ill", name="ill"),
    "two of one name": lambda all_: all_[0].update(column="dose", name="dose"),
    "an input less": lambda all_: all_.pop(),
    "an input more": lambda all_: all_.append(all_[-1]),
    "columns that changed places": lambda all_: all_.insert(0, all_.pop(1)),
    "text": lambda all_: all_[0].update(low="0"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_map_that_does_not_follow_is_refuted(artifact: Path, name: str) -> None:
    change(artifact, MUTATIONS[name])
    found = check(artifact)
    assert (found.verdict, "features.json" in found.problem) == ("refuted", True), found.sentence


def test_c_that_says_other_than_the_map_is_refuted(artifact: Path) -> None:
    path = artifact / "model" / "model_columns.h"
    listed, before = artifact / "device" / "manifest.json", hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(path.read_text().replace("x < 0.0", "x < 0.5"))
    shutil.copyfile(path, artifact / "device" / path.name)
    listed.write_text(listed.read_text().replace(before, hashlib.sha256(path.read_bytes()).hexdigest()))
    manifest = json.loads((artifact / "manifest.json").read_text())
    write_manifest(artifact, seed=manifest["seed"], until=manifest["until"], road_key=manifest["road_key"], lineage=[])
    assert "model_columns.h is not what the artifact is written as" in recheck(artifact).problem


@pytest.mark.skipif(COMPILER is None, reason="no C compiler on this machine")
@pytest.mark.parametrize("standard", ["c99", "c++"])
def test_rows_become_inputs_in_c_as_they_do_in_python(built: Path, tmp_path: Path, standard: str) -> None:
    features = read_document(FeatureList, built / FEATURES)
    text = (built / "model" / "model_columns.h").read_text()
    assert text == (built / "device" / "model_columns.h").read_text()
    (tmp_path / "model_columns.h").write_text(text)
    linkage = 'extern "C" ' if standard == "c++" else ""
    declared = f"{linkage}int fill(const double *columns, float *input);"
    source = tmp_path / ("fill.c" if standard == "c99" else "fill.cc")
    source.write_text(
        f'#include "model_columns.h"\n{declared}\nint fill(const double *columns, float *input)\n'
        "{ return vsparse_from_columns(columns, input); }\n"
    )
    options = WARNINGS if standard == "c99" else ("-O2", "-Wall", "-Wextra", "-Werror")
    subprocess.run([str(COMPILER), *options, "-shared", "-fPIC", str(source), "-o", str(tmp_path / "fill.so")], check=True)
    fill = ctypes.CDLL(str(tmp_path / "fill.so")).fill

    def in_c(columns: list[float]) -> tuple[int, np.ndarray]:
        given, out = (ctypes.c_double * len(columns))(*columns), np.full(len(features.features), np.nan, np.float32)
        return fill(given, out.ctypes.data_as(ctypes.POINTER(ctypes.c_float))), out

    random = np.random.RandomState(1)
    texts = sorted({one.category for one in features.features if one.category is not None})
    rows = [[random.normal(45, 60), random.normal(1.5, 9), 7.0, float(random.randint(3))] for _ in range(2000)]
    values = np.array([[*row[:3], *(float(texts[int(row[3])] == one) for one in texts)] for row in rows])
    wanted, clipped = features.scaled(values)
    found = [in_c(row) for row in rows]
    assert (np.stack([x for _, x in found]) == wanted).all()
    assert sum(count for count, _ in found) == clipped > 0
    for bad in (
        [float("nan"), 0, 7, 0],
        [45, float("inf"), 7, 0],
        [45, 0, 7, 3],
        [45, 0, 7, 0.5],
        [45, 0, 7, -1],
        [45, 0, 7, float("nan")],
    ):
        assert in_c([float(one) for one in bad])[0] == -1


def test_a_normalisation_that_is_not_of_the_training_rows_is_refused(folder: Path) -> None:
    recipe = load_recipe(str(folder / "own.toml"))
    splits = load(recipe.data, folder, 0)
    fitted = with_features(recipe, splits)
    assert with_features(fitted, splits) == fitted
    for mean in (tuple(value + 0.01 for value in fitted.data.mean), fitted.data.mean[:-1]):
        data = fitted.data.model_copy(update={"mean": mean, "std": fitted.data.std[: len(mean)]})
        with pytest.raises(InputError, match=r"data\.mean and data\.std are not those of the training rows"):
            with_features(fitted.model_copy(update={"data": data}), splits)
