"""A device within a numeric contract, simulated badly on purpose: chosen orders of summation, with and without fused operations.

Values are float64 arrays [batch, *shape] that hold numbers of the contract's formats. Products of two such numbers are exact in float64.
"""

from __future__ import annotations

from functools import singledispatch
from math import ldexp

import numpy as np
import torch
from exact_execution import exact_node
from number_formats import round_to
from random_graphs import random_graph

from vsparse.bounds.linear import forward
from vsparse.bounds.operators.pooling import pool_weight
from vsparse.contract import FUNCTION_ERROR, SIGNIFICAND_BITS, SMALLEST_NORMAL, SMALLEST_SUBNORMAL, Contract
from vsparse.graph.execute import apply
from vsparse.graph.ir import (
    Add,
    AddConstant,
    Affine,
    AveragePool,
    Clip,
    Concat,
    DivConstant,
    FakeQuant,
    Gather,
    Graph,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Neg,
    Node,
    Pad,
    Relu,
    Reshape,
    Sigmoid,
    Slice,
    Sub,
    Tanh,
    Transpose,
)

__all__ = ["Device", "exact_node", "execute", "random_graph", "round_to", "sums"]

ORDERS = ("random", "descending", "ascending", "largest first", "smallest first", "as stored")


class Device:
    """Executes a graph node by node, with a fresh choice for every node of everything the contract leaves open."""

    def __init__(self, graph: Graph, contract: Contract, rng: np.random.Generator):
        self.graph, self.contract, self.rng = graph, contract, rng
        self.params = {name: value.astype(np.float64) for name, value in graph.params.items()}
        self.sums = {node.name: sums(graph, node) for node in graph.nodes if isinstance(node, Affine | AveragePool)}
        if contract.order == "chain":  # position by position, and channel by channel at each
            for node in graph.nodes:
                if isinstance(node, Affine) and len(graph.shape_of(node.inputs[0])) == 3:
                    size = int(np.prod(graph.shape_of(node.inputs[0])[1:]))
                    rows = self.sums[node.name]
                    self.sums[node.name] = [(sorted(row, key=lambda term: (term[0] % size, term[0] // size)), b) for row, b in rows]
        self.terms = {name: _padded(rows) for name, rows in self.sums.items()}
        self.readers = graph.consumers()
        # What a file for TensorRT keeps in float32: the input, moved at most, and the sum at the end.
        self.unrounded = set(graph.unrounded) if contract.name == "fp16-tensorrt" else set()
        self.raw = {graph.input} & self.unrounded
        for node in graph.nodes:
            if isinstance(node, Reshape) and node.inputs[0] in self.raw:
                self.raw.add(node.name)
        self.fused_nodes: set[str] = set()
        # A bias in float32 is no part of an integer sum: it is added behind it.
        behind = {node.bias: np.zeros(node.shape[0]) for node in graph.nodes if isinstance(node, Affine) and node.bias is not None}
        whole = behind | {name: one.values.astype(np.float64) for name, one in graph.integers.items()}
        integers = graph.with_params(graph.params | whole)
        self.integer_terms = {
            node.name: _padded(sums(integers, node)) for node in graph.nodes if isinstance(node, Affine) and node.weight in graph.integers
        }

    def run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Returns every activation of one sample x [*input_shape]."""
        return {name: value[0] for name, value in self.run_batch(x[None]).items()}

    def run_batch(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Returns every activation of samples x [batch, *input_shape]; all of them executed with the same choices."""
        self.fused_nodes = set()
        self.choose()
        with np.errstate(invalid="ignore", over="ignore"):
            self.values = {self.graph.input: self.store(x.astype(np.float64)) if not self.raw else round_to(x, "fp32", flush=self.flush)}
            for node in self.graph.nodes:
                self.choose()
                self.values[node.name] = execute(node, self, *(self.values[name] for name in node.inputs))
        return self.values

    def choose(self) -> None:
        """Draws what one kernel does: flushing, fused multiply-add, a matrix unit, the order of its sums, fusion with a neighbour."""
        contract, draw = self.contract, self.rng.random
        self.flush = contract.subnormals == "flush" and draw() < 0.5
        self.fma = draw() < 0.5
        self.matrix_unit = SIGNIFICAND_BITS[contract.operand] < SIGNIFICAND_BITS[contract.accumulate] and draw() < 0.6
        self.truncate = contract.operand == "tf32" and draw() < 0.5
        self.fuse = draw() < 0.5
        self.reciprocal = draw() < 0.5
        sequential = contract.order == "sequential"
        self.order = "as stored" if sequential else str(self.rng.choice(ORDERS))
        self.tree = not sequential and draw() < 0.3
        self.block = int(self.rng.choice([1, 2, 4, 8, 16]))

    def store(self, x: np.ndarray) -> np.ndarray:
        return round_to(x, self.contract.storage, flush=self.flush)

    def accumulate(self, x: np.ndarray) -> np.ndarray:
        return round_to(x, self.contract.accumulate, flush=self.flush)

    def read(self, x: np.ndarray) -> np.ndarray:
        """Returns what a kernel sees of stored values: subnormal ones may be zero."""
        return self.store(x)  # a quantised activation is scale times an integer, which a float kernel rounds

    def constant(self, value: float) -> float:
        """Returns an attribute of an operator as it is stored."""
        return float(round_to(value, self.contract.storage)) if np.isfinite(value) else value

    def products(self, node: Affine, x: np.ndarray, sign: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Returns the factors [batch, outputs, terms] of an affine node's sum, its bias first as a product with one."""
        index, weight, bias = self.terms[node.name]
        contract = self.contract
        w = round_to(weight, contract.operand, self.truncate, self.flush)
        raw = node.inputs[0] in self.raw
        v = round_to(x.reshape(len(x), -1), "fp32" if raw else contract.operand, self.truncate, self.flush)[:, index]
        self.matrix_unit &= not raw
        v = np.where(weight != 0, v, 0.0)
        first = np.broadcast_to(self.read(bias)[:, None] * sign, (len(x), len(bias), 1))
        w = np.concatenate([first, np.broadcast_to(w * sign, v.shape)], axis=2)
        return w, np.concatenate([np.ones_like(first), v], axis=2)

    def integer_sum(self, node: Affine) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns a quantised layer's integer sum, converted to float32, fl(input scale · weight scale), and the bias behind the sum."""
        index, weight, bias = self.integer_terms[node.name]
        grid = self.grid(node.inputs[0])
        x = self.values[node.inputs[0]]
        steps = np.rint(x.reshape(len(x), -1) / grid.scale)[:, index]
        scale = np.broadcast_to(self.graph.integers[node.weight].scale.astype(np.float64), (node.shape[0],))
        scale = np.repeat(scale, node.size // node.shape[0])
        behind = np.zeros(node.size)
        if node.bias is not None and node.bias not in self.graph.integers:
            behind = np.repeat(self.graph.params[node.bias].astype(np.float64), node.size // node.shape[0])
        return round_to((weight * steps).sum(axis=2) + bias, "fp32"), round_to(scale * grid.scale, "fp32"), behind

    def scaled(self, total: np.ndarray, scale: np.ndarray, behind: np.ndarray) -> np.ndarray:
        """Returns total · scale + behind in float32: fused, or rounded after the product too."""
        product = total * scale  # exact in float64: 24 bits each
        return round_to((product if self.fma else round_to(product, "fp32")) + behind, "fp32")

    def grid(self, name: str) -> FakeQuant:
        """Returns the quantisation whose values an activation has, moved or selected."""
        node = self.graph.node(name)
        return node if isinstance(node, FakeQuant) else self.grid(node.inputs[0])

    def add_up(self, w: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Returns the sums over the last axis of w · v in the accumulator's format, as this kernel orders and rounds them."""
        w, v = self._ordered(w, v)
        if self.tree:
            return self._tree(w, v)
        if self.matrix_unit:
            return self._blocks(w, v)
        total = np.zeros(w.shape[:-1])
        for k in range(w.shape[-1]):
            product = w[..., k] * v[..., k]
            total = self.accumulate(total + (product if self.fma else self.accumulate(product)))
        return total

    def chain(self, w: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Returns the sum in the order of contract `chain`, the bias first, by fused multiply-add."""
        total = np.zeros(w.shape[:-1])
        for k in range(w.shape[-1]):
            total = self.accumulate(total + w[..., k] * v[..., k])
        return total

    def _ordered(self, w: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.order == "as stored":
            return w, v
        product = np.nan_to_num(w * v)
        keys = {
            "random": self.rng.random(product.shape[1:])[None] + 0 * product,
            "descending": -product,  # large positive terms, small ones, then large negative ones: what the detectors detect
            "ascending": product,
            "largest first": -np.abs(product),
            "smallest first": np.abs(product),
        }
        order = np.argsort(keys[self.order], axis=-1, kind="stable")
        return np.take_along_axis(w, order, -1), np.take_along_axis(v, order, -1)

    def _tree(self, w: np.ndarray, v: np.ndarray) -> np.ndarray:
        product = self.accumulate(w * v)
        partial = [product[..., k] for k in range(product.shape[-1])]
        while len(partial) > 1:
            i, j = sorted(self.rng.choice(len(partial), 2, replace=False))
            other = partial.pop(j)
            partial[i] = self.accumulate(partial[i] + other)
        return partial[0]

    def _blocks(self, w: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Aligns a block of exact products and the running sum to the largest of them, cuts the rest off, and truncates the sum."""
        fmt = self.contract.accumulate
        total = np.zeros(w.shape[:-1])
        for k in range(0, w.shape[-1], self.block):
            terms = np.concatenate([total[..., None], w[..., k : k + self.block] * v[..., k : k + self.block]], axis=-1)
            largest = np.frexp(np.max(np.abs(np.nan_to_num(terms)), axis=-1, keepdims=True))[1]
            quantum = np.maximum(np.ldexp(1.0, largest - SIGNIFICAND_BITS[fmt]), SMALLEST_SUBNORMAL[fmt])
            total = round_to((np.trunc(terms / quantum) * quantum).sum(axis=-1), fmt, truncate=True, flush=self.flush)
        return total


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


def _padded(rows: list[tuple[list[tuple[int, float]], float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (index, weight), each [outputs, most terms], and bias [outputs]; rows with fewer terms are filled up with weight zero."""
    most = max(1, *(len(row) for row, _ in rows)) if len(rows) > 1 else max(1, len(rows[0][0]))
    index, weight = np.zeros((len(rows), most), dtype=np.int64), np.zeros((len(rows), most))
    for o, (row, _) in enumerate(rows):
        for k, (i, value) in enumerate(row):
            index[o, k], weight[o, k] = i, value
    return index, weight, np.array([bias for _, bias in rows])


@singledispatch
def execute(node: Node, device: Device, *inputs: np.ndarray) -> np.ndarray:
    """Returns what the device computes for one node from stored inputs [batch, *shape]."""
    raise AssertionError(f"the simulated device does not know {type(node).__name__}: register it here")


@execute.register
def _(node: Affine, device: Device, x: np.ndarray) -> np.ndarray:
    if device.contract.integers and device.fuse:
        return device.scaled(*device.integer_sum(node)).reshape(len(x), *node.shape)
    add_up = device.chain if device.contract.order == "chain" else device.add_up
    total = add_up(*device.products(node, x))
    stored = round_to(total, "fp32", flush=device.flush) if node.name in device.unrounded else device.store(total)
    return stored.reshape(len(x), *node.shape)


@execute.register
def _(node: FakeQuant, device: Device, x: np.ndarray) -> np.ndarray:
    """x / scale, or x times its reciprocal, or an integer sum times one scale; the zero point before or after rounding; ties anywhere."""
    producer = next((one for one in device.graph.nodes if one.name == node.inputs[0]), None)
    if isinstance(producer, Affine) and device.fuse and producer.name in device.integer_terms:
        total, scale, behind = device.integer_sum(producer)
        t = device.scaled(total, round_to(scale / node.scale, "fp32"), round_to(behind / node.scale, "fp32")).reshape(x.shape)
    elif device.reciprocal:
        t = round_to(device.read(x) * float(round_to(1 / node.scale, "fp32")), "fp32")
    else:
        t = round_to(device.read(x) / node.scale, "fp32")
    offset = node.zero_point if device.fma else 0
    t = round_to(t + offset, "fp32")
    q = np.rint(t) if device.tree else np.sign(t) * np.floor(np.abs(t) + 0.5)
    return node.scale * np.clip(q + node.zero_point - offset - node.zero_point, *node.steps)


@execute.register
def _(node: AveragePool, device: Device, x: np.ndarray) -> np.ndarray:
    index, _, _ = device.terms[node.name]
    window = index.shape[1]
    v = (x if node.inputs[0] in device.raw else device.read(x)).reshape(len(x), -1)[:, index]
    device.matrix_unit = False
    if device.reciprocal and device.contract.order != "sequential":  # as a convolution
        total = device.add_up(np.full_like(v, round_to(1 / window, device.contract.storage)), v)
    else:
        total = device.add_up(np.ones_like(v), v)
        if window > 1:
            inverse = device.accumulate(np.float64(1 / window))
            divides = device.fma or device.contract.order == "sequential"
            total = device.accumulate(total / window if divides else total * inverse)
    return device.store(total).reshape(len(x), *node.shape)


def _terms_of(device: Device, name: str, sign: float) -> tuple[list[tuple[np.ndarray, np.ndarray]], bool]:
    """Returns the factors of what `name` adds to a fused sum, and whether an affine operator is among it."""
    producer = next((one for one in device.graph.nodes if one.name == name), None)
    alone = len(device.readers[name]) == 1 and name != device.graph.output
    if alone and isinstance(producer, Affine):
        return [device.products(producer, device.values[producer.inputs[0]], sign)], True
    if alone and isinstance(producer, Neg):
        return _terms_of(device, producer.inputs[0], -sign)
    if alone and isinstance(producer, Add | AddConstant | Sub):
        return _collect(device, producer, sign)
    value = device.read(device.values[name])
    value = value.reshape(len(value), -1, 1)
    return [(np.full_like(value, sign), value)], False


def _collect(device: Device, node: Add | AddConstant | Sub, sign: float) -> tuple[list[tuple[np.ndarray, np.ndarray]], bool]:
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    affine = False
    for i, name in enumerate(node.inputs):
        more, found = _terms_of(device, name, -sign if isinstance(node, Sub) and i else sign)
        parts, affine = parts + more, affine or found
    if isinstance(node, AddConstant):
        batch = len(device.values[node.inputs[0]])
        value = np.broadcast_to(device.params[node.constant], (batch, *node.shape)).reshape(batch, -1, 1)
        parts.append((np.full_like(value, sign), device.read(value)))
    return parts, affine


@execute.register
def _(node: Add | AddConstant | Sub, device: Device, x: np.ndarray, *others: np.ndarray) -> np.ndarray:
    if device.fuse and device.contract.order != "sequential":
        parts, affine = _collect(device, node, 1.0)
        if affine:
            device.fused_nodes.add(node.name)
            w, v = (np.concatenate(one, axis=2) for one in zip(*parts, strict=True))
            return device.store(device.add_up(w, v)).reshape(len(x), *node.shape)
    other = device.params[node.constant] if isinstance(node, AddConstant) else others[0]
    other = -device.read(other) if isinstance(node, Sub) else device.read(other)
    return device.store(device.accumulate(device.read(x) + other))


@execute.register
def _(node: MulConstant, device: Device, x: np.ndarray) -> np.ndarray:
    return device.store(device.accumulate(device.read(x) * device.read(device.params[node.constant])))


@execute.register
def _(node: DivConstant, device: Device, x: np.ndarray) -> np.ndarray:
    divisor = device.read(device.params[node.constant])
    with np.errstate(divide="ignore"):
        if device.reciprocal and device.contract.order != "sequential":
            return device.store(device.accumulate(device.read(x) * device.accumulate(1 / divisor)))
        return device.store(device.accumulate(device.read(x) / divisor))


# Operators that only choose among values take them as they are stored: a kernel that read a subnormal one as zero would be as one whose
# producer had stored zero, which it may.
@execute.register
def _(node: Relu, device: Device, x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


@execute.register
def _(node: LeakyRelu, device: Device, x: np.ndarray) -> np.ndarray:
    slope = device.constant(node.slope) if device.reciprocal else node.slope
    return np.where(x >= 0, x, device.store(device.accumulate(device.read(x) * slope)))


@execute.register
def _(node: Clip, device: Device, x: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(x, device.constant(node.lowest)), device.constant(node.highest))


@execute.register
def _(node: Sigmoid | Tanh, device: Device, x: np.ndarray) -> np.ndarray:
    """Any stored number within the contract's error of the function."""
    storage = device.contract.storage
    wide = device.read(x).astype(np.longdouble)
    true = (np.tanh(wide) if isinstance(node, Tanh) else 1 / (1 + np.exp(-wide))).astype(np.float64)
    allowed = FUNCTION_ERROR[storage]
    reach = allowed - ldexp(1.0, -SIGNIFICAND_BITS[storage]) - SMALLEST_NORMAL[storage]
    push = device.rng.choice([-1.0, 1.0]) if device.fma else device.rng.uniform(-1, 1, size=true.shape)
    return round_to(true + push * max(reach, 0.0), storage)


@execute.register
def _(node: MaxPool, device: Device, x: np.ndarray) -> np.ndarray:
    return apply(node, {}, torch.from_numpy(x)).numpy()


@execute.register
def _(node: Neg | Reshape | Transpose | Concat | Slice | Gather, device: Device, *inputs: np.ndarray) -> np.ndarray:
    return apply(node, {}, *(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs)).numpy()


@execute.register
def _(node: Pad, device: Device, x: np.ndarray) -> np.ndarray:
    sizes = [(0, 0), *zip(node.before, node.after, strict=True)]
    return np.pad(x, sizes, constant_values=device.constant(node.value))
