"""Networks of one operator after another with random weights, which together have every operator and kernel that the C source has."""

from __future__ import annotations

import numpy as np

from vsparse.graph import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Relu, Reshape, validate
from vsparse.graph.shapes import output_shape


class Builder:
    """A network of one operator after another, with random weights."""

    def __init__(self, rng, *shape):
        self.rng, self.input_shape, self.last, self.nodes, self.params = rng, shape, "x", [], {}
        self.shapes = {"x": shape}

    def param(self, *shape, density=1.0):
        name = f"p{len(self.params)}"
        value = self.rng.normal(size=shape).astype(np.float32)
        value[self.rng.random(shape) >= density] = 0
        self.params[name] = value
        return name

    def add(self, kind, *inputs, shape=(), **fields):
        inputs = inputs or (self.last,)
        node = kind(name=f"n{len(self.nodes)}", inputs=inputs, shape=shape, **fields)
        sizes = {name: value.shape for name, value in self.params.items()}
        shape = output_shape(node, [self.shapes[name] for name in inputs], sizes)
        node = kind(name=node.name, inputs=inputs, shape=shape, **fields)
        self.nodes.append(node)
        self.last, self.shapes[node.name] = node.name, shape
        return node.name

    def conv(self, out, kernel=(3, 3), density=1.0, groups=1, bias=True, **fields):
        weight = self.param(out, self.shapes[self.last][0] // groups, *kernel, density=density)
        return self.add(Conv, weight=weight, bias=self.param(out) if bias else None, groups=groups, **fields)

    def gemm(self, out, density=1.0, bias=True):
        weight = self.param(out, self.shapes[self.last][0], density=density)
        return self.add(Gemm, weight=weight, bias=self.param(out) if bias else None)

    def flatten(self):
        return self.add(Reshape, shape=(int(np.prod(self.shapes[self.last])),))

    def graph(self):
        return validate(Graph(input="x", input_shape=self.input_shape, nodes=tuple(self.nodes), output=self.last, params=self.params))


def networks():
    """Yields networks that have, together, every operator with every attribute and both kinds of kernels."""
    rng = np.random.default_rng(3)
    b = Builder(rng, 3, 9, 11)
    b.add(AddConstant, constant=b.param(3, 1, 1))
    b.add(MulConstant, constant=b.param(1, 9, 1))
    b.add(AddConstant, constant=b.param(11))
    b.conv(9, stride=(2, 1), pads=(1, 0, 2, 1))
    skip = b.add(Relu)
    b.conv(9, (3, 2), pads=(1, 0, 1, 1), density=0.2)
    b.add(Add, b.last, skip)
    b.add(Relu)
    b.add(MaxPool, kernel=(3, 2), stride=(2, 1), pads=(1, 0, 1, 1))
    b.conv(12, groups=3, density=0.9, bias=False)
    b.add(AveragePool, kernel=(1, 2), stride=(1, 1))
    b.add(Relu)
    b.flatten()
    b.gemm(70, density=0.5)
    b.add(Relu)
    b.gemm(21, density=0.05)
    b.gemm(130, bias=False)
    b.add(Relu)
    b.add(Relu)
    b.gemm(3)
    yield b.graph()
    b = Builder(rng, 4, 8, 7)  # reads whole vectors beyond the input: no padding, so no copy of its own
    first = b.conv(10, (1, 1))
    b.conv(10, (3, 3), groups=10, dilation=(2, 3), pads=(2, 3, 2, 3))
    b.add(Add, first, b.last)
    b.conv(5, (2, 2), stride=(3, 2), density=0.0)
    b.conv(6, (2, 1), stride=(1, 3), pads=(0, 1, 1, 1))
    b.add(AveragePool, kernel=(3, 2), stride=(1, 1)) if min(b.shapes[b.last][1:]) > 2 else None
    yield b.graph()
    b = Builder(rng, 40)
    b.gemm(33, density=0.1)
    b.gemm(64, density=0.0)
    b.add(AddConstant, constant=b.param(1))
    b.add(Relu)
    b.gemm(128)
    b.gemm(2)
    yield b.graph()
    b = Builder(rng, 2, 6, 5)  # a padded copy of the input, and of a map that is flattened too
    b.conv(6, (5, 5), stride=(1, 2), pads=(2, 4, 2, 1), density=0.6)
    b.add(Relu)
    shape, flat = b.shapes[b.last], b.flatten()
    b.last = b.add(Reshape, flat, shape=shape)
    b.conv(7, (1, 5), pads=(0, 2, 0, 2), dilation=(1, 1))
    b.conv(3, (2, 2), pads=(1, 1, 0, 0), density=0.3)
    b.add(Add, b.last, b.last)
    yield b.graph()
