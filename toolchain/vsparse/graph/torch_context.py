"""Shared by the readers of torch layers and functions: the graph under construction, and the tables in which readers are registered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vsparse.graph.builder import Builder
from vsparse.graph.core import Node, Shape
from vsparse.graph.refusal import UnsupportedOperator


class TracedBatchSize:
    """Stands for the batch size while shapes are followed through `x.view(x.size(0), -1)`."""


BATCH = TracedBatchSize()


@dataclass(frozen=True)
class TracedActivation:
    """The value of a node of the graph."""

    name: str


@dataclass(frozen=True)
class TracedConstant:
    """A buffer, or what constants were combined to; `name` is that of the buffer, empty for a computed one."""

    name: str
    value: NDArray[np.float64]
    trainable: bool = False


class TorchContext:
    """The graph under construction, and queries on the values seen so far."""

    def __init__(self, input_shape: Shape) -> None:
        self.builder = Builder("input", input_shape)
        self.name = "input"
        self.used: dict[str, Tensor] = {}

    def shape(self, x: TracedActivation) -> Shape:
        """Returns the shape of an activation without the batch."""
        return self.builder.shapes[x.name]

    def activation(self, x: Any) -> TracedActivation:
        """Returns x, which must be an activation."""
        if not isinstance(x, TracedActivation):
            raise UnsupportedOperator("is applied to something that is not an activation")
        return x

    def fresh(self) -> str:
        """Returns an unused name for the operation that is read now."""
        return self.builder.unique(self.name)

    def add(self, kind: type[Node], *inputs: Any, **fields: Any) -> TracedActivation:
        """Appends a node that reads activations, and returns its own."""
        sources = tuple(self.activation(x).name for x in inputs)
        return TracedActivation(self.builder.add(kind(name=self.fresh(), inputs=sources, shape=fields.pop("shape", ()), **fields)))

    def axis(self, dim: Any, rank: int) -> int:
        """Returns a dimension of a tensor of so many dimensions, batch included, as one of a sample's shape."""
        if not isinstance(dim, int) or not -rank <= dim < rank:
            raise UnsupportedOperator(f"has the dimension {dim}, which its input does not have")
        if dim % rank == 0:
            raise UnsupportedOperator("works along the batch; samples must stay apart")
        return dim % rank - 1

    def require_first_use(self, path: str) -> None:
        """Refuses a layer with parameters that has made an activation before."""
        if path in self.builder.shapes:
            raise UnsupportedOperator("is used twice; make two layers, one for each use")

    def tensor(self, name: str, value: Tensor, height: bool = False) -> str:
        """Stores a parameter of the module under its dotted name; refuses one whose memory another one has too (tied weights).

        With `height`, the kernels of a row [out, in, n] are stored as those of a map of height 1.
        """
        if name in self.used:
            raise UnsupportedOperator(f'shares the parameter "{name}" with another layer; give each layer its own')
        if value.dtype != torch.float32:  # a statistic of batch norm
            raise UnsupportedOperator(f'has the parameter "{name}" of type {value.dtype}; float32 is wanted')
        other = next((known for known, tensor in self.used.items() if share_memory(tensor, value)), None)
        if other is not None:
            layer, _, own = name.rpartition(".")
            raise UnsupportedOperator(
                f'is tied: "{name}" and "{other}" are one tensor, and training, packing and export treat each layer alone; untie them '
                f"with {layer or 'layer'}.{own} = torch.nn.Parameter({layer or 'layer'}.{own}.detach().clone())"
            )
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise UnsupportedOperator(
                f'has the parameter "{name}", whose entries share memory (expand); give it memory of its own with .clone()'
            )
        self.used[name] = value
        stored = value.detach().cpu().numpy().copy()
        return self.builder.param(name, stored[:, :, None] if height else stored)


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have bytes in common."""
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr() or not one.numel() or not other.numel():
        return False
    spans = []
    for tensor in (one, other):
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        spans.append((tensor.storage_offset(), tensor.storage_offset() + last))
    return spans[0][0] <= spans[1][1] and spans[1][0] <= spans[0][1]


def number(value: Any) -> float:
    """Returns a number as float32 holds it, which is what torch computes with."""
    if isinstance(value, bool) or not isinstance(value, int | float) or np.isnan(value):
        raise UnsupportedOperator("needs numbers for its constants")
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def pair(value: Any) -> tuple[int, int]:
    """Returns one number, or two of them, as two."""
    a, b = value if isinstance(value, tuple | list) else (value, value)
    return int(a), int(b)


# Takes the context and what torch's function takes, and returns its result.
Trace = Callable[..., Any]
AnyTrace = TypeVar("AnyTrace", bound=Trace)
# Takes the context, the layer, its dotted name and the activation that it is called with.
TraceLayer = Callable[[TorchContext, Any, str, TracedActivation], TracedActivation]

# Keyed by the function itself: some of torch's wrappers share one name.
FUNCTIONS: dict[Any, Trace] = {}
METHODS: dict[str, Trace] = {}
LAYERS: dict[type[nn.Module], TraceLayer] = {}


def traces(*targets: Any) -> Callable[[AnyTrace], AnyTrace]:
    """Enters a function in the tables of torch functions and, by their names, of tensor methods that are read."""

    def enter(function: AnyTrace) -> AnyTrace:
        METHODS.update({target: function for target in targets if isinstance(target, str)})
        FUNCTIONS.update({target: function for target in targets if not isinstance(target, str)})
        return function

    return enter


def traces_layer(*kinds: type[nn.Module]) -> Callable[[TraceLayer], TraceLayer]:
    """Enters a function in the table of layers that are read."""

    def enter(function: TraceLayer) -> TraceLayer:
        LAYERS.update(dict.fromkeys(kinds, function))
        return function

    return enter
