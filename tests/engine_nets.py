"""A small network around each node type of the graph, in its middle and at its end, with points and the values there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vsparse.bounds import Box
from vsparse.graph import (
    Add,
    AddConstant,
    AveragePool,
    BatchNorm,
    Clip,
    Concat,
    Conv,
    DivConstant,
    FakeQuant,
    Gather,
    Gemm,
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
    run,
    validate,
)

MAP = (2, 4, 4)
CLASSES = 3
Params = dict[str, np.ndarray]
Builder = Callable[[Params, Callable[..., np.ndarray]], Node]


@dataclass(frozen=True)
class Case:
    """A network, a box [1, 1, 4, 4] float64, points in it, all values there in float64, and a row of the output."""

    graph: Graph
    box: Box
    points: Tensor
    values: dict[str, Tensor]
    row: Tensor

    @property
    def lowest(self) -> float:
        """The least row · output at any of the points."""
        return float((self.values[self.graph.output].flatten(1) @ self.row).min())


def _with(params: Params, **values: np.ndarray) -> None:
    params.update({name: np.asarray(value, np.float32) for name, value in values.items()})


def conv(params: Params, draw: Callable[..., np.ndarray]) -> Node:
    _with(params, w=draw(4, 1, 3, 3), b=draw(4))
    return Conv(name="f", inputs=("a",), shape=(4, 2, 4), weight="w", bias="b", stride=(2, 1), pads=(1, 1, 0, 1), groups=2)


def gemm(params: Params, draw: Callable[..., np.ndarray]) -> Node:
    _with(params, w=draw(6, 32), b=draw(6))
    return Gemm(name="f", inputs=("flat",), shape=(6,), weight="w", bias="b")


def batch_norm(params: Params, draw: Callable[..., np.ndarray]) -> Node:
    _with(params, s=draw(2), t=draw(2), m=draw(2), w=np.abs(draw(2)) + 1)
    return BatchNorm(name="f", inputs=("a",), shape=MAP, scale="s", bias="t", mean="m", variance="w", epsilon=1e-5)


def constant(kind: type) -> Builder:
    def build(params: Params, draw: Callable[..., np.ndarray]) -> Node:
        value = draw(2, 1, 1)
        _with(params, k=np.where(value == 0, 0.5, value))
        return kind(name="f", inputs=("a",), shape=MAP, constant="k")

    return build


def plain(kind: type, *, shape: tuple[int, ...] = MAP, inputs: tuple[str, ...] = ("a",), **fields: object) -> Builder:
    return lambda params, draw: kind(name="f", inputs=inputs, shape=shape, **fields)


# Each reads `a`, a ReLU [2, 4, 4], or `d`, another activation of its shape, or `flat`, the first flattened.
BUILDERS: dict[type[Node], Builder] = {
    Conv: conv,
    Gemm: gemm,
    BatchNorm: batch_norm,
    AddConstant: constant(AddConstant),
    MulConstant: constant(MulConstant),
    DivConstant: constant(DivConstant),
    Add: plain(Add, inputs=("a", "d")),
    Sub: plain(Sub, inputs=("a", "d")),
    Neg: plain(Neg),
    Relu: plain(Relu, inputs=("d",)),
    LeakyRelu: plain(LeakyRelu, inputs=("d",), slope=0.125),
    Clip: plain(Clip, inputs=("d",), lowest=-0.25, highest=0.5),
    Sigmoid: plain(Sigmoid, inputs=("d",)),
    Tanh: plain(Tanh, inputs=("d",)),
    MaxPool: plain(MaxPool, inputs=("d",), shape=(2, 2, 2), kernel=(3, 3), stride=(2, 2), pads=(1, 1, 0, 0)),
    AveragePool: plain(AveragePool, shape=(2, 2, 2), kernel=(2, 2), stride=(2, 2)),
    Reshape: plain(Reshape, shape=(4, 2, 4)),
    Transpose: plain(Transpose, shape=(4, 2, 4), order=(1, 0, 2)),
    Concat: plain(Concat, inputs=("a", "d"), shape=(2, 8, 4), axis=1),
    Slice: plain(Slice, shape=(1, 2, 3), starts=(1, 0, 1), stops=(2, 3, 4), steps=(1, 2, 1)),
    Gather: plain(Gather, shape=(2, 4, 5), axis=2, indices=(3, 0, 0, 2, 3)),
    Pad: plain(Pad, shape=(2, 5, 6), before=(0, 1, 0), after=(0, 0, 2), value=0.5),
    FakeQuant: plain(FakeQuant, inputs=("d",), scale=0.0078125, zero_point=3, lowest=-128, highest=127),
}


def node_types() -> set[type[Node]]:
    """Returns every node type of the graph: the subclasses of Node that have none of their own."""
    found, waiting = set(), [Node]
    while waiting:
        kind = waiting.pop()
        below = [one for one in kind.__subclasses__() if one.__module__.startswith("vsparse.graph.")]  # training adds one of its own
        waiting += below
        if not below:
            found.add(kind)
    return found


def case(kind: type[Node], tail: bool, seed: int = 0) -> Case:
    """Returns the network with one operator of this type after the first ReLU; with `tail` it makes the output, else two layers follow.

    All weights are numbers of few bits, which every storage format holds.
    """
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.integers(-12, 13, size=shape) / 16

    params: Params = {}
    _with(params, c=draw(2, 1, 3, 3), e=draw(2), g=draw(2, 2, 1, 1))
    f = BUILDERS[kind](params, draw)
    nodes: list[Node] = [
        Conv(name="z", inputs=("x",), shape=MAP, weight="c", bias="e", pads=(1, 1, 1, 1)),
        Relu(name="a", inputs=("z",), shape=MAP),
        Conv(name="d", inputs=("a",), shape=MAP, weight="g", bias=None),
        Reshape(name="flat", inputs=("a",), shape=(32,)),
        f,
        Reshape(name="y" if tail else "r", inputs=("f",), shape=(f.size,)),
    ]
    if not tail:
        _with(params, u=draw(8, f.size), o=draw(8), v=draw(CLASSES, 8))
        nodes += [
            Gemm(name="h", inputs=("r",), shape=(8,), weight="u", bias="o"),
            Relu(name="q", inputs=("h",), shape=(8,)),
            Gemm(name="y", inputs=("q",), shape=(CLASSES,), weight="v", bias=None),
        ]
    used = {name for node in (f,) for name in node.inputs}
    nodes = [node for node in nodes if node.name not in ("d", "flat") or node.name in used]
    known = {name for node in nodes for name in node.params}
    graph = validate(Graph("x", (1, 4, 4), tuple(nodes), "y", {name: value for name, value in params.items() if name in known}))
    centre = torch.tensor(rng.integers(2, 15, size=(1, 1, 4, 4)) / 16)
    box = centre - 0.0625, centre + 0.0625
    share = torch.tensor(rng.random((300, 1, 4, 4)))
    share[:150] = share[:150].round()
    points = (box[0] + share * (box[1] - box[0])).float().double()
    values = run(graph, graph.tensors(torch.float64), points, keep=True)
    row = torch.tensor(rng.integers(-3, 4, size=graph.shape_of("y")[0]).astype(np.float64))
    return Case(graph, box, points, values, torch.where(row == 0, 1.0, row))
