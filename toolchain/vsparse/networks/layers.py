"""Building blocks of the architectures: the input normalisation, scaled widths, residual and depthwise separable blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Maps inputs on the [0, 1] scale to (x + shift) · scale, with shift = −mean and scale = 1/std per channel.

    Buffers `shift` and `scale` are float32 [C, 1, 1], [C, 1] for samples [C, n]; they become AddConstant and MulConstant of the graph, so
    that the normalisation is inside every exported model.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], rank: int = 3) -> None:
        super().__init__()
        ones = (1,) * (rank - 1)  # what stands behind the channels
        self.register_buffer("shift", -torch.tensor(list(mean), dtype=torch.float64).to(torch.float32).reshape(-1, *ones))
        self.register_buffer("scale", (1 / torch.tensor(list(std), dtype=torch.float64)).to(torch.float32).reshape(-1, *ones))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised batch, same shape."""
        return (x + self.shift) * self.scale


class LearnedThresholds(nn.Module):
    """Learned thresholds: `count` images of every input value v, each relu(1 − relu(t − s·v)), 0 below an edge and 1 from the next on.

    [batch, C, H, W] to [batch, C·count, H, W] in two 1×1 convolutions of fan-in 1, whose weights and biases are trained. They begin
    with slope s = 20 about the centres j/(count + 1) of inputs on the [0, 1] scale. Two nested ReLUs and not a difference of two, as
    interval bounds are exact for the one and not for the other: where the slope is this steep, the box around a black or a white pixel
    is a point.
    """

    SLOPE = 20.0

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.rise = nn.Conv2d(channels, channels * count, 1, groups=channels)
        self.rise_relu = nn.ReLU()
        self.fall = nn.Conv2d(channels * count, channels * count, 1, groups=channels * count)
        self.fall_relu = nn.ReLU()
        centres = torch.arange(1, count + 1, dtype=torch.float32) / (count + 1)
        with torch.no_grad():
            self.rise.weight.fill_(-self.SLOPE)
            self.rise.bias.copy_((self.SLOPE * centres + 0.5).repeat(channels))  # type: ignore[union-attr]  # it has a bias
            self.fall.weight.fill_(-1.0)
            self.fall.bias.fill_(1.0)  # type: ignore[union-attr]  # it has a bias

    def forward(self, x: Tensor) -> Tensor:
        """Returns the clipped images, between 0 and 1 at first."""
        result: Tensor = self.fall_relu(self.fall(self.rise_relu(self.rise(x))))
        return result


class Residual(nn.Module):
    """ReLU(body(x) + shortcut(x)) with two 3×3 convolutions and batch norm; the shortcut is a 1×1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, 0, bias=False), nn.BatchNorm2d(channels_out))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, [batch, channels_out, H/stride, W/stride]."""
        inner = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        result: Tensor = self.relu2(inner + self.shortcut(x))
        return result


class PreActivation(nn.Module):
    """body(a) + shortcut with a = ReLU(norm(x)) (He et al., arXiv 1603.05027; Zagoruyko and Komodakis, arXiv 1605.07146, figure 1).

    The body is a 3×3 convolution, batch norm, ReLU and another 3×3 convolution. The shortcut is x itself, or a 1×1 convolution of a
    where the shape changes; nothing follows the addition: the next block normalises the sum.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, [batch, channels_out, H/stride, W/stride]."""
        a = self.relu1(self.norm1(x))
        inner = self.conv2(self.relu2(self.norm2(self.conv1(a))))
        result: Tensor = inner + (x if self.shortcut is None else self.shortcut(a))
        return result


class Separable(nn.Sequential):
    """A depthwise 3×3 convolution and a 1×1 convolution, each with batch norm and ReLU (Howard et al., arXiv 1704.04861, figure 3)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__(
            OrderedDict(
                depthwise=nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False),
                norm1=nn.BatchNorm2d(channels_in),
                relu1=nn.ReLU(),
                pointwise=nn.Conv2d(channels_in, channels_out, 1, bias=False),
                norm2=nn.BatchNorm2d(channels_out),
                relu2=nn.ReLU(),
            )
        )


def scaled(count: int, width: float) -> int:
    """Returns a channel or unit count times the width multiplier, rounded, at least 1."""
    return max(1, round(count * width))
