"""Forms that are refused before anything is trained: by a target, or for an operator; and that the way out works."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from vsparse.errors import InputError
from vsparse.graph import Graph
from vsparse.pipeline.build import build, resolve
from vsparse.pipeline.plan import make_plan

INTEGERS = 'export.precisions=["int8"]'


class Gated(nn.Module):
    """A pool that a convolution and a sigmoid read: the one wants integers, the other has no kernel for them."""

    def __init__(self, odd: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(64, 10)
        self.odd = odd

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.first(x)), 2)
        gate = torch.sigmoid(x) if self.odd else x
        return self.head((self.second(x) + gate).flatten(1))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("gated_net")
    module.odd = lambda input_shape, classes, width: Gated(True)  # type: ignore[attr-defined]  # a module made by hand
    module.plain = lambda input_shape, classes, width: Gated(False)  # type: ignore[attr-defined]  # as above
    monkeypatch.setitem(sys.modules, "gated_net", module)
    return "gated_net"


@pytest.mark.parametrize("target", ["local", "jetson-orin-nano"])
def test_what_int8_lacks_is_said_before_training(own: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(graph: Graph, contract: str, float_layers: tuple[str, ...]) -> None:
        raise InputError('node "odd" (Sigmoid) reads quantised values')

    with monkeypatch.context() as patched:
        patched.setattr("vsparse.stages.export.quantise.require_quantisable", lacks)
        words = r'cannot be deployed in int8: node "odd" \(Sigmoid\) reads quantised values; or leave "int8" out of export.precisions'
        with pytest.raises(InputError, match=words):
            build("digits", target=target, settings=[f'network.architecture="{own}:plain"', INTEGERS], out=tmp_path / "never")
    assert not (tmp_path / "never").exists()
    # A sigmoid beside a convolution reads floats.
    make_plan(*resolve("digits", target, [f'network.architecture="{own}:odd"', INTEGERS]), None, 1)


def test_a_form_that_a_target_does_not_honour_is_refused_with_those_that_it_does() -> None:
    with pytest.raises(InputError, match=r"jetson-orin-nano offers no bf16 \(it offers fp32, fp16, int8\); leave it out"):
        resolve("digits", "jetson-orin-nano", ['export.precisions=["bf16"]'])
    assert resolve("digits", "jetson-orin-nano", ['export.precisions=["fp16","int8"]'])[0].export.precisions == ("fp16", "int8")


@pytest.mark.parametrize("target", ["local", "jetson-orin-nano"])
def test_float_layers_that_there_are_not_are_said_before_training(target: str) -> None:
    words = r'cannot be deployed in int8: export\.float_layers names "logit", and the network has no such layer.*conv1, conv2, fc1, logits'
    recipe, chosen = resolve("digits", target, [INTEGERS, 'export.float_layers=["logit"]'])
    with pytest.raises(InputError, match=words):
        make_plan(recipe, chosen, None, 1)
    recipe, chosen = resolve("digits", target, [INTEGERS, 'export.float_layers=["logits", "first"]'])
    make_plan(recipe, chosen, None, 1)
