"""Convolutions of fan-in 1 as products: the same values and gradients as the convolution, and no other convolution is taken for one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vsparse.graph.ir import Conv
from vsparse.graph.scaling import is_scaling, scaling, scaling_gradients


def node(**settings: object) -> Conv:
    return Conv(name="c", inputs=("x",), shape=(1, 1, 1), weight="w", bias=None, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "outputs"), [(1, 1), (1, 3), (3, 3), (3, 6)])
def test_values_and_gradients_are_those_of_the_convolution(channels: int, outputs: int) -> None:
    draws = torch.Generator().manual_seed(channels + outputs)
    x = torch.randn(2, channels, 4, 5, generator=draws, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(outputs, 1, 1, 1, generator=draws, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(outputs, generator=draws, dtype=torch.float64)
    assert is_scaling(node(groups=channels), weight)
    wanted = F.conv2d(x, weight, bias, groups=channels)
    torch.testing.assert_close(scaling(weight, x, bias), wanted)
    torch.testing.assert_close(scaling(weight, x), F.conv2d(x, weight, groups=channels))
    torch.testing.assert_close(scaling(weight, x[0], bias), F.conv2d(x[0], weight, bias, groups=channels))  # without a batch, too
    grad = torch.randn(wanted.shape, generator=draws, dtype=torch.float64)
    expected = torch.autograd.grad(wanted, (x, weight), grad)
    found = scaling_gradients(weight, x, grad, (True, True))
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)
    assert scaling_gradients(weight, x, grad, (False, False)) == (None, None)


def test_other_convolutions_are_none() -> None:
    one = torch.ones(2, 1, 1, 1)
    assert not is_scaling(node(), torch.ones(2, 2, 1, 1))  # two inputs
    assert not is_scaling(node(groups=2), torch.ones(2, 1, 1, 3))
    assert not is_scaling(node(groups=2, stride=(2, 1)), one)
    assert not is_scaling(node(groups=2, pads=(0, 0, 1, 0)), one)
