"""What a module says of its own training is honoured or refused: frozen parameters, tied weights, momenta, hooks."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from blob_data import blobs
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from vsparse.data import Splits
from vsparse.errors import InputError
from vsparse.graph import from_torch
from vsparse.recipe import Recipe
from vsparse.stages.export import check_runtime_graph, write_onnx
from vsparse.stages.train import TrainResult, train
from vsparse.stages.train.task import untrained
from vsparse.stages.train.trainer import Trainer

SPLITS = Splits(blobs(90, 0), blobs(30, 1), blobs(30, 2), "blobs", "0" * 64)


class Net(nn.Module):
    """Two convolutions of one shape with batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Linear(16, 3)
        self.factor: nn.Parameter | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.two(torch.relu(self.one(x))))
        return self.head(torch.relu(x if self.factor is None else x * self.factor).flatten(1))


def recipe(monkeypatch: pytest.MonkeyPatch, change: Callable[[Net], object], **settings: object) -> Recipe:
    """The recipe of a network that `change` has worked on."""

    def make(*_: object) -> nn.Module:
        net = Net()
        change(net)
        return net

    module = types.ModuleType("own_training")
    module.make = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_training", module)
    train_settings = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05, "sparsity": 0, "weight_decay": 0.01, **settings}
    return Recipe.model_validate(
        {"name": "t", "network": {"architecture": "own_training:make"}, "property": {"epsilon": "0.01"}, "train": train_settings}
    )


def trained(monkeypatch: pytest.MonkeyPatch, directory: Path, change: Callable[[Net], object], **settings: object) -> TrainResult:
    return train(recipe(monkeypatch, change, **settings), SPLITS, directory, sparse=False)


def freeze(net: Net) -> None:
    """Freezes the first layer at values that no initialisation draws."""
    net.one.requires_grad_(False)
    net.one.weight.fill_(0.25)
    net.one.bias.fill_(0.125)


@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}, {"optimizer": "muon"}, {"average": "swa", "average_from": 0.0, "l1": 1e-3}])
def test_frozen_parameters_stay_bit_by_bit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, object]) -> None:
    found = trained(monkeypatch, tmp_path, freeze, **settings).graph.params
    assert np.array_equal(found["one.weight"], np.full((1, 1, 3, 3), 0.25, np.float32))
    assert found["one.bias"].tolist() == [0.125]
    again = trained(monkeypatch, tmp_path / "free", lambda net: None, **settings).graph.params
    assert not np.array_equal(again["one.weight"], found["one.weight"])  # what is not frozen is drawn and trained


def test_a_frozen_training_goes_on_from_its_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = trained(monkeypatch, tmp_path / "whole", freeze)
    spec = recipe(monkeypatch, freeze)
    first = Trainer(spec, SPLITS, tmp_path / "parts", sparse=False)
    first.run_epoch()
    first.save()
    rest = train(spec, SPLITS, tmp_path / "parts", sparse=False)
    assert all(np.array_equal(rest.graph.params[name], value) for name, value in whole.graph.params.items())


def tie(net: Net) -> None:
    net.two.weight = net.one.weight


def tie_by_memory(net: Net) -> None:
    net.two.weight = nn.Parameter(net.one.weight.data)


def use_twice(net: Net) -> None:
    net.two = net.one


def scale(net: Net) -> None:
    net.factor = nn.Parameter(torch.ones(1, 1, 1))


def average_for_ever(net: Net) -> None:
    net.norm.momentum = None


def weight_norm(net: Net) -> None:
    parametrizations.weight_norm(net.two)


REFUSED: dict[str, tuple[Callable[[Net], object], str]] = {
    "tied": (tie, r'"two.weight" and "one.weight" are one tensor.*untie them with two.weight = torch.nn.Parameter\(two.weight'),
    "tied by memory": (tie_by_memory, '"two.weight" and "one.weight" are one tensor'),
    "one layer twice": (use_twice, 'layer "one" .Conv2d. is used twice; make two layers'),
    "shared entries": (lambda net: setattr(net.one, "weight", nn.Parameter(torch.ones(1).expand(1, 1, 3, 3))), "share memory .expand."),
    "trainable factor": (scale, r'the parameter "factor" is added or multiplied.*requires_grad_\(False\).*nn.BatchNorm2d'),
    "gradient hook": (lambda net: net.one.weight.register_hook(lambda g: g * 0), '"one.weight" has a hook on its gradient'),
    "backward hook": (lambda net: net.two.register_full_backward_hook(lambda *a: None), r'layer "two" \(Conv2d\) has a backward hook'),
    "endless average": (average_for_ever, 'layer "norm" .BatchNorm2d. has momentum=None'),
    "weight norm": (weight_norm, "parametrisation .weight norm.*remove_parametrizations"),
    "half precision": (lambda net: net.half(), r'"one.*type torch.float16; float32 is wanted: call .float\(\)'),
    "double precision": (lambda net: net.head.double(), r'layer "head" \(Linear\).*type torch.float64'),
    "all frozen": (lambda net: net.requires_grad_(False), "so is every other"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name_before_training(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    change, pattern = REFUSED[name]
    with pytest.raises(InputError, match=pattern):
        untrained(recipe(monkeypatch, change), SPLITS)


def untie(net: Net) -> None:
    tie(net)
    net.two.weight = nn.Parameter(net.two.weight.detach().clone())


def keep(net: Net) -> None:
    scale(net)
    net.factor.requires_grad_(False)


def plain_again(net: Net) -> None:
    weight_norm(net)
    parametrize.remove_parametrizations(net.two, "weight")


@pytest.mark.parametrize(
    "change", [untie, keep, plain_again, lambda net: net.half().float(), lambda net: setattr(net, "head", nn.LazyLinear(3))]
)
def test_the_way_out_works(monkeypatch: pytest.MonkeyPatch, change: Callable[[Net], object]) -> None:
    graph, own = untrained(recipe(monkeypatch, change), SPLITS)
    assert graph.shape_of(graph.output) == (3,)
    assert own.as_dict() == {}


def test_a_frozen_layer_in_a_sparse_network_is_refused_and_dense_is_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r'"one.bias" is frozen.*set train.sparsity = 0'):
        untrained(recipe(monkeypatch, freeze, sparsity=0.5), SPLITS)
    _, own = untrained(recipe(monkeypatch, freeze), SPLITS)
    assert own.as_dict() == {"frozen": ["one.bias", "one.weight"]}
    with pytest.raises(InputError, match=r'set train.engine = "vsparse"'):
        untrained(recipe(monkeypatch, freeze, engine="auto_lirpa", objective="crown-ibp"), SPLITS)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_momentum_of_batch_norm_is_the_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, momentum: float) -> None:
    def change(net: Net) -> None:
        net.norm.momentum = momentum

    def statistics(directory: str) -> torch.Tensor:
        trainer = Trainer(recipe(monkeypatch, change), SPLITS, tmp_path / directory, sparse=False)
        trainer.run_epoch()
        return trainer.state.params["norm.running_var"]

    if momentum == 0:
        assert statistics("still").item() == 1.0
    else:
        slow = Trainer(recipe(monkeypatch, lambda net: None), SPLITS, tmp_path / "usual", sparse=False)
        slow.run_epoch()
        first = statistics("fast").item()
        assert abs(first - 1) > abs(slow.state.params["norm.running_var"].item() - 1)


def test_reading_a_tied_module_is_refused_outside_of_training_too() -> None:
    net = Net()
    tie(net)
    with pytest.raises(InputError, match="are one tensor"):
        from_torch(net, (1, 4, 4))


class Curved(nn.Module):
    """A hidden layer behind a curve."""

    def __init__(self, curve: nn.Module) -> None:
        super().__init__()
        self.hidden, self.curve, self.head = nn.Linear(16, 8), curve, nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.curve(self.hidden(x.flatten(1))))


class Moved(nn.Module):
    """A convolution whose channels are cut in two and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = torch.chunk(torch.relu(1 - self.hidden(x)), 2, 1)
        return self.head(torch.cat([two, one], 1).flatten(1))


class Scaled(nn.Module):
    """Factors and summands behind a convolution and a linear layer, which runtimes fold into these."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 3)
        self.register_buffer("factor", torch.linspace(0.5, 1.5, 4).reshape(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x) * self.factor / 3 + 0.1)
        return self.head(x.flatten(1)) * 0.5 - 0.25


@pytest.mark.parametrize("sparse", [False, True])
def test_constants_behind_a_layer_are_folded_before_a_runtime_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sparse: bool) -> None:
    settings = {"sparsity": 0.5, "sparse": {"granularity": "element", "allocation": "uniform"}} if sparse else {}
    spec = recipe(monkeypatch, lambda net: None, **settings)
    monkeypatch.setattr(sys.modules["own_training"], "make", lambda *_: Scaled())
    found = train(spec, SPLITS, tmp_path / "a", sparse=sparse)
    assert [type(node).__name__ for node in found.graph.nodes] == ["Conv", "Relu", "Reshape", "Gemm"]
    write_onnx(found.graph, tmp_path / "model.onnx", 17, {})
    check_runtime_graph(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Moved(), 'they pass through Add, Slice, Concat ."sub[_0-9]*".,'),
        (Curved(nn.Sigmoid()), 'they pass through Sigmoid ."curve"., through which units are not followed; with ReLU'),
        (Curved(nn.Tanh()), "they pass through Tanh"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), "it has no hidden layer"),
    ],
)
def test_a_network_without_removable_units_says_why_and_the_ways_out_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: nn.Module, why: str
) -> None:
    def of(**settings: object) -> Recipe:
        spec = recipe(monkeypatch, lambda net: None, **settings)
        monkeypatch.setattr(sys.modules["own_training"], "make", lambda *_: module)
        return spec

    with pytest.raises(
        InputError, match=rf'no hidden units that can be removed: {why}.*set train.sparse.granularity = "element".*sparsity = 0'
    ):
        train(of(sparsity=0.5), SPLITS, tmp_path / "a", sparse=True)
    found = train(of(sparsity=0.5, sparse={"granularity": "element", "allocation": "uniform"}), SPLITS, tmp_path / "b", sparse=True)
    assert not all(mask.all() for mask in found.masks.values())
    train(of(sparsity=0), SPLITS, tmp_path / "c", sparse=False)
