"""Common base of data moves: a move is described once, by the elements that it takes; rules that it does not override are derived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vsparse.errors import InputError
from vsparse.graph.core import Graph, Node, Shape
from vsparse.graph.rules import NodeModule, apply, torch_layer
from vsparse.graph.shapes import shape_rule, show

__all__ = ["Move"]

# Elements of the inputs up to which an index map is remembered: 64 of them take less than 64 MB where nothing is repeated.
MAX_REMEMBERED = 2**17


@dataclass(frozen=True, kw_only=True)
class Move(Node):
    """An operator each of whose outputs is an element of its inputs, or one constant: exact in every format.

    A new move defines `rearranged`, and `fill` where it inserts a constant. Its shape, execution, fingerprint and bounds follow from the
    index map that these give; where a view of the memory is cheaper than picking elements it registers rules of its own. One that can make
    many more elements than it reads registers its shape, so that `shapes.MAX_ELEMENTS` is compared before memory is asked for. All numbers
    that `rearranged` needs are fields of the node (tuples, so that nodes can be keys).
    """

    @property
    def fill(self) -> float:
        """The constant."""
        return 0.0

    def rearranged(self, *inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the output of one sample for inputs of one sample; −1 stands for the constant.

        Raises IndexError or ValueError for inputs that the operator does not fit.
        """
        raise NotImplementedError

    def index_map(self, shapes: Sequence[Shape]) -> NDArray[np.int64]:
        """Returns for each output element, [*shape], which element of the inputs it is, or −1 for the constant.

        `shapes` are those of the inputs, whose elements are counted one input after the other, each in row-major order.
        """
        small = sum(prod(shape) for shape in shapes) <= MAX_REMEMBERED
        return (_remembered if small else _index_map)(self, tuple(shapes))


def _index_map(node: Move, shapes: tuple[Shape, ...]) -> NDArray[np.int64]:
    ends = np.cumsum([prod(shape) for shape in shapes])
    inputs = [np.arange(end - prod(shape), end, dtype=np.int64).reshape(shape) for shape, end in zip(shapes, ends, strict=True)]
    found = np.ascontiguousarray(node.rearranged(*inputs))
    found.flags.writeable = False
    return found


_remembered = lru_cache(maxsize=64)(_index_map)


@shape_rule.register
def _(node: Move, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    try:
        return node.index_map(inputs).shape
    except (IndexError, ValueError) as error:
        raise InputError(f'{type(node).__name__} "{show(node.name)}" does not fit its input ({error})') from error


@apply.register
def _(node: Move, params: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
    found = node.index_map([tuple(x.shape[1:]) for x in inputs])
    parts = [x.flatten(1) for x in inputs]
    if (found < 0).any():  # counted from behind, as numpy counts, it is the last element
        parts.append(parts[0].new_full((len(parts[0]), 1), node.fill))
        found = np.where(found < 0, sum(part.shape[1] for part in parts) - 1, found)
    flat = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    indices = torch.tensor(found.reshape(-1), device=flat.device)
    return flat.index_select(1, indices).reshape(len(flat), *found.shape)


@torch_layer.register
def _(node: Move, graph: Graph) -> nn.Module:
    return NodeModule(node)
