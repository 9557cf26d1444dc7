"""The named architectures, each a function (input_shape, classes, width) -> nn.Module, with the line that `vsparse models` shows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

from torch import nn

from vsparse.graph.core import Shape
from vsparse.networks.layers import LearnedThresholds, PreActivation, Residual, Separable, scaled

MakeNetwork = Callable[[Shape, int, float], nn.Module]
MakeBlock = Callable[[int, int, int], nn.Module]  # channels in, channels out, stride


@dataclass(frozen=True)
class Architecture:
    """A named architecture: its builder, one line for people, and the least height and width of its input."""

    build: MakeNetwork
    description: str
    least_side: int = 1


class _Stack:
    """Collects layers in order and keeps track of the activation's shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.layers: OrderedDict[str, nn.Module] = OrderedDict()

    def conv(self, channels: int, kernel: int, stride: int, padding: int, norm: bool = False) -> None:
        index = sum(name.startswith("conv") for name in self.layers) + 1
        side = [(size + 2 * padding - kernel) // stride + 1 for size in self.shape[1:]]
        self.layers[f"conv{index}"] = nn.Conv2d(self.shape[0], channels, kernel, stride, padding, bias=not norm)
        if norm:
            self.layers[f"norm{index}"] = nn.BatchNorm2d(channels)
        self.layers[f"relu{index}"] = nn.ReLU()
        self.shape = (channels, *side)

    def clip(self, count: int) -> None:
        self.layers["clip"] = LearnedThresholds(self.shape[0], count)
        self.shape = (self.shape[0] * count, *self.shape[1:])

    def block(self, kind: MakeBlock, channels: int, stride: int) -> None:
        index = sum(name.startswith("block") for name in self.layers) + 1
        self.layers[f"block{index}"] = kind(self.shape[0], channels, stride)
        self.shape = (channels, *((size - 1) // stride + 1 for size in self.shape[1:]))

    def halve(self) -> None:
        """Adds a 2×2 max pool, but none where the map is one pixel high or wide already."""
        if min(self.shape[1:]) > 1:
            index = sum(name.startswith("pool") for name in self.layers) + 1
            self.layers[f"pool{index}"] = nn.MaxPool2d(2)
            self.shape = (self.shape[0], *(size // 2 for size in self.shape[1:]))

    def average(self) -> None:
        """Adds the mean over the map, where it has more than one pixel."""
        if prod(self.shape[1:]) > 1:
            self.layers["average"] = nn.AdaptiveAvgPool2d(1)
            self.shape = (self.shape[0], 1, 1)

    def head(self, hidden: tuple[int, ...], classes: int) -> nn.Module:
        if len(self.shape) > 1:
            self.layers["flatten"] = nn.Flatten()
        units = prod(self.shape)
        for index, count in enumerate(hidden, 1):
            self.layers[f"fc{index}"] = nn.Linear(units, count)
            self.layers[f"fc{index}_relu"] = nn.ReLU()
            units = count
        self.layers["logits"] = nn.Linear(units, classes)
        return nn.Sequential(self.layers)


def cnn4(shape: Shape, classes: int, width: float, norm: bool = False, clips: int = 0) -> nn.Module:
    """Returns VeriCompress' four-layer network (Kaur et al., arXiv 2211.09945): two strided 4×4 convolutions, two linear layers.

    `clips` learned thresholds of every input value come first, whatever the width.
    """
    stack = _Stack(shape)
    if clips:
        stack.clip(clips)
    stack.conv(scaled(16, width), 4, 2, 1, norm)
    stack.conv(scaled(32, width), 4, 2, 1, norm)
    return stack.head((scaled(100, width),), classes)


def cnn5(shape: Shape, classes: int, width: float, norm: bool = True) -> nn.Module:
    """Returns a five-layer network: 3×3 convolutions 64, 64 and 128 (the last two strided), linear 512."""
    stack = _Stack(shape)
    stack.conv(scaled(64, width), 3, 1, 1, norm)
    stack.conv(scaled(64, width), 3, 2, 1, norm)
    stack.conv(scaled(128, width), 3, 2, 1, norm)
    return stack.head((scaled(512, width),), classes)


def cnn7(shape: Shape, classes: int, width: float, norm: bool = True) -> nn.Module:
    """Returns the seven-layer network of Shi et al. 2021: 3×3 convolutions 64, 64, 128 (strided), 128, 128, linear 512."""
    stack = _Stack(shape)
    for channels, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (128, 1)):
        stack.conv(scaled(channels, width), 3, stride, 1, norm)
    return stack.head((scaled(512, width),), classes)


def mlp(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns a fully connected network with two hidden layers of 100 units."""
    return _Stack(shape).head((scaled(100, width), scaled(100, width)), classes)


def cnn1d(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns a network for windows [C, 1, T]: three strided convolutions along time (kernels 7, 5 and 3), linear 64."""
    stack = _Stack(shape)
    for index, (channels, kernel) in enumerate(((16, 7), (32, 5), (32, 3)), 1):
        count = scaled(channels, width)
        stack.layers[f"conv{index}"] = nn.Conv2d(stack.shape[0], count, (1, kernel), (1, 2), (0, kernel // 2))
        stack.layers[f"relu{index}"] = nn.ReLU()
        stack.shape = (count, stack.shape[1], (stack.shape[2] - 1) // 2 + 1)
    return stack.head((scaled(64, width),), classes)


def lenet(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns LeNet-300-100, the fully connected network of the pruning literature."""
    return _Stack(shape).head((scaled(300, width), scaled(100, width)), classes)


def resnet_small(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns a small residual network with batch norm: a 3×3 stem of 16, residual blocks of 16 and 32 channels, linear 100."""
    stack = _Stack(shape)
    stack.conv(scaled(16, width), 3, 2 if min(shape[1:]) > 16 else 1, 1, norm=True)
    stack.block(Residual, scaled(16, width), 1)
    stack.block(Residual, scaled(32, width), 2)
    return stack.head((scaled(100, width),), classes)


def resnet18(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns ResNet-18 (He et al., arXiv 1512.03385) as it is used for small images: a 3×3 stem and no first pool.

    Four stages of two basic blocks with 64, 128, 256 and 512 channels, all but the first strided; mean over the map, linear.
    """
    stack = _Stack(shape)
    stack.conv(scaled(64, width), 3, 1, 1, norm=True)
    for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        stack.block(Residual, scaled(channels, width), stride)
        stack.block(Residual, scaled(channels, width), 1)
    stack.average()
    return stack.head((), classes)


def vgg16(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns VGG-16 (Simonyan and Zisserman, arXiv 1409.1556, configuration D) for small images: batch norm, one linear layer.

    Thirteen 3×3 convolutions, a 2×2 max pool after the 2nd, 4th, 7th, 10th and 13th, as long as the map has more than one pixel.
    """
    stack = _Stack(shape)
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            stack.conv(scaled(channels, width), 3, 1, 1, norm=True)
        stack.halve()
    stack.average()
    return stack.head((), classes)


def wrn(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns WRN-28-4 (Zagoruyko and Komodakis, arXiv 1605.07146) without dropout.

    A 3×3 stem of 16, three stages of four pre-activation blocks with 64, 128 and 256 channels, the last two strided; batch norm,
    ReLU, mean over the map, linear.
    """
    stack = _Stack(shape)
    stack.layers["stem"] = nn.Conv2d(shape[0], scaled(16, width), 3, 1, 1, bias=False)
    stack.shape = (scaled(16, width), *shape[1:])
    for channels, stride in ((64, 1), (128, 2), (256, 2)):
        for index in range(4):
            stack.block(PreActivation, scaled(channels, width), 1 if index else stride)
    stack.layers["norm"] = nn.BatchNorm2d(stack.shape[0])
    stack.layers["relu"] = nn.ReLU()
    stack.average()
    return stack.head((), classes)


def mobile(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns a small MobileNet (Howard et al., arXiv 1704.04861) for small images: a 3×3 stem of 32, five separable blocks.

    The blocks have 64, 128 (strided), 128, 256 (strided) and 256 channels; mean over the map, linear.
    """
    stack = _Stack(shape)
    stack.conv(scaled(32, width), 3, 1, 1, norm=True)
    for channels, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        stack.block(Separable, scaled(channels, width), stride)
    stack.average()
    return stack.head((), classes)


ARCHITECTURES: dict[str, Architecture] = {
    "cnn4": Architecture(cnn4, "two strided 4x4 convolutions (16, 32), linear 100; the smallest that certifies well", 4),
    "cnn4-bn": Architecture(partial(cnn4, norm=True), "cnn4 with batch norm", 4),
    "cnn4-clip": Architecture(partial(cnn4, clips=2), "cnn4 behind two learned thresholds of every pixel, for large radii", 4),
    "cnn5": Architecture(cnn5, "3x3 convolutions 64, 64 s2, 128 s2 with batch norm, linear 512", 4),
    "cnn5-plain": Architecture(partial(cnn5, norm=False), "cnn5 without batch norm", 4),
    "cnn7": Architecture(cnn7, "3x3 convolutions 64, 64, 128 s2, 128, 128 with batch norm, linear 512; the field's standard", 4),
    "cnn7-plain": Architecture(partial(cnn7, norm=False), "cnn7 without batch norm", 4),
    "mlp": Architecture(mlp, "two hidden linear layers of 100 units"),
    "cnn1d": Architecture(cnn1d, "for windows of a sensor: convolutions along time 16 k7 s2, 32 k5 s2, 32 k3 s2, linear 64"),
    "lenet-300-100": Architecture(lenet, "two hidden linear layers of 300 and 100 units"),
    "resnet-small": Architecture(resnet_small, "3x3 stem 16, residual blocks 16 and 32 s2 with batch norm, linear 100", 4),
    "resnet18": Architecture(resnet18, "ResNet-18 for small images: 3x3 stem 64, two residual blocks each of 64, 128, 256, 512", 4),
    "vgg16": Architecture(vgg16, "VGG-16 for small images: thirteen 3x3 convolutions 64 to 512 with batch norm, max pools", 4),
    "wrn-28-4": Architecture(wrn, "wide residual network 28-4: pre-activation blocks, four each of 64, 128, 256", 4),
    "mobile": Architecture(mobile, "depthwise separable 3x3 convolutions with batch norm: stem 32, blocks 64 to 256", 4),
}
