"""Random networks as recipes may train them, to be exported in every form: activation functions, residuals, pools, concatenations."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bounds"))

from graph_builder import GrowingNet

from vsparse.graph import (
    Add,
    AddConstant,
    AveragePool,
    Clip,
    Concat,
    Conv,
    Gemm,
    Graph,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Neg,
    Relu,
    Reshape,
    Sub,
    validate,
)

ACTIVATIONS = ("relu", "leaky", "clip")
SLOPES = (0.01, 0.1, 0.2, 0.25, 0.0, 1.0, 0.5, 1e-8, 1e-30)


class OwnNet(GrowingNet):
    """A network on feature maps with some of these activation functions, whose weights have zeros."""

    def __init__(self, rng: np.random.Generator, activations: tuple[str, ...]) -> None:
        super().__init__(rng, (int(rng.integers(1, 4)), int(rng.integers(4, 9)), int(rng.integers(4, 9))))
        self.activations = activations

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def keep(self, *size: int) -> str:
        value = self.rng.normal(size=size)
        value[self.rng.random(size) < 0.3] = 0
        return self.store(value)

    def activation(self) -> None:
        kind = str(self.rng.choice(self.activations))
        if kind == "relu":
            self.push(Relu, self.shape)
        elif kind == "leaky":
            self.push(LeakyRelu, self.shape, slope=float(np.float32(self.rng.choice([*SLOPES, self.rng.random()]))))
        else:
            low = float(np.float32(self.rng.choice([0.0, -1.0, -self.rng.random()])))
            high = float(np.float32(self.rng.choice([6.0, 1.0, self.rng.random() + 0.1])))
            self.push(Clip, self.shape, lowest=low, highest=high)

    def conv(self, out: int, k: int, same: bool = False) -> None:
        c, h, w = self.shape
        k = min(k, h, w)
        depthwise = out == c and self.chance(0.25)
        pad = k // 2 if same or self.chance(0.5) else 0
        stride = 2 if not same and self.chance(0.25) else 1
        size = tuple((n + 2 * pad - k) // stride + 1 for n in (h, w))
        bias = None if self.chance(0.25) else self.keep(out)
        fields = {"weight": self.keep(out, 1 if depthwise else c, k, k), "bias": bias, "groups": c if depthwise else 1}
        self.push(Conv, (out, *size), pads=(pad,) * 4, stride=(stride, stride), **fields)

    def block(self) -> None:
        c, h, w = self.shape
        pick = self.rng.random()
        if pick < 0.35:
            self.conv(int(self.rng.choice([c, 2, 4, 5, 8])), int(self.rng.choice([1, 3])))
            self.activation()
        elif pick < 0.6:
            start = self.last
            self.conv(c, int(self.rng.choice([1, 3])) if min(h, w) >= 3 else 1, same=True)
            if self.chance(0.5):
                self.activation()
            both = (self.last, start) if self.chance(0.5) else (start, self.last)
            self.push(Sub if self.chance(0.15) and "clip" not in self.activations else Add, (c, h, w), both)
            if self.chance(0.7):
                self.activation()
        elif pick < 0.75:
            start, ends = self.last, []
            for _ in range(2):
                self.last, self.shape = start, (c, h, w)
                self.conv(2, 1, same=True)
                if self.chance(0.7):
                    self.activation()
                ends.append(self.last)
            self.push(Concat, (4, h, w), tuple(ends), axis=0)
        elif min(h, w) >= 2:
            kind = MaxPool if self.chance(0.5) else AveragePool
            whole = kind is AveragePool and self.chance(0.3)
            kernel, shape = ((h, w), (c, 1, 1)) if whole else ((2, 2), (c, h // 2, w // 2))
            self.push(kind, shape, kernel=kernel, stride=(1, 1) if whole else (2, 2))
        elif "clip" not in self.activations:
            self.push(Neg, self.shape)

    def grown(self) -> Graph:
        """Returns the network with a normalisation, blocks and layers behind it."""
        if self.chance(0.5):
            sizes = [(1, 1, 1), (self.shape[0], 1, 1)]
            self.push(AddConstant, self.shape, constant=self.keep(*sizes[int(self.rng.integers(2))]))
            self.push(MulConstant, self.shape, constant=self.keep(*sizes[int(self.rng.integers(2))]))
        for _ in range(int(self.rng.integers(1, 6))):
            self.block()
        self.push(Reshape, (prod(self.shape),))
        for out in (int(self.rng.integers(4, 12)), 3)[int(self.chance(0.3)) :]:
            bias = None if self.chance(0.2) else self.keep(out)
            self.push(Gemm, (out,), weight=self.keep(out, self.shape[0]), bias=bias)
            if out != 3:
                self.activation()
        return validate(self.graph())


def own_net(seed: int, activations: tuple[str, ...] = ACTIVATIONS) -> Graph:
    """Returns network number `seed`, which has one of these activation functions at least."""
    return OwnNet(np.random.default_rng([seed, 18]), activations).grown()
