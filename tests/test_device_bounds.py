"""Bounds and searches on a simulated accelerator: no silent transfer, no mixed devices, and what the processor finds."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import pytest
import torch
from torch import Tensor

from device_engines import CHEAP, CLOSE, ENGINES, KINDS, Placed, shorten
from engine_nets import case
from simulated_device import simulated_device
from vsparse.bounds import paths
from vsparse.compute_device import to_host
from vsparse.graph import Gather, MaxPool, Node, Sigmoid

SOME: tuple[type[Node], ...] = (MaxPool, Sigmoid)
# Bounds of each node type in the middle of a network, searches of a few; `slow`: everything of everything.
QUICK = [(kind, False, CHEAP) for kind in KINDS] + [(kind, False, set(ENGINES) - CHEAP) for kind in SOME] + [(Gather, True, CHEAP)]
WHOLE = [(kind, tail, set(ENGINES)) for kind in KINDS for tail in (False, True)]


@pytest.mark.parametrize(
    ("kind", "tail", "names"),
    [*QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in WHOLE)],
)
def test_every_engine_finds_there_what_the_processor_finds(
    kind: type[Node], tail: bool, names: Iterable[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = case(kind, tail)
    monkeypatch.setattr(paths, "WINDOWS", inf)
    shorten(monkeypatch)
    for name in ENGINES:
        if name not in names:
            continue
        expected = ENGINES[name](Placed(one, "cpu"))
        with simulated_device():
            found = [to_host(value) if isinstance(value, Tensor) else value for value in ENGINES[name](Placed(one, "cuda"))]
        assert len(found) == len(expected) > 0 or name == "windows", name
        for here, there in zip(expected, found, strict=True):
            if isinstance(here, Tensor):
                assert type(there) is Tensor, name
                torch.testing.assert_close(there, here, rtol=CLOSE, atol=CLOSE, msg=name)
            else:
                assert here == there, name
