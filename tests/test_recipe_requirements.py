"""Requirements of a recipe: written in two ways, and refused by one sentence where no gate could decide them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsparse.artifact.facts import gather
from vsparse.errors import InputError
from vsparse.pipeline.gates import judge, require_judged
from vsparse.recipe import Recipe, load_recipe
from vsparse.recipe_gates import Gates
from vsparse.recipe_requirements import TITLES, Requirement
from vsparse.target import load_target

HEAD = "[gates]\ncertified_accuracy = 0.5\nlatency_ratio = 0.9\n"


def recipe(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "own.toml"
    path.write_text(HEAD + text)
    return load_recipe(str(path))


@pytest.mark.parametrize(
    "text",
    [
        '[[requirements]]\nid = "R-1"\ntext = "t"\ngate = "certified_accuracy"\n',
        '[requirements.R-1]\ntext = "t"\ngate = "certified_accuracy"\n',
        '[requirements]\nid = "R-1"\ntext = "t"\ngate = "certified_accuracy"\n',
    ],
)
def test_it_is_written_as_a_list_or_by_id(tmp_path: Path, text: str) -> None:
    found = recipe(tmp_path, text)
    assert found.requirements == (Requirement(id="R-1", text="t", gate="certified_accuracy"),)
    (tmp_path / "again.toml").write_text(found.to_toml())
    assert load_recipe(str(tmp_path / "again.toml")).requirements == found.requirements


def test_a_recipe_without_any_is_written_as_before() -> None:
    assert "requirements" not in load_recipe("digits").to_toml()


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ("certified_acuracy", 'did you mean "certified_accuracy"'),
        ("weights_removed", "its gate is off; set gates.weights_removed"),
        ("contract audit of int8", 'add "int8" to export.precisions'),
        ("gates on the device", "off for target local"),
        ("flash_kib", "off for target local"),
    ],
)
def test_a_gate_that_is_unknown_or_off_is_refused(tmp_path: Path, gate: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as found:
        require_judged(recipe(tmp_path, f'[[requirements]]\nid = "R"\ntext = "t"\ngate = "{gate}"\n'), load_target("local"))
    assert "\n" not in str(found.value)


def test_an_id_twice_is_refused(tmp_path: Path) -> None:
    one = '[[requirements]]\nid = "R"\ntext = "t"\ngate = "collapse"\n'
    with pytest.raises(InputError, match='"R" is there twice'):
        recipe(tmp_path, one + one)


def test_every_key_of_gates_has_the_title_that_the_build_gives_it(tmp_path: Path) -> None:
    """A key without one would leave its requirement `not run` for ever."""
    assert set(TITLES) == set(Gates.model_fields)
    every = dict.fromkeys(Gates.model_fields, 0.5)
    wanted = load_recipe("digits").model_copy(update={"gates": Gates.model_validate(every)})
    (tmp_path / "recipe.toml").write_text('name = "a"\n')
    (tmp_path / "target.toml").write_text(load_target("cortex-m4f").to_toml())
    names = {gate.name for gate in judge(wanted, gather(tmp_path), tmp_path)}
    assert set(TITLES.values()) <= names
