"""A device within a numeric contract, simulated badly on purpose: random orders of summation, with and without fused operations."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch

from vsparse.bounds.linear import forward, pool_weight
from vsparse.contract import LARGEST, SIGNIFICAND_BITS, SMALLEST_NORMAL, SMALLEST_SUBNORMAL, Contract
from vsparse.graph.ir import Add, AddConstant, Affine, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu, Reshape


def round_to(x, fmt, truncate=False, flush=False):
    """Rounds float64 values to a format, to nearest even or toward zero, with gradual or flushed underflow."""
    if fmt == "real":
        return x
    x = np.asarray(x, dtype=np.float64)
    exponent = np.frexp(x)[1]
    quantum = np.maximum(np.ldexp(1.0, exponent - SIGNIFICAND_BITS[fmt]), SMALLEST_SUBNORMAL[fmt])
    with np.errstate(invalid="ignore"):
        value = (np.trunc if truncate else np.rint)(x / quantum) * quantum
    value = np.where(np.abs(value) > LARGEST[fmt], np.copysign(np.inf, value), value)
    return np.where(np.abs(value) < SMALLEST_NORMAL[fmt], 0.0, value) if flush else value


class Device:
    """Executes a graph on one input, node by node, with a fresh choice of everything the contract leaves open."""

    def __init__(self, graph: Graph, contract: Contract, rng: np.random.Generator):
        self.graph, self.contract, self.rng = graph, contract, rng
        self.params = {name: value.astype(np.float64) for name, value in graph.params.items()}
        self.sums = {node.name: sums(graph, node) for node in graph.nodes if isinstance(node, Affine | AveragePool)}

    def run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        self.flush = self.contract.subnormals == "flush" and self.rng.random() < 0.5
        self.fused = self.rng.random() < 0.5
        self.matrix_unit = self.contract.operand != self.contract.accumulate and self.rng.random() < 0.5
        values = {self.graph.input: self.store(x.astype(np.float64))}
        for node in self.graph.nodes:
            values[node.name] = self.node(node, *(values[name] for name in node.inputs))
        return values

    def store(self, x):
        return round_to(x, self.contract.storage, flush=self.flush)

    def node(self, node: Node, *inputs: np.ndarray) -> np.ndarray:
        x = inputs[0]
        if isinstance(node, Relu):
            return np.maximum(x, 0)
        if isinstance(node, Reshape):
            return x.reshape(node.shape)
        if isinstance(node, Add):
            return self.store(x + inputs[1])
        if isinstance(node, AddConstant):
            return self.store(x + self.params[node.constant])
        if isinstance(node, MulConstant):
            return self.store(x * self.params[node.constant])
        if isinstance(node, MaxPool):
            return windows_max(node, x)
        return np.array([self.sum(node, row, bias, x.reshape(-1)) for row, bias in self.sums[node.name]]).reshape(node.shape)

    def sum(self, node: Node, row: list[tuple[int, float]], bias: float, x: np.ndarray) -> float:
        contract, rng = self.contract, self.rng
        pool = isinstance(node, AveragePool)
        operand = contract.storage if pool else contract.operand
        truncate = operand == "tf32" and rng.random() < 0.5
        weights = np.array([w for _, w in row])
        values = np.array([x[i] for i, _ in row])
        if pool and rng.random() < 0.5:
            weights = np.full(len(row), round_to(1 / len(row), contract.storage))  # as a convolution
        elif pool:
            weights = np.ones(len(row))
        if not pool:
            weights = round_to(weights, operand, truncate, self.flush)
            values = round_to(values, operand, truncate, self.flush)
        terms = list(zip(weights, values, strict=True))
        terms = [terms[i] for i in rng.permutation(len(terms))]

        def rnd(v):
            return float(round_to(v, contract.accumulate, self.matrix_unit, self.flush))

        if self.fused or not terms:
            at = int(rng.integers(0, len(terms) + 1))
            total = 0.0
            for i, (w, v) in enumerate(terms):
                total = rnd(total + bias) if i == at else total
                total = rnd(total + w * v)
            total = rnd(total + bias) if at == len(terms) else total
        else:
            partial = [rnd(w * v) for w, v in terms] + [bias]
            while len(partial) > 1:  # a random tree
                i, j = sorted(rng.choice(len(partial), 2, replace=False))
                b = partial.pop(j)
                partial[i] = rnd(partial[i] + b)
            total = partial[0]
        if pool and weights.size and weights[0] == 1.0 and len(row) > 1:
            total = rnd(total / len(row)) if rng.random() < 0.5 else rnd(total * rnd(1 / len(row)))
        return float(self.store(total))


def sums(graph: Graph, node: Node) -> list[tuple[list[tuple[int, float]], float]]:
    """Returns for each output of an affine node or average pool its non-zero terms (flat input index, weight) and its bias."""
    shape = graph.shape_of(node.inputs[0])
    eye = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    if isinstance(node, AveragePool):
        weight, bias = pool_weight(node, shape[0], eye), np.zeros(node.size)
    else:
        assert isinstance(node, Affine)
        weight = torch.tensor(graph.params[node.weight], dtype=torch.float64)
        each = np.zeros(node.shape[0]) if node.bias is None else graph.params[node.bias].astype(np.float64)
        bias = np.repeat(each, node.size // node.shape[0])
    columns = forward(node, weight, eye).reshape(len(eye), -1).numpy()
    return [([(int(i), float(columns[i, o])) for i in np.flatnonzero(columns[:, o])], float(bias[o])) for o in range(node.size)]


def windows_max(node: MaxPool, x: np.ndarray) -> np.ndarray:
    top, left, bottom, right = node.pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right)), constant_values=-np.inf)
    out = np.empty(node.shape)
    for c, i, j in np.ndindex(*node.shape):
        a, b = i * node.stride[0], j * node.stride[1]
        out[c, i, j] = padded[c, a : a + node.kernel[0], b : b + node.kernel[1]].max()
    return out


def exact_node(device: Device, node: Node, *inputs: np.ndarray) -> list[Fraction]:
    """Returns one operator's outputs in rational arithmetic on the given (deployed) inputs, flat."""
    x = [Fraction(float(v)) for v in inputs[0].reshape(-1)]
    if isinstance(node, Relu):
        return [max(v, Fraction(0)) for v in x]
    if isinstance(node, Reshape):
        return x
    if isinstance(node, Add):
        return [a + Fraction(float(b)) for a, b in zip(x, inputs[1].reshape(-1), strict=True)]
    if isinstance(node, AddConstant | MulConstant):
        c = np.broadcast_to(device.params[node.constant], node.shape).reshape(-1)
        pairs = zip(x, (Fraction(float(v)) for v in c), strict=True)
        return [a + b for a, b in pairs] if isinstance(node, AddConstant) else [a * b for a, b in pairs]
    if isinstance(node, MaxPool):
        return [Fraction(float(v)) for v in windows_max(node, inputs[0]).reshape(-1)]
    scale = Fraction(1, node.kernel[0] * node.kernel[1]) if isinstance(node, AveragePool) else Fraction(1)
    return [scale * (sum((Fraction(w) * x[i] for i, w in row), Fraction(0)) + Fraction(bias)) for row, bias in device.sums[node.name]]


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
