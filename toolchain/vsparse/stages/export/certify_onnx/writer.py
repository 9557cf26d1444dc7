"""Writes the nodes of the certifying file, and keeps the two ends of every activation's interval under their names there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vsparse.graph.core import Graph, Shape
from vsparse.stages.export.certify_onnx.names import PREFIX
from vsparse.stages.export.certify_onnx.rounded import Numbers


@dataclass(frozen=True)
class EndPair:
    """An interval [lower, upper] of an activation in the file: as two tensors, as one that holds upper and then lower, or as both.

    `shape` is that of one sample of the activation; the ends are stacked along its first axis. `nonnegative` says that both ends as
    computed are at least 0. `limit`, float64 of that shape, bounds the magnitudes of both ends and of the activation, whatever the input;
    None where no bound is kept. Ends and limit are in units of `scale`: 1, or that of a grid whose steps they are. `in_steps` says that a
    quantisation alone reads them, in its steps and already as far out as it may round (`certify_onnx/quantised.py`).
    """

    shape: Shape
    upper: str = ""
    lower: str = ""
    stacked: str = ""
    nonnegative: bool = False
    limit: Numbers | None = None
    scale: float = 1.0
    in_steps: bool = False

    @property
    def stacked_shape(self) -> Shape:
        """The shape of one sample of the stacked tensor."""
        return (2 * self.shape[0], *self.shape[1:])


class TwinWriter:
    """Collects nodes and initializers whose names begin with `PREFIX`, so that they meet none of the network's own.

    `slack` times as much as must be is charged for all that is rounded: 1, but in files that others are compared with.
    """

    float_type: type[np.floating[Any]] = np.float32

    def __init__(self, graph: Graph, opset: int, slack: float = 1.0) -> None:
        self.graph, self.opset, self.slack = graph, opset, slack
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, NDArray[Any]] = {}
        # By the name of ends that are steps of a grid: the same ends as values.
        self.values: dict[str, EndPair] = {}
        self._taken: set[str] = set()

    def free(self, hint: str) -> str:
        """Returns a name that is not in use."""
        name, count = f"{PREFIX}{hint}", 1
        while name in self._taken:
            count += 1
            name = f"{PREFIX}{hint}_{count}"
        self._taken.add(name)
        return name

    def op(self, kind: str, inputs: Sequence[str], hint: str, **attributes: Any) -> str:
        """Adds a node with one output and returns the name of that."""
        name = self.free(hint)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, hint: str, value: NDArray[Any] | np.generic) -> str:
        """Adds an initializer and returns its name."""
        name = self.free(hint)
        self.initializers[name] = np.ascontiguousarray(value)
        return name

    def reduce(self, kind: str, source: str, axes: list[int], hint: str) -> str:
        """Adds a reduction over `axes`, which it drops; how axes are given depends on the opset."""
        if self.opset >= 18:
            return self.op(kind, [source, self.constant(f"{hint}.axes", np.array(axes, np.int64))], hint, keepdims=0)
        return self.op(kind, [source], hint, axes=axes, keepdims=0)

    def param(self, name: str, transposed: bool = False) -> str:
        """Refuses: what moves and pools elements has no parameters."""
        raise AssertionError(name)

    def store(self, name: str, value: NDArray[Any]) -> str:
        """Adds an initializer, for the rules that write a node of the graph."""
        return self.constant(name, value)

    def protos(self) -> list[onnx.TensorProto]:
        """Returns the initializers as the file has them."""
        return [numpy_helper.from_array(value, name) for name, value in self.initializers.items()]

    def pair(self, ends: EndPair, hint: str) -> EndPair:
        """Returns the ends as two tensors."""
        if ends.upper:
            return ends
        names = [self.free(f"{hint}.{end}") for end in ("upper", "lower")]
        sizes = self.constant(f"{hint}.sizes", np.array([ends.shape[0]] * 2, np.int64))
        self.nodes.append(helper.make_node("Split", [ends.stacked, sizes], names, name=names[0], axis=1))
        return replace(ends, upper=names[0], lower=names[1])

    def stack(self, ends: EndPair, hint: str) -> EndPair:
        """Returns the ends as one tensor."""
        if ends.stacked:
            return ends
        return replace(ends, stacked=self.op("Concat", [ends.upper, ends.lower], f"{hint}.ends", axis=1))
