"""Small networks, and the exact least value of a row over a box: every pattern of signs, one linear program each."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from vsparse.bounds import Box, Rounding, interval, refine
from vsparse.contract import CONTRACTS
from vsparse.graph.ir import Add, AddConstant, Conv, Gemm, Graph, MaxPool, Relu, Reshape


def gemms(rng: np.random.Generator, *sizes: int) -> Graph:
    """Returns a random fully connected network with ReLUs between its layers."""
    nodes: list[Gemm | Relu] = []
    params, name = {}, "x"
    for i, (n, m) in enumerate(pairwise(sizes)):
        params[f"w{i}"] = rng.normal(0, 1, (m, n)).astype(np.float32)
        params[f"b{i}"] = rng.normal(0, 0.3, m).astype(np.float32)
        nodes.append(Gemm(name=f"z{i}", inputs=(name,), shape=(m,), weight=f"w{i}", bias=f"b{i}"))
        if i + 2 < len(sizes):
            nodes.append(Relu(name=f"a{i}", inputs=(f"z{i}",), shape=(m,)))
        name = nodes[-1].name
    return Graph(input="x", input_shape=(sizes[0],), nodes=tuple(nodes), output=name, params=params)


def residual(rng: np.random.Generator, pool: bool = False) -> Graph:
    """Returns a convolution, a residual branch, a shift and two fully connected layers; with `pool` a max-pool among them."""
    params = {
        "c0": rng.normal(0, 0.5, (2, 1, 3, 3)),
        "d0": rng.normal(0, 0.2, 2),
        "c1": rng.normal(0, 0.4, (2, 2, 3, 3)),
        "k": rng.normal(0, 0.2, (2, 1, 1)),
        "w": rng.normal(0, 0.6, (4, 8 if pool else 32)),
        "v": rng.normal(0, 0.6, (3, 4)),
    }
    shape = (2, 4, 4)
    nodes = [
        Conv(name="z0", inputs=("x",), shape=shape, weight="c0", bias="d0", pads=(1, 1, 1, 1)),
        Relu(name="a0", inputs=("z0",), shape=shape),
        Conv(name="z1", inputs=("a0",), shape=shape, weight="c1", bias=None, pads=(1, 1, 1, 1)),
        Add(name="s", inputs=("z1", "a0"), shape=shape),
        AddConstant(name="t", inputs=("s",), shape=shape, constant="k"),
        Relu(name="a1", inputs=("t",), shape=shape),
    ]
    if pool:
        nodes.append(MaxPool(name="p", inputs=("a1",), shape=(2, 2, 2), kernel=(2, 2), stride=(2, 2)))
    nodes += [
        Reshape(name="f", inputs=(nodes[-1].name,), shape=(8 if pool else 32,)),
        Gemm(name="z2", inputs=("f",), shape=(4,), weight="w", bias=None),
        Relu(name="a2", inputs=("z2",), shape=(4,)),
        Gemm(name="y", inputs=("a2",), shape=(3,), weight="v", bias=None),
    ]
    return Graph("x", (1, 4, 4), tuple(nodes), "y", {name: value.astype(np.float32) for name, value in params.items()})


def around(graph: Graph, rng: np.random.Generator, radius: float) -> Box:
    """Returns a box around a random point."""
    centre = torch.from_numpy(rng.uniform(0, 1, (1, *graph.input_shape)))
    return centre - radius, centre + radius


def enclosed(graph: Graph, box: Box, contract: str = "real") -> tuple[Rounding, dict[str, Box]]:
    """Returns the rounding terms and the refined enclosure of a graph over a box."""
    rounding = Rounding(graph, CONTRACTS[contract])
    return rounding, refine(graph, rounding.params, box, interval(graph, rounding.params, box, rounding), rounding)


def exact_minimum(graph: Graph, box: Box, row: Tensor) -> float:
    """Returns the least row · output of a network of `gemms` over a box, in real arithmetic up to the solver's 1e-7."""
    params = {name: value.astype(np.float64) for name, value in graph.params.items()}
    lower, upper = (end.numpy().ravel() for end in box)
    relus = [node for node in graph.nodes if isinstance(node, Relu)]
    least = np.inf
    for signs in product((0, 1), repeat=sum(node.size for node in relus)):
        weight, offset = np.eye(len(lower)), np.zeros(len(lower))
        conditions, limits, at = [], [], 0
        for node in graph.nodes:
            if isinstance(node, Gemm):
                assert node.bias is not None
                weight, offset = params[node.weight] @ weight, params[node.weight] @ offset + params[node.bias]
            else:
                active = np.array(signs[at : at + node.size], dtype=float)
                at += node.size
                direction = (1 - 2 * active)[:, None]
                conditions.append(direction * weight)
                limits.append(-direction[:, 0] * offset)
                weight, offset = active[:, None] * weight, active * offset
        objective = row.numpy() @ weight
        solution = linprog(objective, np.concatenate(conditions), np.concatenate(limits), bounds=list(zip(lower, upper, strict=True)))
        if solution.status == 0:
            least = min(least, float(solution.fun + row.numpy() @ offset))
    return least


def points(box: Box, count: int, seed: int) -> Tensor:
    """Returns points of a box [count, …], uniform ones and corners."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, *box[0].shape[1:], generator=generator, dtype=torch.float64)
    share[count // 2 :] = share[count // 2 :].round()
    return box[0] + share * (box[1] - box[0])
