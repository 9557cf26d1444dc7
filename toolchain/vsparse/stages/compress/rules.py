"""What compression must know of an operator, and the table that it is looked up in; each family has its module in `operators/`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vsparse.errors import InputError
from vsparse.graph.execute import apply
from vsparse.graph.ir import Graph, Node
from vsparse.stages.compress.exact_values import ExactValues
from vsparse.stages.compress.reduced_graph import Mask, ReducedGraph
from vsparse.stages.compress.running_error import NodeRun

N = TypeVar("N", bound=Node)
Constants = list[Fraction | None]  # per unit: its value at every position and for every input, or None
ExactBiases = Mapping[str, list[Fraction]]


class CompressionRules(Generic[N]):
    """What compression knows of one operator. The defaults are those of one that it leaves alone: its units are not followed, and stay.

    A unit is one index of the first axis of an activation (`units`).
    """

    # Whether rational numbers are mapped to rational ones that can be told here (`exact`).
    has_exact_values: ClassVar[bool] = True

    def mixes(self, node: N) -> bool:
        """Returns whether every output reads all units of the input, so that input and output units are independent."""
        return False

    def ties(self, node: N, graph: Graph, name: str) -> NDArray[np.int64] | None:
        """Returns the pairs [2, n] (unit of the input `name`, unit of the output) that stand and fall together; None: not followed."""
        return None

    def constants(self, node: N, reduced: ReducedGraph, inputs: list[Constants], dead: Mapping[str, Mask]) -> Constants:
        """Returns the units of the output known to be constant, from those of the inputs; `dead` names ReLU units proved to be zero."""
        return [None] * node.shape[0]

    def pack(
        self, node: N, graph: Graph, alive: Mask, alive_in: Mask, params: dict[str, NDArray[np.float32]], exact: dict[str, list[Fraction]]
    ) -> N:
        """Returns the node on the units that are left, `alive` of its output and `alive_in` of its first input, and cuts its parameters.

        AssertionError where an entry that is cut off could matter.
        """
        return node

    def exact(self, node: N, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        """Returns the exact output for one sample; `biases` are exact ones in place of those that are stored."""
        raise InputError(f'node "{node.name}" has type {type(node).__name__}, which has no exact evaluation')

    def error(self, node: N, run: NodeRun) -> Tensor:
        """Returns |computed − exact| of the output, given what was computed and the errors of the inputs (docs/numerics.md, section 3).

        The default is that of an operator that rounds nothing and passes errors on as it does values.
        """
        return apply(node, {}, *run.errors)

    def renamed(self, node: N, names: Mapping[str, str]) -> N:
        """Returns the node with other names of its parameters."""
        fields: dict[str, Any] = {
            key: names[value] for key, value in vars(node).items() if isinstance(value, str) and key != "name" and value in names
        }
        return replace(node, **fields)


_RULES: dict[type[Node], CompressionRules[Any]] = {}
R = TypeVar("R", bound="type[CompressionRules[Any]]")


def register(*kinds: type[Node]) -> Callable[[R], R]:
    """Puts the rules of a class into the table, for nodes of these types and for those derived from them."""

    def put(rules: R) -> R:
        for kind in kinds:
            _RULES[kind] = rules()
        return rules

    return put


def rules_of(node: Node) -> CompressionRules[Any]:
    """Returns the rules of a node's type, or of the nearest type that it is derived from; InputError, which names it, where none are."""
    for kind in type(node).__mro__:
        if kind in _RULES:
            return _RULES[kind]
    raise InputError(
        f'node "{node.name}" has type {type(node).__name__}, which compression does not read; compress the float32 network without it'
    )


def require(nodes: Iterable[Node]) -> None:
    """Raises InputError, which names the node, unless all nodes have rules: asked before any work."""
    for node in nodes:
        rules_of(node)


def one_to_one(node: Node, graph: Graph, name: str) -> NDArray[np.int64]:
    """Returns the ties of an operator that carries unit i to unit i, or to the i-th group of units where it makes several of each."""
    units = np.arange(node.shape[0])
    return np.stack([units // (node.shape[0] // graph.shape_of(name)[0]), units])


class UnitByUnit(CompressionRules[N]):
    """An operator that carries unit i of each input to unit i of the output."""

    def ties(self, node: N, graph: Graph, name: str) -> NDArray[np.int64] | None:
        return one_to_one(node, graph, name)


def per_unit(constant: NDArray[np.float32], shape: tuple[int, ...]) -> Constants:
    """Returns the value of a broadcast constant in each unit, None where it varies inside the unit."""
    rows = np.broadcast_to(constant.reshape(constant.shape[max(0, constant.ndim - len(shape)) :]), shape).reshape(shape[0], -1)
    return [Fraction(float(row[0])) if (row == row[0]).all() else None for row in rows]
