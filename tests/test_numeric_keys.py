"""True and false are no numbers: every numeric key of a recipe and of a target refuses them, before anything is done."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import tomli_w
from pydantic import BaseModel

from vsparse import cli
from vsparse.recipe import Recipe, load_recipe
from vsparse.schema import boolean_for_number, validate
from vsparse.target import Target, load_target

# Exact numbers are kept as their text.
EXACT = ("property.epsilon", "property.brightness", "property.contrast", "property.curve", "train.epsilon")


def numeric_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every key of a document that takes numbers, and a value of its type with true in place of them."""
    for name, field in model.model_fields.items():
        key, kind = f"{prefix}{name}", field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from numeric_keys(kind, f"{key}.")
            continue
        value = _true_for(kind) if key not in EXACT else [True] if get_origin(kind) is tuple else True
        if value is not None:
            yield key, value


def _true_for(kind: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _true_for(inner[0])
    if kind in (int, float) or (origin is Literal and {type(one) for one in inner} == {int}):
        return True
    if origin in (Union, UnionType):
        return True if {int, float} & set(inner) and bool not in inner else None
    if origin is tuple:
        items = [_true_for(one) for one in inner if one is not Ellipsis]
        return items if items[0] is not None else None
    return None


RECIPE = dict(numeric_keys(Recipe))
TARGET = dict(numeric_keys(Target))


def test_the_walk_finds_the_numbers() -> None:
    assert len(RECIPE) > 80
    assert {"schema_version", "choose.bytes", "train.milestones", "train.sparse.block", "data.mean", *EXACT} <= RECIPE.keys()
    assert {"schema_version", "runtime.opset"} <= TARGET.keys()
    assert not RECIPE.keys() & {"data.flip", "train.baseline", "data.name", "compress.exact"}


@pytest.mark.parametrize("key", RECIPE)
def test_a_numeric_key_of_a_recipe_refuses_true(key: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shown = str(RECIPE[key]).lower()
    assert cli.run(["build", "digits", "--out", str(tmp_path / "never"), "--set", f"{key}={shown}"]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert f": {key}" in said
    assert not (tmp_path / "never").exists()


def target_with(key: str, value: Any) -> dict[str, Any]:
    content: dict[str, Any] = copy.deepcopy(load_target("jetson-orin-nano").model_dump(mode="json", exclude_none=True))
    table = content
    *path, last = key.split(".")
    for part in path:
        table = table[part]
    table[last] = value
    return content


@pytest.mark.parametrize(("key", "value"), [*TARGET.items(), ("device.facts.memory.value", True)])
def test_a_numeric_key_of_a_target_refuses_true(key: str, value: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.toml"
    path.write_text(tomli_w.dumps(target_with(key, value)))
    assert cli.run(["build", "digits", "--target", str(path), "--out", str(tmp_path / "never")]) == 2
    said = capfd.readouterr().err
    assert f"{path}: {key}: a number is wanted, and true and false are none" in said


def test_booleans_and_numbers_stay_what_they_are() -> None:
    found = load_recipe("digits", ["data.shift=2", "train.amp=true", "choose.bytes=1", "train.sparsity=0", "property.epsilon=0.1"])
    assert (found.data.shift, found.train.amp, found.choose.bytes, found.train.sparsity) == (2, True, 1, 0.0)
    assert validate(Target, target_with("device.structured_sparsity_2_4", True), "t").device.structured_sparsity_2_4


@pytest.mark.parametrize("value", [False, [1.0, True], {"x": True}, [[1], [False]]])
def test_they_are_found_at_any_depth(value: Any) -> None:
    kind = {bool: int | None, list: tuple[float | int, ...], dict: dict[str, Annotated[float, "mm"]]}[type(value)]
    kind = tuple[tuple[int, ...], ...] if value == [[1], [False]] else kind
    found = boolean_for_number(kind, value)
    assert found == {bool: (), list: ("1",), dict: ("x",)}[type(value)] or found == ("1", "0")
    assert boolean_for_number(int | bool, True) is None
    assert boolean_for_number(str, True) is None
