"""Small random networks for the tests of compression: weights are multiples of 1/8, so that many sums are exact."""

from __future__ import annotations

import numpy as np

from vsparse.graph.ir import (
    Add,
    AddConstant,
    AveragePool,
    Conv,
    Gemm,
    Graph,
    MaxPool,
    MulConstant,
    Node,
    Relu,
    Reshape,
)


class Net:
    """Appends nodes one after the other; `rng` draws their parameters."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.input_shape = shape
        self.nodes: list[Node] = []
        self.params: dict[str, np.ndarray] = {}
        self.last, self.shape = "input", shape

    def values(self, *shape: int) -> np.ndarray:
        return (self.rng.integers(-8, 9, shape) / 8).astype(np.float32)

    def push(self, node: Node) -> str:
        self.nodes.append(node)
        self.last, self.shape = node.name, node.shape
        return node.name

    def conv(self, out: int, kernel=3, stride=1, pad=0, groups=1, bias=True) -> str:
        name = f"conv{len(self.nodes)}"
        c, h, w = self.shape
        shape = (out, (h + 2 * pad - kernel) // stride + 1, (w + 2 * pad - kernel) // stride + 1)
        self.params[f"{name}.weight"] = self.values(out, c // groups, kernel, kernel)
        if bias:
            self.params[f"{name}.bias"] = self.values(out)
        return self.push(
            Conv(
                name=name,
                inputs=(self.last,),
                shape=shape,
                weight=f"{name}.weight",
                bias=f"{name}.bias" if bias else None,
                stride=(stride, stride),
                pads=(pad,) * 4,
                groups=groups,
            )
        )

    def gemm(self, out: int, bias=True) -> str:
        name = f"gemm{len(self.nodes)}"
        self.params[f"{name}.weight"] = self.values(out, *self.shape)
        if bias:
            self.params[f"{name}.bias"] = self.values(out)
        return self.push(Gemm(name=name, inputs=(self.last,), shape=(out,), weight=f"{name}.weight", bias=f"{name}.bias" if bias else None))

    def relu(self) -> str:
        return self.push(Relu(name=f"relu{len(self.nodes)}", inputs=(self.last,), shape=self.shape))

    def flatten(self) -> str:
        return self.push(Reshape(name=f"flat{len(self.nodes)}", inputs=(self.last,), shape=(int(np.prod(self.shape)),)))

    def reshape(self, *shape: int) -> str:
        return self.push(Reshape(name=f"reshape{len(self.nodes)}", inputs=(self.last,), shape=shape))

    def add(self, other: str) -> str:
        return self.push(Add(name=f"add{len(self.nodes)}", inputs=(self.last, other), shape=self.shape))

    def pool(self, kind: str, kernel=2, stride=2, pad=0) -> str:
        c, h, w = self.shape
        shape = (c, (h + 2 * pad - kernel) // stride + 1, (w + 2 * pad - kernel) // stride + 1)
        name = f"pool{len(self.nodes)}"
        window = {"name": name, "inputs": (self.last,), "shape": shape, "kernel": (kernel, kernel), "stride": (stride, stride)}
        return self.push(MaxPool(**window, pads=(pad,) * 4) if kind == "max" else AveragePool(**window))

    def constant(self, kind: str, *shape: int) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.params[name] = self.values(*shape)
        node = {"name": name, "inputs": (self.last,), "shape": self.shape, "constant": name}
        return self.push(AddConstant(**node) if kind == "shift" else MulConstant(**node))

    def graph(self) -> Graph:
        return Graph("input", self.input_shape, tuple(self.nodes), self.last, dict(self.params))


def plain(seed: int) -> Graph:
    """Normalisation, padded and unpadded convolutions, both pools, flatten, two Gemm layers."""
    net = Net((2, 8, 8), seed)
    net.constant("shift", 2, 1, 1)
    net.constant("scale", 2, 1, 1)
    net.conv(4, pad=1)
    net.relu()
    net.pool("max", kernel=3, stride=2, pad=1)
    net.conv(5, kernel=2, bias=bool(seed % 2))
    net.relu()
    net.pool("average", kernel=2, stride=1)
    net.flatten()
    net.gemm(6)
    net.relu()
    net.gemm(3)
    return net.graph()


def residual(seed: int) -> Graph:
    """Two residual blocks, one with a convolution on the shortcut, and constants between."""
    net = Net((1, 6, 6), seed)
    net.conv(4, pad=1)
    start = net.relu()
    net.conv(4, pad=1)
    net.relu()
    net.conv(4, pad=1)
    net.add(start)
    second = net.relu()
    net.conv(5, kernel=2, stride=2)
    body = net.constant("shift", 5, 1, 1)
    net.last, net.shape = second, (4, 6, 6)
    net.conv(5, kernel=2, stride=2, bias=False)
    net.add(body)
    net.relu()
    net.flatten()
    net.gemm(3)
    return net.graph()


def grouped(seed: int) -> Graph:
    """A depthwise convolution with multiplier 2, a grouped one, and a reshape that splits neurons into channels."""
    net = Net((1, 4, 4), seed)
    net.flatten()
    net.gemm(36)
    net.relu()
    net.reshape(4, 3, 3)
    net.conv(4, kernel=1)
    net.relu()
    net.conv(8, kernel=2, groups=4)
    net.relu()
    net.conv(6, kernel=1)
    net.relu()
    net.conv(6, kernel=2, groups=2)
    net.flatten()
    net.gemm(2)
    return net.graph()


FAMILIES = {"plain": plain, "residual": residual, "grouped": grouped}


def random_masks(graph: Graph, seed: int, rows: float = 0.5, entries: float = 0.3) -> dict[str, np.ndarray]:
    """Masks that remove whole outputs, whole inputs and single weights."""
    rng = np.random.default_rng(seed)
    masks = {}
    for name, value in graph.params.items():
        if name.endswith("weight"):
            mask = rng.random(value.shape) >= entries
            mask[rng.random(len(mask)) < rows] = False
            mask[:, rng.random(mask.shape[1]) < rows / 2] = False
            masks[name] = mask
    return masks
