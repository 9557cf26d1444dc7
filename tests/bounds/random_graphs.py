"""Random small networks: of the core's operators, each with every kind of attribute."""

from __future__ import annotations

import numpy as np
from number_formats import round_to

from vsparse.graph.ir import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu, Reshape


def random_graph(rng: np.random.Generator, storage: str = "fp32", spread: float = 1.0) -> Graph:
    """Returns a small random network that has, over many draws, every node type with every kind of attribute."""
    params: dict[str, np.ndarray] = {}
    nodes: list[Node] = []
    shape = (int(rng.integers(1, 3)), int(rng.integers(4, 7)), int(rng.integers(4, 7)))
    input_shape = shape
    last = "x"

    def make(name, *size):
        value = rng.normal(size=size) * spread ** rng.uniform(-1, 1, size=size)
        value[rng.random(size) < 0.3] = 0
        if storage in ("fp16", "bf16"):
            value = round_to(value, storage)
        params[name] = value.astype(np.float32)
        return name

    def push(kind, inputs=None, **fields):
        nonlocal last, shape
        name = f"n{len(nodes)}"
        nodes.append(kind(name=name, inputs=inputs or (last,), **fields))
        last, shape = name, fields["shape"]

    def conv(out, k, stride, pads, dilation=(1, 1), groups=1):
        h, w = ((shape[1 + i] + pads[i] + pads[i + 2] - dilation[i] * (k[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
        n = len(nodes)
        weight, bias = make(f"w{n}", out, shape[0] // groups, *k), make(f"b{n}", out) if rng.random() < 0.7 else None
        push(Conv, shape=(out, h, w), weight=weight, bias=bias, stride=stride, pads=pads, dilation=dilation, groups=groups)

    if rng.random() < 0.5:
        push(AddConstant, shape=shape, constant=make("mean", shape[0], 1, 1))
        push(MulConstant, shape=shape, constant=make("std", shape[0], 1, 1))
    pads = tuple(int(v) for v in rng.integers(0, 3, 4))
    groups = shape[0] if rng.random() < 0.3 else 1
    conv(
        2 * int(rng.integers(1, 3)),
        (2, int(rng.integers(1, 4))),
        tuple(int(v) for v in rng.integers(1, 3, 2)),
        pads,
        (1, int(rng.integers(1, 2))),
        groups,
    )
    push(Relu, shape=shape)
    if rng.random() < 0.6:  # residual
        skip = last
        conv(shape[0], (3, 3), (1, 1), (1, 1, 1, 1), groups=2 if rng.random() < 0.4 else 1)
        if rng.random() < 0.5:
            push(Relu, shape=shape)
        push(Add, inputs=(last, skip), shape=shape)
        push(Relu, shape=shape)
    pick = rng.random()
    if pick < 0.35 and min(shape[1:]) >= 2:
        p = (1, 1, 0, 1) if rng.random() < 0.5 else (0, 0, 0, 0)
        stride = tuple(int(v) for v in rng.integers(1, 3, 2))
        size = tuple((shape[1 + i] + p[i] + p[i + 2] - 2) // stride[i] + 1 for i in (0, 1))
        push(MaxPool, shape=(shape[0], *size), kernel=(2, 2), stride=stride, pads=p)
    elif pick < 0.7 and min(shape[1:]) >= 2:
        stride = tuple(int(v) for v in rng.integers(1, 3, 2))
        size = tuple((shape[1 + i] - 2) // stride[i] + 1 for i in (0, 1))
        push(AveragePool, shape=(shape[0], *size), kernel=(2, 2), stride=stride)
    push(Reshape, shape=(int(np.prod(shape)),))
    for out in (5, 3):
        n = len(nodes)
        push(Gemm, shape=(out,), weight=make(f"w{n}", out, shape[0]), bias=make(f"b{n}", out))
        if out == 5:
            push(Relu, shape=shape)
    return Graph(input="x", input_shape=input_shape, nodes=tuple(nodes), output=last, params=params)
