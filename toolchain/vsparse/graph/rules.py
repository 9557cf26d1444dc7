"""What the graph asks of every operator beside its shape: one table for each question, filled by the families of `graph/operators`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from vsparse.errors import InputError
from vsparse.graph.core import Graph, Node, Unary


@singledispatch
def apply(node: Node, params: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
    """Returns the output of one node for inputs [batch, *shape]; batch normalisation uses the statistics in `params`."""
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, which cannot be executed')


@singledispatch
def check_values(node: Node, params: Mapping[str, NDArray[np.float32]]) -> None:
    """Raises InputError where a node cannot be computed with the values of its parameters; most can, with any."""


class OnnxForm(NamedTuple):
    """A node as ONNX writes it: the operator, the names of its inputs after the activations, and its attributes."""

    operator: str
    inputs: list[str]
    attributes: dict[str, Any]


class OnnxNames(Protocol):
    """What a rule of `onnx_form` may ask of the writer."""

    graph: Graph
    float_type: type[np.floating[Any]]

    def param(self, name: str, transposed: bool = False) -> str:
        """Returns the name under which the file has a parameter of the graph, or the transpose of a matrix."""
        ...

    def store(self, name: str, value: NDArray[Any]) -> str:
        """Adds an initializer that is no parameter of the graph, with a name like `name`, and returns that name."""
        ...


@singledispatch
def onnx_form(node: Node, names: OnnxNames) -> OnnxForm:
    """Returns the one ONNX operator that a node is; InputError for a node that has none."""
    if not node.onnx:
        raise InputError(f'node "{node.name}" has type {type(node).__name__}, which cannot be exported')
    return OnnxForm(node.onnx, [names.param(name) for name in node.params], {})


class NodeModule(nn.Module):
    """A node without parameters as a module, for which torch has a function and no layer."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns what the node computes of its inputs."""
        return apply(self.node, {}, *inputs)


@singledispatch
def torch_layer(node: Node, graph: Graph) -> nn.Module:
    """Returns a module that computes what a node does; InputError for a node that has none."""
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, for which torch has no layer here')


@torch_layer.register
def _(node: Unary, graph: Graph) -> nn.Module:
    return NodeModule(node)
