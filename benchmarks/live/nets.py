"""Random small networks over all operators that the live certificate knows, some with weights chosen to do harm."""

from __future__ import annotations

import numpy as np

from vsparse.graph import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Relu, Reshape, validate
from vsparse.graph.ir import Node
from vsparse.graph.shapes import output_shape
from vsparse.stages.export.quantise import quantise

KINDS = ("plain", "huge", "tiny", "subnormal", "cancellation", "trap")
OPERATORS = (Conv, Gemm, Relu, MaxPool, AveragePool, Add, AddConstant, MulConstant, Reshape)
# Corners are all tried: no more than 2^8 of them.
SHAPES = ((1, 2, 4), (2, 2, 2), (1, 2, 3), (8,), (5,), (1, 1, 8))


class RandomNet:
    """Grows a network of random operators from one input; `kind` says what its weights are like."""

    def __init__(self, rng: np.random.Generator, kind: str, quantisable: bool = False) -> None:
        self.rng, self.kind, self.quantisable = rng, kind, quantisable
        self.shape = SHAPES[int(rng.integers(len(SHAPES)))]
        self.shapes: dict[str, tuple[int, ...]] = {"x": self.shape}
        self.nodes: list[Node] = []
        self.params: dict[str, np.ndarray] = {}
        self.last = "x"

    def graph(self) -> Graph:
        """Returns a whole network with 2 to 4 classes."""
        for _ in range(int(self.rng.integers(1, 5))):
            self._step()
        if len(self.shapes[self.last]) > 1:
            self._add(Reshape, shape=(int(np.prod(self.shapes[self.last])),))
        if self.rng.random() < 0.5:
            self._gemm(int(self.rng.integers(3, 9)))
            self._add(Relu)
        self._gemm(int(self.rng.integers(2, 5)))
        if self.rng.random() < 0.2 and not self.quantisable:  # a last operator whose rows are not folded
            self._add(AddConstant, constant=self._weights(*self.shapes[self.last]))
        return validate(Graph(input="x", input_shape=self.shape, nodes=tuple(self.nodes), output=self.last, params=self.params))

    def _step(self) -> None:
        constants = () if self.quantisable and self.nodes else (self._constants,)
        flat = len(self.shapes[self.last]) == 1
        choices = (self._hidden, *constants) if flat else (self._conv, self._pool, self._skip, *constants)
        choices[int(self.rng.integers(len(choices)))]()

    def _hidden(self) -> None:
        self._gemm(int(self.rng.integers(2, 9)))
        self._add(Relu)

    def _constants(self) -> None:
        shape = self.shapes[self.last]
        some = (shape[0], *([1] * (len(shape) - 1)))
        self._add(AddConstant if self.rng.random() < 0.5 else MulConstant, constant=self._weights(*some))

    def _conv(self) -> None:
        channels, height, width = self.shapes[self.last]
        kernel = (int(self.rng.integers(1, min(3, height) + 1)), int(self.rng.integers(1, min(3, width) + 1)))
        groups = channels if self.rng.random() < 0.2 else 1
        out = groups * int(self.rng.integers(1, 4))
        weight = self._weights(out, channels // groups, *kernel)
        bias = self._weights(out) if self.rng.random() < 0.8 else None
        pads = tuple(int(p) for p in self.rng.integers(0, 2, 4))
        self._add(Conv, weight=weight, bias=bias, groups=groups, pads=pads, stride=(1, int(self.rng.integers(1, 3))))
        if self.rng.random() < 0.8:
            self._add(Relu)

    def _pool(self) -> None:
        _, height, width = self.shapes[self.last]
        kernel = (min(2, height), min(int(self.rng.integers(1, 4)), width))
        if self.rng.random() < 0.5:
            self._add(MaxPool, kernel=kernel, stride=(1, 1))
        else:
            self._add(AveragePool, kernel=kernel, stride=(1, 1))

    def _skip(self) -> None:
        before, channels = self.last, self.shapes[self.last][0]
        self._add(Conv, weight=self._weights(channels, channels, 1, 1), bias=self._weights(channels), groups=1)
        if self.rng.random() < 0.5:
            self._add(Relu)
        self._add(Add, inputs=(before, self.last))

    def _gemm(self, out: int) -> None:
        weight = self._weights(out, self.shapes[self.last][0])
        self._add(Gemm, weight=weight, bias=self._weights(out) if self.rng.random() < 0.8 else None)

    def _weights(self, *shape: int) -> str:
        value = self.rng.normal(size=shape)
        if self.kind == "huge":
            value *= 10.0 ** self.rng.integers(0, 4)
        elif self.kind == "tiny":
            value *= 10.0 ** -self.rng.integers(2, 9)
        elif self.kind == "subnormal":
            value *= np.where(self.rng.random(shape) < 0.4, 1e-39, 1.0)
        elif self.kind == "cancellation":  # pairs of large numbers whose difference is what counts
            value = np.where(self.rng.random(shape) < 0.5, np.round(value) * 1000, value)
        elif self.kind == "trap":  # numbers that float32 swallows beside others
            value = np.where(self.rng.random(shape) < 0.3, np.sign(value) * 2.0**14, value * 2.0**-12)
        value[self.rng.random(shape) < 0.2] = 0
        name = f"p{len(self.params)}"
        self.params[name] = value.astype(np.float32)
        return name

    def _add(self, kind: type[Node], inputs: tuple[str, ...] = (), shape: tuple[int, ...] = (), **fields: object) -> None:
        inputs = inputs or (self.last,)
        name = f"n{len(self.nodes)}"
        sizes = {key: value.shape for key, value in self.params.items()}
        found = output_shape(kind(name=name, inputs=inputs, shape=shape, **fields), [self.shapes[one] for one in inputs], sizes)  # type: ignore[arg-type]
        self.nodes.append(kind(name=name, inputs=inputs, shape=found, **fields))  # type: ignore[arg-type]
        self.last, self.shapes[name] = name, found


def random_net(rng: np.random.Generator, kind: str) -> Graph:
    """Returns a network of a kind of weights; the same generator gives the same one."""
    return RandomNet(rng, kind).graph()


def random_int8_net(rng: np.random.Generator, kind: str) -> Graph:
    """Returns a random network, its weights and activations quantised, with grids for random inputs, or for a few alike: too small ones."""
    graph = RandomNet(rng, kind, quantisable=True).graph()
    samples = rng.random((16, *graph.input_shape)).astype(np.float32)
    return quantise(graph, samples if rng.random() < 0.7 else 0.5 + 0.02 * samples)
