"""Convolutions by taps are the convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vsparse.bounds import shifted

GEOMETRIES = [
    ((3, 3), (1, 1), (1, 1), 1),
    ((3, 2), (2, 2), (1, 1), 1),
    ((3, 3), (2, 1), (2, 1), 1),
    ((1, 3), (3, 2), (1, 2), 1),
    ((1, 1), (2, 2), (1, 1), 1),
    ((1, 1), (1, 1), (1, 1), 1),
    ((3, 3), (2, 2), (1, 1), 6),
    ((3, 3), (1, 1), (1, 2), 6),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (6, 9)])
@pytest.mark.parametrize("padded", [0.0, 100.0])
def test_transposed(geometry: tuple[tuple[int, int], ...], size: tuple[int, int], padded: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shifted, "MOST_PADDED", padded)
    kernel, stride, dilation, groups = geometry
    draws = torch.Generator().manual_seed(1)
    channels = 6 if groups == 6 else 5
    weight = torch.randn(6, channels // groups, *kernel, dtype=torch.float64, generator=draws)  # type: ignore[misc, operator]
    a = torch.randn(4, 6, *size, dtype=torch.float64, generator=draws)
    full = F.conv_transpose2d(a, weight, None, stride, 0, 0, groups, dilation)  # type: ignore[arg-type]
    for more in (0, 1):  # rows and columns that no window reaches
        whole = tuple(full.shape[2 + i] + more * (stride[i] - 1) for i in (0, 1))
        wanted = F.pad(full, (0, whole[1] - full.shape[3], 0, whole[0] - full.shape[2]))
        found = shifted.transposed(weight, a, stride, dilation, groups, whole)  # type: ignore[arg-type]
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
def test_forward(pads: tuple[int, int, int, int], dilation: tuple[int, int]) -> None:
    draws = torch.Generator().manual_seed(2)
    weight, x = (torch.randn(*shape, dtype=torch.float64, generator=draws) for shape in ((5, 3, 3, 2), (2, 3, 7, 8)))
    top, left, bottom, right = pads
    wanted = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, 1, 0, dilation)
    torch.testing.assert_close(shifted.convolved(weight, x, pads, dilation), wanted, rtol=1e-13, atol=1e-13)
