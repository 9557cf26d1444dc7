"""Verification on a CUDA device: what docs/numerics.md, section 5.4, says of its arithmetic, bounds and verdicts of the processor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal, localcontext
from fractions import Fraction
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from device_engines import CLOSE, ENGINES, KINDS, Placed, certified_on, same_claims
from engine_nets import case
from vsparse.bounds import paths
from vsparse.bounds.float64 import gamma64
from vsparse.bounds.operators.sigmoidal import FUNCTION_ERROR_64
from vsparse.compute_device import accelerated, to_host
from vsparse.graph import Node, columns
from vsparse.perturbation import PerturbationSet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and a torch that is built for it")
TERMS = (3, 64, 577, 4096)
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def no_silent_transfers() -> Iterator[None]:
    """Waits for the device outside of `reading_back` are errors."""
    torch.zeros(1, device=CUDA)
    with accelerated(CUDA):
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def spread(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers of both signs over many binades, whose sums cancel."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=shape) * 2.0 ** rng.integers(-20, 21, shape))


@pytest.mark.parametrize("terms", TERMS)
def test_products_of_matrices_err_by_no_more_than_they_are_charged(terms: int) -> None:
    a, b = spread((2, 24, terms), 0), spread((2, terms, 16), 1)
    found = to_host(torch.bmm(a.to(CUDA), b.to(CUDA)))
    worst = 0.0
    for k in range(2):
        for i in range(0, 24, 5):
            for j in range(0, 16, 5):
                pairs = [Fraction(x) * Fraction(y) for x, y in zip(a[k, i].tolist(), b[k, :, j].tolist(), strict=True)]
                size = sum(map(abs, pairs))
                worst = max(worst, float(abs(sum(pairs) - Fraction(float(found[k, i, j]))) / size))
    assert worst <= gamma64(terms, CUDA)
    # What is documented nowhere and charged all the same: that matrix units truncate. Rounding to nearest stays below a quarter of it.
    print(f"{terms} terms: {worst / gamma64(terms, CUDA):.4f} of the allowance")


@pytest.mark.parametrize("layout", [((3, 3), (1, 1), 1), ((3, 3), (2, 2), 2), ((5, 5), (1, 1), 1), ((1, 1), (1, 1), 4)], ids=str)
def test_convolutions_err_by_no_more_than_they_are_charged(layout: tuple[tuple[int, int], tuple[int, int], int]) -> None:
    kernel, stride, groups = layout
    x, weight = spread((2, 16, 12, 12), 2), spread((8, 16 // groups, *kernel), 3)
    found = to_host(columns.convolution(x.to(CUDA), weight.to(CUDA), None, stride, (1, 1), (1, 1), groups))
    exact = columns.convolution(x, weight, None, stride, (1, 1), (1, 1), groups)
    size = columns.convolution(x.abs(), weight.abs(), None, stride, (1, 1), (1, 1), groups)
    terms = weight[0].numel()
    assert bool(((found - exact).abs() <= (gamma64(terms, CUDA) + gamma64(terms, torch.device("cpu"))) * size).all())
    back = columns.transposed_convolution(found.to(CUDA), weight.to(CUDA), stride, (1, 1), groups, (14, 14))
    exact = columns.transposed_convolution(found, weight, stride, (1, 1), groups, (14, 14))
    size = columns.transposed_convolution(found.abs(), weight.abs(), stride, (1, 1), groups, (14, 14))
    fan_out = 8 // groups * weight[0, 0].numel()
    assert bool(((to_host(back) - exact).abs() <= (gamma64(fan_out, CUDA) + gamma64(fan_out, torch.device("cpu"))) * size).all())


def test_single_operations_are_rounded_to_nearest_and_subnormals_kept() -> None:
    a, b = spread((4096,), 4), spread((4096,), 5)
    for operation in (torch.add, torch.mul, torch.div, lambda x, y: torch.sqrt(x.abs())):
        assert torch.equal(to_host(operation(a.to(CUDA), b.to(CUDA))), operation(a, b))
    small = torch.tensor([2.0**-1074, -(2.0**-1060), 2.0**-1022], dtype=torch.float64)
    assert torch.equal(to_host(small.to(CUDA) * 0.5 + small.to(CUDA) * 0.5 + small.to(CUDA)), small * 0.5 + small * 0.5 + small)
    assert torch.equal(to_host(small.to(CUDA) + 0), small)
    assert torch.equal(to_host(torch.bmm(small.to(CUDA).view(1, 1, 3), torch.eye(3, dtype=torch.float64, device=CUDA)[None]))[0, 0], small)


def test_functions_err_by_far_less_than_they_are_charged() -> None:
    rng = np.random.default_rng(6)
    x = torch.from_numpy(np.concatenate([rng.normal(0, 3, 400), rng.normal(size=100) * 10.0 ** rng.integers(-12, 3, 100)]))
    found = {"tanh": to_host(torch.tanh(x.to(CUDA))), "sigmoid": to_host(torch.sigmoid(x.to(CUDA)))}
    logs = to_host(torch.log(x.abs().to(CUDA)))
    with localcontext() as context:
        context.prec = 60
        for i, value in enumerate(map(Decimal, x.tolist())):
            e = (-abs(value)).exp()
            sigmoid = 1 / (1 + e) if value >= 0 else e / (1 + e)
            tanh = (1 - e * e) / (1 + e * e) * (1 if value >= 0 else -1)
            for name, exact in (("sigmoid", sigmoid), ("tanh", tanh)):
                assert abs(Decimal(float(found[name][i])) - exact) <= Decimal(FUNCTION_ERROR_64) / 16, (name, value)
            exact = abs(value).ln()
            assert abs(Decimal(float(logs[i])) - exact) <= Decimal(2.0**-48) * max(1, abs(exact))


@pytest.mark.parametrize("tail", [False, True], ids=["middle", "tail"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_engine_finds_there_what_the_processor_finds(kind: type[Node], tail: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "WINDOWS", inf)
    one = case(kind, tail)
    for name, engine in ENGINES.items():
        expected, found = engine(Placed(one, "cpu")), engine(Placed(one, "cuda"))
        for here, there in zip(expected, found, strict=True):
            if isinstance(here, Tensor):
                assert isinstance(there, Tensor)
                torch.testing.assert_close(to_host(there), here, rtol=CLOSE, atol=CLOSE, msg=name)
            else:
                assert here == there, name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_cascade_finds_there_what_it_finds_on_the_processor(kind: type[Node], tmp_path: Path) -> None:
    one = case(kind, False)
    for epsilon in ("0.001", "0.03"):
        asked = PerturbationSet(epsilon=epsilon)
        here, there = (certified_on(device, one, tmp_path, asked) for device in ("cpu", "cuda"))
        same_claims(here, there)
        assert there.device is not None
        assert there.device.startswith("cuda (")
        assert there.digest() == certified_on("cuda", one, tmp_path, asked).digest(), "a second run gives the same bits"


def test_emulated_products_are_refused() -> None:
    """In a process of its own, as cuBLAS reads the variable when it starts."""
    code = (
        "import torch\nfrom vsparse.compute_device import accelerated\nwith accelerated(torch.device('cuda', 0)):\n    print('computed')\n"
    )
    environment = {**os.environ, "CUBLAS_EMULATE_DOUBLE_PRECISION": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "CUBLAS_EMULATE_DOUBLE_PRECISION is set" in found.stderr
    assert "computed" not in found.stdout
