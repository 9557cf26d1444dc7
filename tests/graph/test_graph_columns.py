"""Convolutions by columns: the direct ones and their adjoint within γ, for strides, pads, dilations and groups; exact where numbers are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from device_engines import Placed
from engine_nets import case
from simulated_device import simulated_device
from vsparse.bounds.convolution import Geometry, transposed_convolution
from vsparse.bounds.float64 import UNIT64, gamma
from vsparse.graph import AveragePool, Conv, columns

# Height, width, kernel, stride, (top, left, bottom, right), dilation, groups.
LAYOUTS = [
    (6, 7, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    (6, 7, (3, 3), (2, 1), (1, 0, 0, 2), (1, 1), 2),
    (7, 8, (2, 3), (1, 2), (0, 0, 0, 0), (2, 2), 1),
    (7, 9, (3, 2), (3, 3), (2, 1, 2, 1), (2, 1), 4),
    (5, 5, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    (5, 6, (5, 6), (1, 1), (0, 0, 0, 0), (1, 1), 2),
    (4, 4, (2, 2), (3, 3), (0, 0, 0, 0), (1, 1), 4),
]
CHANNELS, OUT = 4, 8


def drawn(layout: tuple, integers: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Geometry]:
    height, width, kernel, stride, pads, dilation, groups = layout
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> Tensor:
        if integers:
            return torch.from_numpy(rng.integers(-9, 10, shape).astype(np.float64))
        return torch.from_numpy(rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4, shape))

    x, weight, bias = draw(3, CHANNELS, height, width), draw(OUT, CHANNELS // groups, *kernel), draw(OUT)
    geometry = Geometry(stride, pads, dilation, groups)
    outputs = direct(geometry, weight, x, bias)
    return x, weight, bias, draw(*outputs.shape), geometry


def direct(geometry: Geometry, weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    top, left, bottom, right = geometry.pads
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, geometry.stride, 0, geometry.dilation, geometry.groups)


def by_columns(geometry: Geometry, weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    top, left, bottom, right = geometry.pads
    padded = F.pad(x, (left, right, top, bottom))
    return columns.convolution(padded, weight, bias, geometry.stride, (0, 0), geometry.dilation, geometry.groups)


def adjoint(geometry: Geometry, weight: Tensor, a: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The transpose by autograd, of the direct convolution."""
    x = torch.zeros(len(a), *shape, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad((direct(geometry, weight, x, None) * a).sum(), x)
    return found


def adjoint_by_columns(geometry: Geometry, weight: Tensor, a: Tensor, shape: tuple[int, ...]) -> Tensor:
    top, left, bottom, right = geometry.pads
    size = shape[1] + top + bottom, shape[2] + left + right
    full = columns.transposed_convolution(a, weight, geometry.stride, geometry.dilation, geometry.groups, size)
    return full[:, :, top : top + shape[1], left : left + shape[2]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("at_once", [2**28, 1], ids=["whole", "one by one"])
def test_columns_compute_the_direct_convolution_and_its_adjoint(layout: tuple, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On integers all sums are exact, so that the results must be equal; elsewhere each errs by γ of its terms at most."""
    monkeypatch.setattr(columns, "COLUMN_BYTES", at_once)
    x, weight, bias, a, geometry = drawn(layout, integers=True)
    shape = tuple(x.shape[1:])
    assert torch.equal(by_columns(geometry, weight, x, bias), direct(geometry, weight, x, bias))
    assert torch.equal(adjoint_by_columns(geometry, weight, a, shape), adjoint(geometry, weight, a, shape))
    x, weight, bias, a, geometry = drawn(layout, integers=False)
    size = direct(geometry, weight.abs(), x.abs(), bias.abs())
    apart = (by_columns(geometry, weight, x, bias) - direct(geometry, weight, x, bias)).abs()
    assert bool((apart <= 2 * gamma(weight[0].numel() + 2, UNIT64) * size).all())
    size = adjoint(geometry, weight.abs(), a.abs(), shape)
    apart = (adjoint_by_columns(geometry, weight, a, shape) - adjoint(geometry, weight, a, shape)).abs()
    fan_out = len(weight) // geometry.groups * weight[0, 0].numel()
    assert bool((apart <= 2 * gamma(fan_out + 2, UNIT64) * size).all())


def test_symmetric_padding_is_that_of_the_direct_convolution() -> None:
    x, weight, bias, _, _ = drawn(LAYOUTS[0], integers=True)
    for padding, stride in product(((1, 1), (2, 0)), ((1, 1), (2, 2))):
        expected = F.conv2d(x, weight, bias, stride, padding)
        assert torch.equal(columns.convolution(x, weight, bias, stride, padding, (1, 1), 1), expected)


def test_an_empty_batch_has_an_empty_result() -> None:
    x, weight, bias, a, geometry = drawn(LAYOUTS[0], integers=True)
    assert by_columns(geometry, weight, x[:0], bias).shape == (0, OUT, *a.shape[2:])
    assert adjoint_by_columns(geometry, weight, a[:0], tuple(x.shape[1:])).shape == (0, *x.shape[1:])


def test_gradients_pass_through_columns() -> None:
    x, weight, bias, a, geometry = drawn(LAYOUTS[1], integers=True)
    found = []
    for convolved in (direct, by_columns):
        given = [value.clone().requires_grad_() for value in (x, weight, bias)]
        found.append(torch.autograd.grad((convolved(geometry, given[1], given[0], given[2]) * a).sum(), given))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_float64_on_an_accelerator_goes_by_columns_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, a, geometry = drawn(LAYOUTS[1], integers=True)
    assert not columns.by_columns(x)

    cases = [case(kind, False) for kind in (Conv, AveragePool)]

    def library(*arguments: object, **named: object) -> None:
        raise AssertionError("a kernel of the library")

    with simulated_device():
        there = [value.to("cuda") for value in (x, weight, bias, a)]
        assert not columns.by_columns(there[0].float())
        for name in ("conv2d", "conv_transpose2d"):
            monkeypatch.setattr(F, name, library)
        found = transposed_convolution(geometry, there[1], there[3], tuple(x.shape[1:]))
        assert columns.by_columns(found)
        # Interval, backward pass, zonotope and execution of networks with convolutions and average pools.
        for one in cases:
            Placed(one, "cuda").refined()
