"""vsparse.train with a recipe object, tensors and a network of the user's own: the same training as from files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vsparse
import vsparse.recipe_train
from vsparse.artifact.document import read_document
from vsparse.artifact.history import History
from vsparse.artifact.stage_files import HISTORY
from vsparse.data import load
from vsparse.errors import InputError
from vsparse.given import written
from vsparse.recipe import Recipe, load_recipe
from vsparse.training_log import read_log

QUICK = ["train.epochs=2", "train.baseline=false", "train.batch_size=16"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSPARSE_CACHE", str(tmp_path / "cache"))


def tensors(count: int = 60, shape: tuple[int, ...] = (1, 6, 6)) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(count) % 2
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.6 * y.float().view(-1, 1, 1, 1)
    return x, y


def test_a_recipe_object_trains_what_its_file_trains(tmp_path: Path) -> None:
    settings = [*QUICK, "network.architecture=mlp"]
    from_file = vsparse.train("digits", out=tmp_path / "file", settings=settings)
    given = vsparse.train(load_recipe("digits", settings), out=tmp_path / "object", log=tmp_path / "log.jsonl")
    assert [record.key for record in given.lineage] == [record.key for record in from_file.lineage]
    assert given.lineage[0].reused
    assert {"event": "reused", "variant": "sparse"} in read_log(tmp_path / "log.jsonl")


def test_what_a_recipe_object_leaves_out_is_still_left_out(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "own", "train": {"objective": "ibp"}})
    again = load_recipe(str(written(tmp_path, recipe, None, None)))
    assert "epochs" not in again.train.model_fields_set
    assert again == recipe


def test_tensors_train_and_the_artifact_goes_on_from_them(tmp_path: Path) -> None:
    x, y = tensors()
    settings = [*QUICK, "network.architecture=mlp", "network.width=0.1", "property.epsilon=0.05"]
    result = vsparse.train(data=((x, y), (x[:10], y[:10])), out=tmp_path / "a", settings=settings)
    assert result.data is not None
    assert (result.data.splits.test.samples, result.data.splits.train.samples) == (10, 54)
    packed = vsparse.compress(tmp_path / "a")
    assert packed.until == "compress"  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 5), (2, 8, 3), (5, 6, 7)])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
def test_tensors_are_read_as_they_were_given(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, *shape)).astype(np.uint8)
    x = x if kind == "uint8" else (x / 256).astype(kind)
    y = np.arange(40) % 4
    recipe = load_recipe(str(written(tmp_path, Recipe(name="own"), {"train": (x, y), "validation": (x[:8], y[:8])}, None)))
    splits = load(recipe.data, None, 0)
    assert np.array_equal(splits.validation.pixels, x[:8].astype(x.dtype if kind == "uint8" else "float32"))
    assert len(splits.train) + len(splits.test) == 40


BAD = {
    "no pair": ((torch.zeros(4, 1, 2, 2),), "is no pair of images and labels"),
    "three axes": ((torch.zeros(4, 2, 2), torch.zeros(4, dtype=torch.long)), r"give \[n, channels, height, width\] of uint8"),
    "integers": ((torch.zeros(4, 1, 2, 2, dtype=torch.long), torch.zeros(4, dtype=torch.long)), "images are int64"),
    "labels are floats": ((torch.zeros(4, 1, 2, 2), torch.zeros(4)), "labels are float32"),
    "fewer labels": ((torch.zeros(4, 1, 2, 2), torch.zeros(3, dtype=torch.long)), "for 4 images"),
    "beyond 1": ((2 * torch.ones(4, 1, 5, 6), torch.arange(4) % 2), "must lie between 0 and 1"),
    "no channel axis": ((torch.zeros(4, 3, 3, 3), torch.arange(4) % 2), "whose channel axis an archive cannot tell"),
    "unknown part": ({"train": tensors(), "holdout": tensors()}, "data has the parts train, holdout"),
}


@pytest.mark.parametrize(("data", "sentence"), BAD.values(), ids=BAD.keys())
def test_wrong_tensors_are_told_in_a_sentence(tmp_path: Path, data: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as told:
        vsparse.train(data=data, out=tmp_path / "a", settings=QUICK)  # type: ignore[arg-type]
    assert "\n" not in str(told.value)


class Net(nn.Module):
    """Defined where no worker process could import it from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.relu(self.norm(self.conv(x))).flatten(1))
        return found


@pytest.mark.skipif(not hasattr(vsparse.recipe_train, "OF_START"), reason="needs network.architecture = start")
def test_a_network_in_memory_trains_from_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = Net()
    result = vsparse.train(
        module,
        tensors(),
        out=tmp_path / "a",
        settings=[*QUICK, "property.epsilon=0.05", "train.sparse.granularity=element", "train.sparsity=0.1"],
    )
    assert module.training
    assert len(read_document(History, result.directory / "train" / HISTORY).epochs) == 2
    with pytest.raises(InputError, match="given twice"):
        vsparse.train(module, tensors(), module=module)


def test_a_network_with_frozen_parameters_is_refused(tmp_path: Path) -> None:
    module = Net()
    module.conv.weight.requires_grad_(False)
    with pytest.raises(InputError, match=r'the parameter "conv\.weight" is frozen'):
        vsparse.train(module, tensors(), out=tmp_path / "a")
