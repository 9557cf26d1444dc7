"""The named architectures, each a function (input_shape, classes, width) -> nn.Module, with the line that `vsparse models` shows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from torch import nn

from vsparse.networks.layers import Residual, scaled

Shape = tuple[int, ...]
Builder = Callable[[Shape, int, float], nn.Module]


@dataclass(frozen=True)
class Architecture:
    """A named architecture: its builder, one line for people, and the least height and width of its input."""

    build: Builder
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

    def residual(self, channels: int, stride: int) -> None:
        index = sum(name.startswith("block") for name in self.layers) + 1
        self.layers[f"block{index}"] = Residual(self.shape[0], channels, stride)
        self.shape = (channels, *((size - 1) // stride + 1 for size in self.shape[1:]))

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


def cnn4(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns VeriCompress' four-layer network (Kaur et al., arXiv 2211.09945): two strided 4×4 convolutions, two linear layers."""
    stack = _Stack(shape)
    stack.conv(scaled(16, width), 4, 2, 1)
    stack.conv(scaled(32, width), 4, 2, 1)
    return stack.head((scaled(100, width),), classes)


def cnn5(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns a five-layer network with batch norm: 3×3 convolutions 64, 64 and 128 (the last two strided), linear 512."""
    stack = _Stack(shape)
    stack.conv(scaled(64, width), 3, 1, 1, norm=True)
    stack.conv(scaled(64, width), 3, 2, 1, norm=True)
    stack.conv(scaled(128, width), 3, 2, 1, norm=True)
    return stack.head((scaled(512, width),), classes)


def cnn7(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns the seven-layer network of Shi et al. 2021 with batch norm: 3×3 convolutions 64, 64, 128 (strided), 128, 128, linear 512."""
    stack = _Stack(shape)
    for channels, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (128, 1)):
        stack.conv(scaled(channels, width), 3, stride, 1, norm=True)
    return stack.head((scaled(512, width),), classes)


def mlp(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns a fully connected network with two hidden layers of 100 units."""
    return _Stack(shape).head((scaled(100, width), scaled(100, width)), classes)


def lenet(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns LeNet-300-100, the fully connected network of the pruning literature."""
    return _Stack(shape).head((scaled(300, width), scaled(100, width)), classes)


def resnet_small(shape: Shape, classes: int, width: float) -> nn.Module:
    """Returns a small residual network with batch norm: a 3×3 stem of 16, residual blocks of 16 and 32 channels, linear 100."""
    stack = _Stack(shape)
    stack.conv(scaled(16, width), 3, 2 if min(shape[1:]) > 16 else 1, 1, norm=True)
    stack.residual(scaled(16, width), 1)
    stack.residual(scaled(32, width), 2)
    return stack.head((scaled(100, width),), classes)


ARCHITECTURES: dict[str, Architecture] = {
    "cnn4": Architecture(cnn4, "two strided 4x4 convolutions (16, 32), linear 100; the smallest that certifies well", 4),
    "cnn5": Architecture(cnn5, "3x3 convolutions 64, 64 s2, 128 s2 with batch norm, linear 512", 4),
    "cnn7": Architecture(cnn7, "3x3 convolutions 64, 64, 128 s2, 128, 128 with batch norm, linear 512; the field's standard", 4),
    "mlp": Architecture(mlp, "two hidden linear layers of 100 units"),
    "lenet-300-100": Architecture(lenet, "two hidden linear layers of 300 and 100 units"),
    "resnet-small": Architecture(resnet_small, "3x3 stem 16, residual blocks 16 and 32 s2 with batch norm, linear 100", 4),
}
