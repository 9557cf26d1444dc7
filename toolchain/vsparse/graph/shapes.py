"""Output shapes of nodes: each family registers the rules of its operators, which check their geometry too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import singledispatch
from math import prod

from vsparse.errors import InputError
from vsparse.graph.core import Node, Shape, Unary

# A sample's activation above this is no network for a small computer; the limit keeps a damaged file from asking for all memory.
MAX_ELEMENTS = 2**24


def show(name: object, most: int = 80) -> str:
    """Returns a name from a file, safe to print in a sentence: printable characters only, and not too many."""
    text = "".join(c if c.isprintable() else "?" for c in str(name))
    return text if len(text) <= most else text[: most - 3] + "..."


def window_output(size: int, kernel: int, stride: int, before: int, after: int, dilation: int = 1) -> int:
    """Returns how many windows fit into `size` padded positions; zero or less when none does."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def require(condition: bool, node: Node, problem: str) -> None:
    """Raises InputError that names the node unless a condition holds."""
    if not condition:
        raise InputError(f'{type(node).__name__} "{show(node.name)}" {problem}')


def output_shape(node: Node, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    """Returns the shape that `node` makes of its inputs' shapes, batch left out.

    `params` maps parameter names to shapes. The node's own `shape` is read for `Reshape` only. Raises InputError that names
    the node when operands do not fit together, geometry is impossible, or a sample would exceed `MAX_ELEMENTS`.
    """
    expected = max(1, len(inputs)) if node.arity is None else node.arity
    require(len(inputs) == expected, node, f"takes {expected} input(s), not {len(inputs)}")
    for name in node.params:
        require(name in params, node, f'lacks its parameter "{show(name)}"')
    shape = shape_rule(node, inputs, params)
    if any(size < 1 for size in shape):
        raise InputError(
            f'{type(node).__name__} "{show(node.name)}" leaves nothing: its output would have shape {shape}; use a smaller kernel or stride'
        )
    if prod(shape) > MAX_ELEMENTS:
        raise InputError(
            f'{type(node).__name__} "{show(node.name)}" has {prod(shape)} outputs for one sample, more than the {MAX_ELEMENTS} allowed'
        )
    return shape


@singledispatch
def shape_rule(node: Node, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    """Returns the shape that a node of the registered type makes, of as many inputs as it takes and with all its parameters."""
    raise InputError(f'node "{show(node.name)}" has type {type(node).__name__}, which the graph does not know')


@shape_rule.register
def _(node: Unary, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    return inputs[0]
