"""What a recipe builds, told before anything is loaded: numbers of the network that a build trains, sources, and names that are none."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

import vsparse
from vsparse import cli
from vsparse.errors import InputError
from vsparse.recipe_sources import key_sources
from vsparse.recipe_summary import leading_comment, shipped_sources, summarise_recipe
from vsparse.shipped import shipped_file, shipped_names, shipped_settings


def test_costs_are_those_of_the_network_by_hand() -> None:
    found = vsparse.describe_model("digits")
    # cnn4 at 1.5 of its width on 8×8: 24 and 48 maps by 4×4 kernels with stride 2, on 4×4 and 2×2 places, then 150 and 10 units.
    first, second, third, last = 24 * 16, 48 * 24 * 16, 150 * 48 * 4, 10 * 150
    assert (found.input_shape, found.classes) == ((1, 8, 8), 10)
    assert found.weights == first + second + third + last
    assert found.parameters == found.weights + 24 + 48 + 150 + 10
    assert found.macs == 16 * first + 4 * second + third + last
    assert (found.settings, found.gates["certified_accuracy"]) == ("best", 0.85)
    assert found.source == ("The embedded default: scikit-learn's 8x8 digits, bundled, nothing to download.",)


@pytest.mark.parametrize("name", ["mnist", "vericompress-mnist", "live-gtsrb", "cifar10-small"])
def test_a_shipped_recipe_tells_settings_and_sources_as_its_file_has_them(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert cli.run(["models", name, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    path = shipped_file("models", name)
    assert path is not None
    head = path.read_text(encoding="utf-8").partition("schema_version")[0]
    assert [f"# {line}" for line in found["source"]] == head.splitlines()
    assert (found["name"], found["settings"]) == (name, shipped_settings(name))
    assert found["recipe"]["train"]["epochs"] == found["train"]["epochs"]
    assert found["network"]["macs"] > found["network"]["weights"] > 0
    assert cli.run(["models", name]) == 0
    printed = capfd.readouterr().out
    for text in (f"{found['network']['weights']:,} weights", f"epochs: {found['train']['epochs']}", *found["source"]):
        assert text in printed


def test_every_shipped_recipe_begins_with_its_source() -> None:
    for name in shipped_names("models"):
        path = shipped_file("models", name)
        assert path is not None
        assert leading_comment(path.read_text(encoding="utf-8")), name


def test_sources_are_the_comments_beside_keys_and_tables() -> None:
    text = (
        '# head = 1  # no key\nname = "a # b"  # first\n[train]\nobjective = "x"  # HYDRA: k = 5\nepochs = 3\n'
        'milestones = [0.5, "#"]# two\n'
        "[train.loss]  # ours, as best\nalpha = 0.1\n  beta = 'c # \"d'   #  its own\ngamma = 1 #\n[train.sparse]\nfreeze = 1 #\n"
        '[verify] # all\nescaped = "q\\" # r" # s\n'
    )
    assert tomllib.loads(text)["train"]["loss"]["beta"] == 'c # "d'
    assert key_sources(text) == {
        "name": "first",
        "train.objective": "HYDRA: k = 5",
        "train.milestones": "two",
        "train.loss.alpha": "ours, as best",
        "train.loss.beta": "its own",
        "train.loss.gamma": "ours, as best",
        "verify.escaped": "s",
    }


@pytest.mark.parametrize("name", shipped_names("models"))
def test_sources_name_keys_that_the_recipe_sets(name: str) -> None:
    path = shipped_file("models", name)
    assert path is not None
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    for key in shipped_sources(name):
        table = raw
        for part in key.split("."):
            assert part in table, key
            table = table[part]
        assert not isinstance(table, dict), key


def test_models_tell_the_source_of_each_key(capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert cli.run(["models", "--json"]) == 0
    listed = {one["name"]: one["sources"] for one in json.loads(capfd.readouterr().out)["recipes"]}
    assert listed["best-cifar10"]["train.loss.attack_steps"] == "CTBench's code"
    assert listed["best-cifar10"]["train.sparse.freeze"].startswith("ours")
    assert listed["digits"] == {}
    assert vsparse.models().sources == listed
    assert cli.run(["models", "best-cifar10", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["sources"] == listed["best-cifar10"]
    assert cli.run(["models", "best-cifar10"]) == 0
    printed = capfd.readouterr().out
    for text in ("train.milestones = [0.75, 0.875]: CTBench: epochs 120 and 140", 'train.average = "swa": CTBench\'s code'):
        assert text in printed


def test_a_recipe_of_ones_own_is_described_without_running_its_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text(
        '# [bold]mine[/bold]\nschema_version = 1\n[data]\nname = "bolts"\nformat = "npz"\n'
        '[network]\narchitecture = "no_such_module:net"\n[property]\nepsilon = "0.1"\n[train]\nsparsity = 0\n'
    )
    found = summarise_recipe(str(tmp_path / "mine.toml"))
    assert (found.input_shape, found.classes, found.weights, found.settings) == (None, None, None, "")
    assert found.as_dict()["settings"] is None
    assert cli.run(["models", str(tmp_path / "mine.toml")]) == 0
    printed = capfd.readouterr().out
    for text in ("[bold]mine[/bold]", "none removed", "read from your data", "as many as fit", "settings: your own"):
        assert text in printed


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("digit", 'did you mean "digits"?'),
        ("cnn5", "is an architecture and no recipe"),
        ("absent.toml", "is not there"),
        ("../models/digits", "there is no recipe"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, told: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=told.replace("?", r"\?")):
        summarise_recipe(name)
    capfd.readouterr()
    assert cli.run(["models", name, "--json"]) == 2
    found = capfd.readouterr()
    assert told in json.loads(found.out)["error"]
    assert found.err.count("\n") == 1


def test_a_comment_ends_where_the_recipe_begins() -> None:
    assert leading_comment("# a\n#b\nx = 1\n# c\n") == ("a", "b")
    assert leading_comment("x = 1\n") == ()
