"""Networks of one operator after another with random weights: every operator and kernel that the C source has, fixed and drawn."""

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


def mask(rng, shape, kind):
    """Returns which weights [out, in, kh, kw] stay: all, single ones, blocks of outputs × inputs, or one of four patterns a kernel."""
    out, channels, kh, kw = shape
    if kind == "block":
        rows, columns = rng.choice([2, 4, 8]), rng.choice([1, 4])
        kept = rng.random((-(-out // rows), -(-channels // columns), kh, kw)) < 0.3
        return kept.repeat(rows, 0).repeat(columns, 1)[:out, :channels]
    if kind == "pattern":
        patterns = rng.random((4, kh, kw)) < 0.5
        return patterns[rng.integers(4, size=(out, channels))]
    return rng.random(shape) < {"dense": 1.0, "half": 0.5, "sparse": 0.1}[kind]


def random_network(seed):
    """Returns a network of convolutions of every shape and kind of sparsity, pooled or added, with fully connected layers behind."""
    rng = np.random.default_rng(seed)
    side = int(rng.integers(3, 16))
    b = Builder(rng, int(rng.integers(1, 7)), side, int(rng.integers(3, 16)))
    kinds = ("dense", "half", "sparse", "block", "pattern")
    for _ in range(int(rng.integers(1, 5))):
        channels, height, width = b.shapes[b.last]
        kernel = tuple(int(v) for v in rng.integers(1, 5, 2))
        pads = tuple(int(rng.integers(0, k)) for k in kernel) * 2
        dilation = tuple(int(rng.integers(1, 3)) for _ in kernel)
        if any((k - 1) * d + 1 > size + 2 * p for k, d, size, p in zip(kernel, dilation, (height, width), pads, strict=False)):
            continue
        groups = channels if rng.random() < 0.2 else 1
        out = groups * int(rng.integers(1, 3)) if groups > 1 else int(rng.integers(1, 34))
        b.conv(out, kernel, groups=groups, stride=tuple(int(v) for v in rng.integers(1, 4, 2)), pads=pads, dilation=dilation)
        weight = b.params[b.nodes[-1].weight]
        weight *= mask(rng, weight.shape, rng.choice(kinds))
        if rng.random() < 0.7:
            b.add(Relu)
        if rng.random() < 0.3 and min(b.shapes[b.last][1:]) > 1:
            b.add(MaxPool if rng.random() < 0.5 else AveragePool, kernel=(2, 2), stride=(2, 1))
        elif rng.random() < 0.3:
            skip = b.last
            channels = b.shapes[skip][0]
            b.conv(channels, (3, 3), pads=(1, 1, 1, 1), stride=(1, 1), density=float(rng.choice([1.0, 0.2])))
            b.add(Add, b.last, skip)
    b.flatten()
    for rows in (int(rng.integers(1, 150)), int(rng.integers(2, 20))):
        b.gemm(rows)
        weight = b.params[b.nodes[-1].weight]
        weight *= mask(rng, (*weight.shape, 1, 1), rng.choice(kinds[:4]))[:, :, 0, 0]
        if rng.random() < 0.5:
            b.add(Relu)
    return b.graph()


def any_operators(seed, most_weights=16_000):
    """Returns a network in which operators follow each other as they are drawn: every one that the C source has, with any attributes.

    At most `most_weights` of its weights are not zero, and its logits are 2 to 10; small enough for many in one firmware.
    """
    rng = np.random.default_rng([seed, most_weights])
    while True:
        graph = _any_operators(rng)
        if graph is not None and sum(int(np.count_nonzero(value)) for value in graph.params.values()) <= most_weights:
            return graph


def _any_operators(rng):
    """Returns a network, or None where what was drawn does not fit together."""
    flat = rng.random() < 0.15
    b = Builder(rng, int(rng.integers(1, 200))) if flat else Builder(rng, *(int(v) for v in rng.integers((1, 2, 2), (6, 14, 14))))
    for _ in range(0 if flat else int(rng.integers(1, 7))):
        if not _one_operator(b, rng):
            return None
    if not flat:
        b.flatten()
    for _ in range(int(rng.integers(0, 3))):
        _one_gemm(b, rng, int(rng.integers(1, 140)))
        if rng.random() < 0.6:
            b.add(Relu)
        elif rng.random() < 0.3:
            b.add(rng.choice([AddConstant, MulConstant]), constant=b.param(*rng.choice([b.shapes[b.last], (1,)])))
    _one_gemm(b, rng, int(rng.integers(2, 11)))
    return b.graph()


def _one_gemm(b, rng, rows):
    b.gemm(rows, bias=rng.random() < 0.8)
    weight = b.params[b.nodes[-1].weight]
    weight *= mask(rng, (*weight.shape, 1, 1), rng.choice(["dense", "half", "sparse", "block"]))[:, :, 0, 0] / np.sqrt(weight.shape[1])


def _one_operator(b, rng):
    """Adds an operator on maps; returns whether what was drawn fits the map."""
    channels, height, width = b.shapes[b.last]
    kind = rng.choice(["conv", "pool", "skip", "constant", "reshape"], p=[0.6, 0.15, 0.1, 0.1, 0.05])
    kernel = tuple(int(v) for v in rng.integers(1, 5, 2))
    pads = tuple(int(rng.integers(0, k)) for k in kernel * 2)
    dilation = tuple(int(v) for v in rng.integers(1, 3, 2))
    stride = tuple(int(v) for v in rng.integers(1, 4, 2))
    spans = [(k - 1) * (d if kind == "conv" else 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if kind in ("conv", "pool") and any(s > size + a + c for s, size, a, c in zip(spans, (height, width), pads[:2], pads[2:], strict=True)):
        return False
    if kind == "conv":
        groups = channels if rng.random() < 0.2 else 1
        out = groups * int(rng.integers(1, 3)) if groups > 1 else int(rng.integers(1, 28))
        b.conv(out, kernel, groups=groups, bias=rng.random() < 0.8, stride=stride, pads=pads, dilation=dilation)
        weight = b.params[b.nodes[-1].weight]
        kept = mask(rng, weight.shape, rng.choice(["dense", "half", "sparse", "block", "pattern"]))
        weight *= kept / np.sqrt(weight[0].size)
    elif kind == "pool" and rng.random() < 0.5:
        b.add(MaxPool, kernel=kernel, stride=stride, pads=pads)
    elif kind == "pool":
        if kernel[0] > height or kernel[1] > width:
            return False
        b.add(AveragePool, kernel=kernel, stride=stride)
    elif kind == "skip":
        skip = b.last
        b.conv(channels, (3, 3), pads=(1, 1, 1, 1), density=float(rng.choice([1.0, 0.2])))
        b.add(Add, b.last, skip)
    elif kind == "constant":
        shape = [(channels, 1, 1), (1, height, 1), (width,), (1,), (channels, height, width)][rng.integers(5)]
        b.add(rng.choice([AddConstant, MulConstant]), constant=b.param(*shape))
    else:
        b.last = b.add(Reshape, b.flatten(), shape=(height, channels, width))
    if rng.random() < 0.5:
        b.add(Relu)
    return True
