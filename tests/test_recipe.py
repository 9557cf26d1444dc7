"""Recipes and targets: defaults, overrides, exact numbers, and errors that name file, key and nearest key."""

from __future__ import annotations

import tomllib
from fractions import Fraction
from pathlib import Path

import pytest

from recipe_reference import REFERENCE, SECTION, tables
from vsparse.errors import InputError
from vsparse.pipeline.build import resolve
from vsparse.recipe import Recipe, apply_settings, load_recipe
from vsparse.schema import parse_fraction, validate
from vsparse.shipped import shipped_names
from vsparse.target import load_target


@pytest.mark.parametrize("name", shipped_names("models"))
def test_shipped_recipes_resolve_and_round_trip(name: str) -> None:
    recipe = load_recipe(name)
    again = validate(Recipe, tomllib.loads(recipe.to_toml()), "copy")
    assert again == recipe
    assert recipe.name == name


@pytest.mark.parametrize("name", shipped_names("targets"))
def test_every_number_of_a_target_has_a_source(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert all(fact.source in ("datasheet", "measured", "estimate") for fact in target.device.facts.values())
    assert target.default_contract != "real"


def test_radii_are_exact() -> None:
    assert load_recipe("digits", ["property.epsilon=8/255"]).property.radius == Fraction(8, 255)
    assert load_recipe("digits", ["property.epsilon=0.1"]).property.radius == Fraction(1, 10)


@pytest.mark.parametrize("text", ["", "-1", "1/0", "nan", "inf", "1e400", "eight", "0.1/0.2/0.3", "1" * 41, "1e-300"])
def test_what_is_no_radius_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|range"):
        parse_fraction(text)


def test_training_radius_defaults_to_the_property() -> None:
    recipe = validate(Recipe, {"name": "x", "property": {"epsilon": "2/255"}}, "here")
    assert recipe.train.epsilon == "2/255"
    assert validate(Recipe, {"name": "x", "train": {"epsilon": "0.2"}}, "here").train.epsilon == "0.2"


def test_settings_override_and_leave_the_rest() -> None:
    content = {"train": {"epochs": 3, "sparsity": 0.5}}
    changed = apply_settings(content, ["train.sparsity=0.9", "data.name=mine"])
    assert changed == {"train": {"epochs": 3, "sparsity": 0.9}, "data": {"name": "mine"}}
    assert content == {"train": {"epochs": 3, "sparsity": 0.5}}


def test_misspelt_key_names_file_key_and_nearest(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("[train.sparse]\ngranularty = 'structured'\n")
    with pytest.raises(InputError) as caught:
        load_recipe(str(path))
    message = str(caught.value)
    assert "my.toml" in message
    assert "train.sparse.granularty" in message
    assert 'did you mean "granularity"' in message


def test_resolved_recipe_leaves_nothing_to_the_target() -> None:
    recipe, target = resolve("digits", "local")
    assert recipe.verify.contract == target.default_contract == "fp32"
    assert recipe.export.opset == target.runtime.opset


def test_real_arithmetic_only_on_request() -> None:
    assert resolve("digits", "local", contract="real")[0].verify.contract == "real"
    with pytest.raises(InputError, match="honour"):
        resolve("digits", "local", contract="fp16-accumulate")


def test_the_reference_lists_every_key_with_its_default_and_meaning() -> None:
    # `python tests/recipe_reference.py` brings the tables up to date.
    sections = dict(SECTION.findall(REFERENCE.read_text()))
    found = dict(tables())
    assert set(sections) == set(found)
    for name, table in found.items():
        assert table in sections[name], f"[{name}]"


def test_the_training_radius_encloses_what_the_property_allows() -> None:
    def radius(**wanted: str) -> str:
        return Recipe.model_validate({"name": "t", "property": wanted}).train.epsilon

    assert radius(epsilon="8/255") == "8/255"
    assert radius(epsilon="1/255", brightness="1/255") == "2/255"
    assert radius(epsilon="0.1", contrast="0.1") == "3/20"
    assert (
        Recipe.model_validate(
            {"name": "t", "property": {"epsilon": "1/255", "brightness": "0.02"}, "train": {"epsilon": "0.1"}}
        ).train.epsilon
        == "0.1"
    )
    wanted = Recipe.model_validate({"name": "t", "property": {"epsilon": "1/255", "brightness": "0.02", "contrast": "0.1"}}).property
    assert wanted.box_radius == pytest.approx(1 / 255 + 0.02 + 0.05)


@pytest.mark.parametrize("text", ["1e999999999", "1E-999999999", "1e9_999", "1e٩٩٩٩٩٩٩", "1 e 999999999", "1/1e999999999", "9" * 41])
def test_exact_numbers_of_absurd_size_are_refused_before_they_are_written_out(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        parse_fraction(text)


def test_integers_of_thousands_of_digits_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.seed"):
        load_recipe("digits", ["train.seed=" + "9" * 5000])
    (tmp_path / "r.toml").write_text("[train]\nseed = " + "9" * 5000)
    with pytest.raises(InputError, match="not valid TOML"):
        load_recipe(str(tmp_path / "r.toml"))
