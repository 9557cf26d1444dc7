"""What a sweep varies: products in order, points, seeds, and refusals that name the nearest key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vsparse.errors import InputError
from vsparse.recipe import parse_setting
from vsparse.sweep.grid import Configuration, Grid, expand, read_sweep, seeds

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to-sweep.md"


def test_the_product_in_the_order_of_the_axes() -> None:
    grid, _ = read_sweep(["train.sparsity=[0, 0.5]", 'train.objective=["ibp", "mtl-ibp"]'])
    found = expand(grid)
    assert [(one.settings["train.sparsity"], one.settings["train.objective"]) for one in found] == [
        (0, "ibp"),
        (0, "mtl-ibp"),
        (0.5, "ibp"),
        (0.5, "mtl-ibp"),
    ]
    assert [one.id for one in found] == ["c01", "c02", "c03", "c04"]
    assert found[3].label == "sparsity 0.5, objective mtl-ibp"


def test_seeds_multiply_trainings_not_configurations() -> None:
    grid, _ = read_sweep(["train.seed=[0, 1, 2]", "network.width=[0.5, 1]"])
    assert len(expand(grid)) == 2
    assert seeds(grid, 7) == [0, 1, 2]
    assert seeds(Grid({}), 7) == [7]


def test_settings_survive_the_way_through_set() -> None:
    values = {
        "train.objective": 'a "quoted" ε',
        "train.sparsity": 0.25,
        "train.epochs": 3,
        "train.amp": True,
        "train.milestones": [0.5, 0.9],
    }
    for text, (key, value) in zip(Configuration("c", values).as_set(), values.items(), strict=True):
        path, read = parse_setting(text)
        assert (".".join(path), read) == (key, value)


def test_a_file_has_a_grid_points_and_halving(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(
        'axes = ["certified", "macs"]\n[grid]\ntrain.objective = ["ibp", "sabr"]\n"train.sparse.granularity" = ["channel"]\n'
        "[[point]]\ntrain.sparsity = 0.9\n[[point]]\ntrain.sparsity = 0\nnetwork.width = 0.3\n[halving]\neta = 2\n"
    )
    grid, file = read_sweep([str(path), "train.seed=[4]"])
    found = expand(grid)
    assert len(found) == 4
    assert found[2].settings == {
        "train.sparsity": 0,
        "network.width": 0.3,
        "train.objective": "ibp",
        "train.sparse.granularity": "channel",
    }
    assert file.halving is not None
    assert (file.halving.eta, file.axes, seeds(grid, 0)) == (2, ("certified", "macs"), [4])


def test_equal_combinations_are_one_configuration() -> None:
    assert len(expand(Grid({"train.sparsity": [0.5]}, ({"network.width": 1}, {"network.width": 1})))) == 1


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("train.sparsty=[0]", 'did you mean "sparsity"?'),
        ("trian.sparsity=[0]", 'did you mean "train"?'),
        ("train.sparse.methd=[0]", 'did you mean "method"?'),
        ("train.sparse=[0]", "is a section"),
        ("train.sparsity.x=[0]", "is a value, not a section"),
        ("train.sparsity=0.5", "needs a list"),
        ("train.sparsity=[]", "needs a list"),
        ("train.sparsity=[0.5, 0.5]", "twice"),
        ("train.objective=[ibp]", "strings in quotes"),
        ("train.learning_rate=[nan]", "no recipe key takes"),
        ("property.epsilon=['0.1']", "what it is measured on"),
        ("data.validation=[0.1]", "what it is measured on"),
        ("gates.certified_accuracy=[0.1]", "does not change what is trained"),
        ("train.baseline=[true]", "trains no baselines"),
        ("name=['a']", "does not change what is trained"),
        ("absent.toml", "is not there"),
    ],
)
def test_what_cannot_be_swept_is_refused_by_name(argument: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        read_sweep([argument])
    assert words in str(refused.value)
    assert argument.split("=")[0].split(".")[0] in str(refused.value)


def test_a_key_given_twice_and_too_many_combinations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="given twice"):
        read_sweep(["train.sparsity=[0]", "train.sparsity=[0.5]"])
    with pytest.raises(InputError, match="1100 configurations"):
        expand(Grid({"train.sparsity": list(range(100)), "network.width": list(range(11))}))
    path = tmp_path / "s.toml"
    path.write_text("[[point]]\ntrain.sparsity = 0.5\n")
    with pytest.raises(InputError, match="stands in a point too"):
        read_sweep([str(path), "train.sparsity=[0]"])
    path.write_text("[[point]]\ntrain.seed = 1\n")
    with pytest.raises(InputError, match="stands in a point"):
        read_sweep([str(path)])
    path.write_text("[grd]\n")
    with pytest.raises(InputError, match='did you mean "grid"'):
        read_sweep([str(path)])
    path.write_text("")
    with pytest.raises(InputError, match="nothing is varied"):
        read_sweep([str(path)])


@pytest.mark.skipif(not HOW_TO.exists(), reason="the documents are not beside the tests")
def test_the_file_of_the_how_to_is_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), re.S)
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    grid, file = read_sweep([str(path)])
    assert (len(expand(grid)), seeds(grid, 9), file.axes) == (4, [0, 1, 2], ("certified", "macs", "bytes"))
