"""Random convolutional networks of every topology that a fast path of the bounds may meet, on maps up to 32 × 32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from graph_builder import CLASSES, ELEMENTWISE, Builder, _pool, clip, concat, flatten, gather, pad, slices, transpose

from vsparse.graph.ir import (
    Add,
    AddConstant,
    AveragePool,
    BatchNorm,
    Conv,
    Gemm,
    Graph,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Relu,
    Sub,
)

Block = Callable[["Maps"], None]
# Sides of the maps and how often they are drawn: most are small, so that whole maps can be compared too.
SIDES = ((5, 9, 0.62), (9, 15, 0.24), (15, 24, 0.09), (24, 33, 0.05))
MOST_ELEMENTS = 2100


class Maps(Builder):
    """A builder that starts with a map; `norms` puts a batch normalisation behind some convolutions, as training graphs have them."""

    def __init__(self, rng: np.random.Generator, norms: bool = False, side: int | None = None) -> None:
        super().__init__(rng, "fp32", str(rng.choice(["normal", "normal", "sparse", "wide"])))
        self.norms, self.most = norms, MOST_ELEMENTS
        low, high, _ = SIDES[int(rng.choice(len(SIDES), p=[share for _, _, share in SIDES]))]
        h, w = (side, side) if side else (int(rng.integers(low, high)), int(rng.integers(low, high)))
        self.shape = self.input_shape = self.shapes["x"] = (int(rng.integers(1, 3)), h, w)

    def conv(self, out: int, kernel: tuple[int, int], groups: int = 1, pads: tuple[int, ...] | None = None, plain: bool = False) -> bool:
        """Adds a convolution with random stride, dilation and padding (`plain`: those that keep the map), where it fits; says if it did."""
        rng, (channels, *size) = self.rng, self.shape
        stride = dilation = (1, 1)
        if plain:
            pads = tuple((k - 1) // 2 for k in kernel) + tuple(k // 2 for k in kernel)
        else:
            if rng.random() < 0.35:
                stride = (int(rng.integers(1, 3)), int(rng.integers(1, 4)))
            if rng.random() < 0.2:
                dilation = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
            if pads is None:
                most = tuple(min(3, d * (k - 1)) for d, k in zip(dilation, kernel, strict=True)) * 2
                pads = tuple(int(rng.integers(0, m + 1 + (rng.random() < 0.1))) for m in most)
        h, w = ((size[i] + pads[i] + pads[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
        if h < 1 or w < 1 or out * h * w > self.most:
            return False
        weight = self.keep(self.weight(out, channels // groups, *kernel))
        bias = self.bias(out)
        self.push(Conv, (out, h, w), weight=weight, bias=bias, stride=stride, pads=pads, dilation=dilation, groups=groups)
        if self.norms and rng.random() < 0.5:
            names = [
                self.keep(value) for value in (rng.normal(size=out), rng.normal(size=out), rng.normal(size=out), rng.random(out) + 0.3)
            ]
            self.push(BatchNorm, self.shape, scale=names[0], bias=names[1], mean=names[2], variance=names[3], epsilon=1e-5)
        return True

    def kernel(self) -> tuple[int, int]:
        """Returns a random kernel that the map has room for."""
        sizes = self.rng.choice([1, 2, 3, 3, 4, 5], 2)
        return min(int(sizes[0]), self.shape[1]), min(int(sizes[1]), self.shape[2])

    def channels(self) -> int:
        return int(self.rng.integers(1, 4))

    def relu(self, chance: float = 1.0) -> None:
        if self.rng.random() < chance:
            self.push(Relu, self.shape)


def conv_relu(m: Maps) -> None:
    m.conv(m.channels(), m.kernel())
    m.relu()


def conv_conv(m: Maps) -> None:
    """Convolutions that read each other: the padding of the second lies around what the first makes."""
    for _ in range(int(m.rng.integers(2, 4))):
        m.conv(m.channels(), m.kernel())
    m.relu(0.9)


def separable(m: Maps) -> None:
    """Depthwise, then pointwise, a ReLU between them or not."""
    m.conv(m.shape[0] * int(m.rng.integers(1, 3)), m.kernel(), groups=m.shape[0])
    m.relu(0.3)
    m.conv(m.channels(), (1, 1), pads=(0, 0, 0, 0) if m.rng.random() < 0.7 else (1, 0, 0, 1))
    m.relu(0.9)


def bottleneck(m: Maps) -> None:
    """Pointwise expansion, depthwise, linear projection, with a residual or not."""
    skip, shape = m.last, m.shape
    m.conv(shape[0] * 2, (1, 1), plain=True)
    m.relu(0.4)
    m.conv(m.shape[0], (3, 3), groups=m.shape[0], plain=m.rng.random() < 0.7)
    m.relu(0.4)
    m.conv(shape[0], (1, 1), plain=True)
    if m.shape == shape and m.rng.random() < 0.7:
        m.push(Add, shape, (m.last, skip))
    m.relu(0.5)


def residual(m: Maps) -> None:
    """Conv → Add → Conv, the branch with one convolution or two."""
    skip, shape = m.last, m.shape
    for _ in range(int(m.rng.integers(1, 3))):
        m.conv(shape[0], (3, 3) if m.rng.random() < 0.7 else (1, 1), plain=True)
        m.relu(0.3)
    if m.shape == shape and m.last != skip:
        pair = (m.last, skip) if m.rng.random() < 0.5 else (skip, m.last)
        m.push(Add if m.rng.random() < 0.8 else Sub, shape, pair)
    m.relu(0.5)
    m.conv(m.channels(), m.kernel())
    m.relu(0.8)


def always_active(m: Maps) -> None:
    """A ReLU that never cuts, and one that always does: what stable units are."""
    m.conv(m.channels(), m.kernel())
    shift = np.where(m.rng.random((m.shape[0], 1, 1)) < 0.7, 30.0, -30.0)
    m.push(AddConstant, m.shape, constant=m.keep(shift))
    m.relu()


def elementwise(m: Maps) -> None:
    ELEMENTWISE[int(m.rng.integers(1, len(ELEMENTWISE)))](m)


def pool(m: Maps) -> None:
    _pool(m, MaxPool if m.rng.random() < 0.5 else AveragePool)


def other_curve(m: Maps) -> None:
    m.conv(m.channels(), m.kernel())
    if m.rng.random() < 0.5:
        clip(m)
    else:
        m.push(LeakyRelu, m.shape, slope=0.125)


def moves(m: Maps) -> None:
    """Data that moves; a map that has become too narrow for more is left alone."""
    if min(m.shape[1:]) >= 4:
        (transpose, concat, slices, pad, gather)[int(m.rng.integers(5))](m)


BLOCKS: tuple[tuple[Block, float], ...] = (
    (conv_relu, 3.0),
    (conv_conv, 3.0),
    (separable, 2.0),
    (bottleneck, 1.5),
    (residual, 2.0),
    (always_active, 0.7),
    (elementwise, 0.7),
    (pool, 1.0),
    (other_curve, 0.7),
    (moves, 0.7),
)


def random_maps(
    rng: np.random.Generator, norms: bool = False, blocks: tuple[tuple[Block, float], ...] = BLOCKS, side: int | None = None
) -> Graph:
    """Returns a random convolutional network with CLASSES outputs, float32, of blocks drawn by their weights."""
    m = Maps(rng, norms, side)
    if rng.random() < 0.3:  # an input that is normalised first, element by element
        m.push(AddConstant, m.shape, constant=m.constant((m.shape[0], 1, 1)))
        m.push(MulConstant, m.shape, constant=m.constant((m.shape[0], 1, 1)))
    chances = np.array([weight for _, weight in blocks])
    for _ in range(int(rng.integers(1, 5))):
        if len(m.shape) == 3:
            blocks[int(rng.choice(len(blocks), p=chances / chances.sum()))][0](m)
    if len(m.shape) == 3 and rng.random() < 0.2:
        m.push(AveragePool, (m.shape[0], 1, 1), kernel=m.shape[1:], stride=(1, 1))
    flatten(m)
    if rng.random() < 0.5:
        hidden = int(rng.integers(2, 7))
        m.push(Gemm, (hidden,), weight=m.keep(m.weight(hidden, m.shape[0])), bias=m.bias(hidden))
        m.push(Relu, m.shape)
    m.push(Gemm, (CLASSES,), weight=m.keep(m.weight(CLASSES, m.shape[0])), bias=m.bias(CLASSES))
    return m.graph()
