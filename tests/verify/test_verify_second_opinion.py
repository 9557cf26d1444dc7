"""A second opinion advises: where there is none, that is told, early where possible, and nothing fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vsparse import second_opinion
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import InputError, UnavailableError
from vsparse.graph import Graph, from_torch, to_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.recipe_train import Train
from vsparse.stages.verify.cross_check import cross_check, no_comparison, operators_without

FP32 = CONTRACTS["fp32"]
needs_second_opinion = pytest.mark.skipif(not second_opinion.is_available(), reason="auto_LiRPA is not installed")


def network(*layers: nn.Module) -> Graph:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Flatten())
    width = int(body(torch.zeros(1, 1, 8, 8)).shape[1])
    return from_torch(nn.Sequential(body, nn.Linear(width, 3)).eval(), (1, 8, 8))


def data() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(rng.random((3, 1, 8, 8), dtype=np.float32), 1.0, np.array([0, 1, 2], dtype=np.int64), ("a", "b", "c"), None)


def opinion(graph: Graph, folder: Path, epsilon: str = "0.05") -> Any:
    path = folder / "model.onnx"
    path.write_bytes(to_onnx(graph).SerializeToString())
    return cross_check(path, data(), PerturbationSet(epsilon=epsilon), FP32, 3)


def missing(*_: object, **__: object) -> None:
    raise UnavailableError("auto_LiRPA, the second opinion on bounds, is not installed")


OTHER_LINES = {
    "two leaky ReLUs": (nn.LeakyReLU(0.1), nn.Conv2d(4, 4, 3), nn.LeakyReLU(0.1)),
    "ReLU6": (nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.ReLU()),
    "Hardtanh": (nn.Hardtanh(), nn.Conv2d(4, 4, 3), nn.ReLU()),
    "sigmoid": (nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Sigmoid()),
    "padded max pool": (nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    "overlapping max pool": (nn.ReLU(), nn.MaxPool2d(3, 2)),
}


@pytest.mark.parametrize("layers", OTHER_LINES.values(), ids=OTHER_LINES)
def test_operators_that_are_relaxed_by_other_lines_are_not_compared(layers: tuple[nn.Module, ...], tmp_path: Path) -> None:
    result = opinion(network(*layers), tmp_path)
    assert "other lines" in result.unanswered
    assert (result.rows, result.passed) == (0, False)
    stated = result.record()
    assert (stated.passed, stated.bounds_compared, stated.largest_excess) == (None, 0, None)
    assert stated.reason == result.unanswered


@needs_second_opinion
def test_the_same_relaxations_are_compared(tmp_path: Path) -> None:
    result = opinion(network(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)), tmp_path)
    assert (result.unanswered, result.passed, result.rows) == ("", True, 6)
    assert operators_without() == []


class Moved(nn.Module):
    """A move of the channels or their places between two layers."""

    def __init__(self, move: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.move = move

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.move(x)


MISREAD = {
    "an index that is repeated": lambda x: x[:, [3, 0, 0, 2, 1, 1]],
    "a row that is repeated": lambda x: x[:, :, [-1, 0, -1]],
    "padding that is not zero": lambda x: nn.functional.pad(x, (1, 1, 1, 1), value=0.5),
}


@needs_second_opinion
@pytest.mark.parametrize("move", MISREAD.values(), ids=MISREAD)
def test_a_network_that_it_computes_wrongly_is_not_compared(move: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path) -> None:
    graph = network(nn.ReLU(), Moved(move), nn.ReLU())
    result = opinion(graph, tmp_path)
    # 0.3 overwrites where it must add, and drops the number that is padded with; what bounds them rightly is compared.
    assert result.record().passed is None or result.passed, result.reason
    if second_opinion.version() == "0.3":
        assert "computes another network" in result.unanswered
    assert no_comparison(graph) == result.unanswered


@needs_second_opinion
def test_indices_that_stand_once_are_compared(tmp_path: Path) -> None:
    result = opinion(network(nn.ReLU(), Moved(lambda x: x[:, [3, 0, 2]]), nn.ReLU()), tmp_path)
    assert (result.unanswered, result.passed, result.rows) == ("", True, 6)


@pytest.mark.parametrize("failure", [missing, lambda *_, **__: torch.full((1, 1), torch.nan)])
def test_a_tool_that_is_absent_or_computes_nonsense_gives_no_opinion(
    failure: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_opinion, "crown_lower", failure)
    result = opinion(network(nn.ReLU()), tmp_path)
    assert result.unanswered
    assert result.record().passed is None
    assert no_comparison(network(nn.ReLU())) == result.unanswered


@needs_second_opinion
def test_a_tool_that_fails_later_than_at_the_trial_gives_no_opinion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def later(*arguments: Any) -> Any:
        if arguments[-2] == "CROWN":
            raise AssertionError("patches")
        return theirs(*arguments)

    theirs = second_opinion._bound
    graph = network(nn.ReLU())
    monkeypatch.setattr(second_opinion, "_bound", later)
    result = opinion(graph, tmp_path)
    assert "fails on a network of two layers" in result.unanswered


@needs_second_opinion
def test_training_that_needs_it_is_refused_at_once_with_whose_fault_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from vsparse.stages.train.objectives.crown_ibp_lirpa import LirpaCrownObjective

    def begin(graph: Graph) -> None:
        LirpaCrownObjective(Train(objective="crown-ibp", engine="auto_lirpa"), graph, graph.tensors())

    begin(network(nn.ReLU()))
    with pytest.raises(InputError, match=r"cannot fuse the loss into this network.*use train.engine = .vsparse"):
        begin(network(nn.ReLU(), nn.MaxPool2d(3, 2, 1)))

    with pytest.raises(InputError, match=r"computes another network than this one.*use train.engine = .vsparse"):
        begin(network(nn.ReLU(), Moved(MISREAD["an index that is repeated"])))

    def fails(*_: object) -> None:
        raise TypeError("unexpected argument")

    monkeypatch.setattr(second_opinion.FusedLoss, "upper", fails)
    with pytest.raises(InputError, match=r"cannot fuse a loss into a network.*use train.engine = .vsparse") as caught:
        begin(network(nn.ReLU()))
    assert "this network" not in str(caught.value)
