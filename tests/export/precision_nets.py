"""Random small networks for the exports in other precisions: convolutions, a residual, pools, linear layers."""

from __future__ import annotations

import numpy as np

from vsparse.graph import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Relu, Reshape


def random_net(rng: np.random.Generator) -> Graph:
    """Returns input [1, 6, 6] -> … -> three logits; a third of the weights are zero."""
    params: dict[str, np.ndarray] = {}

    def make(name, *size):
        value = rng.normal(size=size).astype(np.float32)
        value[rng.random(size) < 0.33] = 0
        params[name] = value
        return name

    nodes = []
    last = "input"
    if rng.random() < 0.5:
        nodes += [
            AddConstant(name="shift", inputs=("input",), shape=(1, 6, 6), constant=make("mean", 1, 1, 1)),
            MulConstant(name="spread", inputs=("shift",), shape=(1, 6, 6), constant=make("std", 1, 1, 1)),
        ]
        last = "spread"
    nodes += [
        Conv(name="c1", inputs=(last,), shape=(4, 6, 6), weight=make("w1", 4, 1, 3, 3), bias=make("b1", 4), pads=(1, 1, 1, 1)),
        Relu(name="r1", inputs=("c1",), shape=(4, 6, 6)),
        Conv(name="c2", inputs=("r1",), shape=(4, 6, 6), weight=make("w2", 4, 2, 3, 3), bias=None, pads=(1, 1, 1, 1), groups=2),
    ]
    last = "c2"
    if rng.random() < 0.7:
        nodes += [Add(name="sum", inputs=("c2", "r1"), shape=(4, 6, 6))]
        last = "sum"
    nodes += [Relu(name="r2", inputs=(last,), shape=(4, 6, 6))]
    pick = rng.random()
    last, shape = "r2", (4, 6, 6)
    if pick < 0.4:
        nodes += [MaxPool(name="pool", inputs=("r2",), shape=(4, 3, 3), kernel=(2, 2), stride=(2, 2))]
        last, shape = "pool", (4, 3, 3)
    elif pick < 0.8:
        nodes += [AveragePool(name="pool", inputs=("r2",), shape=(4, 3, 3), kernel=(2, 2), stride=(2, 2))]
        last, shape = "pool", (4, 3, 3)
    size = int(np.prod(shape))
    nodes += [
        Reshape(name="flat", inputs=(last,), shape=(size,)),
        Gemm(name="z1", inputs=("flat",), shape=(7,), weight=make("w3", 7, size), bias=make("b3", 7)),
        Relu(name="r3", inputs=("z1",), shape=(7,)),
        Gemm(name="z2", inputs=("r3",), shape=(3,), weight=make("w4", 3, 7), bias=make("b4", 3)),
    ]
    return Graph("input", (1, 6, 6), tuple(nodes), "z2", params)
