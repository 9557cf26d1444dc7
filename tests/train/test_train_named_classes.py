"""Classes that a recipe names: ours say what others need to know of them; a user's own train, are hashed, and fail in one sentence."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from blob_data import blobs

from tiny_build import TINY
from vsparse.artifact.facts import gather
from vsparse.data import Splits
from vsparse.errors import InputError
from vsparse.recipe import Recipe, load_recipe
from vsparse.recipe_train import METHODS, OBJECTIVES, Train
from vsparse.stages.report.render import html
from vsparse.stages.train import train
from vsparse.stages.train.checks import objection
from vsparse.stages.train.named_classes import own_code, sources
from vsparse.stages.train.objectives import Objective, objective_class
from vsparse.stages.train.objectives.loss import ValidationMeasure
from vsparse.stages.train.sparsifiers import Sparsifier, sparsifier_class

HERE = Path(__file__).parent
OWN = ["train.objective=own_training:HingeObjective", "train.sparse.method=own_training:AtHalf"]


def test_every_class_of_the_tables_says_what_is_asked_of_it() -> None:
    attacks, noise = {"fgsm", "pgd", "trades"}, {"smoothing"}
    for name in OBJECTIVES:
        found = objective_class(Train(objective=name))
        assert issubclass(found, Objective)
        assert found.validated_by in get_args(ValidationMeasure)
        assert found.report.startswith("Trained ")
        assert found.report.endswith(".")
        # Certified are those whose epochs are certified, and no others speak of certification.
        assert found.certified == (found.validated_by != "attack") == ("for certification" in found.report)
        assert found.certified == (name not in {"natural"} | attacks | noise)
        assert found.uses_epsilon == (name not in {"natural"} | noise)
        assert found.is_cross_entropy == (name not in {"trades", "regression"} | noise)
    for name in METHODS:
        assert issubclass(sparsifier_class(Train.model_validate({"sparse": {"method": name, "granularity": "element"}})), Sparsifier)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a user's own modules in it, which are forgotten afterwards."""
    for name in ("own_training.py", "own_margin.py"):
        shutil.copy(HERE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("own_", "wrong")):
            del sys.modules[name]


def test_a_build_with_an_objective_and_a_sparsifier_of_ones_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vsparse.pipeline.build import build

    monkeypatch.setenv("VSPARSE_CACHE", str(folder / "cache"))
    settings = [*TINY, *OWN, "train.sparsity=0.5", "train.baseline=false"]
    result = build("digits", settings=settings, out=folder / "artifact")
    assert result.passed, [gate for gate in result.gates if not gate.passed]
    history = json.loads((folder / "artifact/train/history.json").read_text())
    assert history["objective"] == {
        "name": "own_training:HingeObjective",
        "report": "Trained with a hinge on interval bounds, by <us>.",
        "certified": True,
        "validated_by": "interval",
        "is_cross_entropy": False,
        "uses_epsilon": True,
    }
    assert [epoch["density"] < 0.55 for epoch in history["sparse"]] == [False] * 3 + [True] * 3
    assert {epoch["measure"] for epoch in history["sparse"]} == {"interval"}
    # Reading an artifact never runs the code that its recipe names.
    for name in ("own_training", "own_margin"):
        (folder / f"{name}.py").write_text("raise SystemExit(1)\n")
        del sys.modules[name]
    assert "Trained with a hinge on interval bounds, by &lt;us&gt;." in html(gather(folder / "artifact"))
    assert load_recipe(str(folder / "artifact/recipe.toml")).train.objective == "own_training:HingeObjective"
    assert "own_training" not in sys.modules


SPLITS = Splits(blobs(90, 0), blobs(30, 1), blobs(30, 2), "blobs", "0" * 64)


def recipe(objective: str = "ibp", method: str = "vericompress", **settings: Any) -> Recipe:
    trained = {"epochs": 3, "batch_size": 32, "learning_rate": 0.01, "sparsity": 0.5, "sparse": {"method": method}, **settings}
    return Recipe.model_validate(
        {
            "name": "t",
            "network": {"architecture": "mlp", "width": 0.2},
            "property": {"epsilon": "0.05"},
            "train": {**trained, "objective": objective},
        }
    )


def test_its_code_and_what_it_imports_beside_it_are_part_of_the_key(folder: Path) -> None:
    spec = recipe("own_training:HingeObjective").train
    objective_class(spec)
    found = sources("own_training:HingeObjective")
    assert {path.name for path in found} == {"own_training.py", "own_margin.py"}
    assert set(found.values()) == {folder.resolve()}
    first = own_code(spec)
    path = folder / "own_margin.py"
    path.write_text(path.read_text().replace("AIM = 1.0", "AIM = 2.0"))
    assert own_code(spec) not in ("", first)
    assert own_code(recipe().train) == ""


def test_modules_of_a_package_are_followed_by_every_kind_of_import(folder: Path) -> None:
    inner = folder / "own_package" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("")
    (inner / "__init__.py").write_text("from ..first import X\n")
    (inner.parent / "first.py").write_text("X = 1\n")
    (inner.parent / "unused.py").write_text("X = 1\n")
    (inner / "other.py").write_text("def f():\n    import own_margin\n    from . import late\n")
    (inner / "late.py").write_text("import torch, vsparse.graph\n")
    (inner / "losses.py").write_text("from own_package.inner.other import f\nfrom own_training import HingeObjective as Mine\n")
    objective_class(recipe("own_package.inner.losses:Mine").train)
    found = {path.relative_to(folder.resolve()).as_posix() for path in sources("own_package.inner.losses:Mine")}
    assert found == {
        "own_margin.py",
        "own_training.py",
        "own_package/__init__.py",
        "own_package/first.py",
        *(f"own_package/inner/{name}.py" for name in ("__init__", "late", "losses", "other")),
    }


WRONG = """
import torch
from vsparse.stages.train.bounds.margins import Margins
from vsparse.stages.train.objectives import Loss, Objective
from vsparse.stages.train.sparsifiers import Sparsifier

class Base(Objective):
    def __init__(self, spec, graph, params):
        self.graph, self.calls = graph, 0

class Alone:
    pass

class Half(Objective):
    pass

class Measured(Base):
    validated_by = "luck"
    def __call__(self, params, batch):
        return Loss(sum(value.sum() for value in params.values()))

class Nothing(Base):
    def __call__(self, params, batch):
        return None

class PerSample(Base):
    def __call__(self, params, batch):
        return Loss(batch.x.flatten(1).sum(1) * next(iter(params.values())).sum())

class Constant(Base):
    def __call__(self, params, batch):
        return Loss(torch.tensor(1.0))

class Raises(Base):
    def __call__(self, params, batch):
        raise LookupError("no such thing")

class RaisesLater(Base):
    def __call__(self, params, batch):
        self.calls += 1
        if self.calls == 4:
            return 1 / 0
        return Loss(sum(value.square().sum() for value in params.values()))

class NothingLater(RaisesLater):
    def __call__(self, params, batch):
        return super().__call__(params, batch) if self.calls < 2 else None

class NoPhases(Sparsifier):
    def settled(self, at):
        return True
    def begin_epoch(self, state, at, tools):
        raise KeyError("gone")
    def phases(self):
        return []

class Begins(NoPhases):
    def phases(self):
        return Sparsifier.phases(self)

class Picky(Begins):
    @classmethod
    def require(cls, spec):
        raise ArithmeticError("not today")

class Exits(Base):
    def __call__(self, params, batch):
        raise SystemExit(0)
"""


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"objective": "wrong:Missing"}, "train.objective wrong:Missing cannot be imported: AttributeError"),
        ({"objective": "absent.module:Loss"}, "cannot be imported: ModuleNotFoundError: No module named 'absent'; check the spelling"),
        ({"objective": "wrong:Alone"}, "is not a subclass of Objective of vsparse.stages.train.objectives; derive"),
        ({"objective": "wrong:WRONG"}, "cannot be imported"),
        ({"objective": "own_training:AtHalf"}, "is not a subclass of Objective"),
        ({"method": "own_training:HingeObjective"}, "train.sparse.method own_training:HingeObjective is not a subclass of Sparsifier"),
        ({"objective": "wrong:Half"}, "does not define __call__, __init__"),
        ({"objective": "wrong:Measured"}, "its validated_by must be one of interval, crown, attack"),
        ({"objective": "wrong:Nothing"}, "train.objective wrong:Nothing returned NoneType, not a Loss"),
        ({"objective": "wrong:PerSample"}, "a value of shape [2], not a Loss with one number"),
        ({"objective": "wrong:Exits"}, "train.objective wrong:Exits failed: SystemExit: 0, at wrong.py"),
        ({"objective": "wrong:Constant"}, "a loss without gradients"),
        ({"objective": "wrong:Raises"}, "train.objective wrong:Raises failed: LookupError: no such thing, at wrong.py, line 36; mend it"),
        ({"objective": "wrong:RaisesLater"}, "wrong:RaisesLater failed: ZeroDivisionError: division by zero, at wrong.py, line 42"),
        ({"objective": "wrong:NothingLater"}, "wrong:NothingLater returned NoneType"),
        ({"method": "wrong:NoPhases"}, "phases() must return a tuple of one Phase or more"),
        ({"method": "wrong:Begins"}, "train.sparse.method wrong:Begins failed: KeyError: 'gone', at wrong.py"),
        ({"method": "wrong:Picky"}, "train.sparse.method wrong:Picky failed: ArithmeticError: not today, at wrong.py"),
        ({"objective": "own_training:HingeObjective", "amp": True}, 'the bounds of train.objective = "own_training:HingeObjective"'),
        ({"objective": "own_training:HingeObjective", "engine": "auto_lirpa"}, 'set train.engine = "vsparse"'),
    ],
)
def test_what_is_wrong_with_a_class_is_one_sentence(folder: Path, settings: dict[str, Any], reason: str) -> None:
    (folder / "wrong.py").write_text(WRONG)
    with pytest.raises(InputError) as error:
        train(recipe(**settings), SPLITS, folder / "scratch", sparse=True)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_of_other_code_are_not_blamed_on_the_users_class(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise LookupError("ours")

    monkeypatch.setattr("vsparse.stages.train.trainer.finish", broken)
    with pytest.raises(LookupError, match="ours"):
        train(recipe("own_training:HingeObjective"), SPLITS, folder / "scratch", sparse=True)


def test_an_interrupted_training_with_own_classes_ends_in_the_same_bits(folder: Path) -> None:
    from vsparse.stages.train.trainer import Trainer

    wanted = recipe("own_training:HingeObjective", "own_training:AtHalf", epochs=4)
    whole = train(wanted, SPLITS, folder / "whole", sparse=True)
    for _ in range(4):
        trainer = Trainer(wanted, SPLITS, folder / "pieces", True)
        trainer.run_epoch()
        trainer.save()
    resumed = trainer.result()
    assert resumed.graph.nodes == whole.graph.nodes
    assert all(np.array_equal(value, resumed.graph.params[name]) for name, value in whole.graph.params.items())
    # Other code is another training.
    path = folder / "own_margin.py"
    path.write_text(path.read_text().replace("AIM = 1.0", "AIM = 2.0"))
    assert Trainer(wanted, SPLITS, folder / "pieces", True).epoch == 0


def test_nothing_is_imported_before_training(folder: Path) -> None:
    (folder / "wrong.py").write_text("raise SystemExit(1)\n")
    assert recipe("wrong:Loss", "wrong:Method").train.objective == "wrong:Loss"
    assert "wrong" not in sys.modules
    with pytest.raises(InputError, match="SystemExit: 1"):
        objection(recipe("wrong:Loss").train)
