"""Output shapes of nodes: the one place where operator geometry is computed and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite, prod

from vsparse.errors import InputError
from vsparse.graph.ir import (
    Add,
    AddConstant,
    AveragePool,
    BatchNorm,
    Clip,
    Concat,
    Conv,
    DivConstant,
    FakeQuant,
    Gemm,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Neg,
    Node,
    Pad,
    Relu,
    Reshape,
    Shape,
    Sigmoid,
    Slice,
    Sub,
    Tanh,
    Transpose,
)

# A sample's activation above this is no network for a small computer; the limit keeps a damaged file from asking for all memory.
MAX_ELEMENTS = 2**24


def show(name: object, most: int = 80) -> str:
    """Returns a name from a file, safe to print in a sentence: printable characters only, and not too many."""
    text = "".join(c if c.isprintable() else "?" for c in str(name))
    return text if len(text) <= most else text[: most - 3] + "..."


def window_output(size: int, kernel: int, stride: int, before: int, after: int, dilation: int = 1) -> int:
    """Returns how many windows fit into `size` padded positions; zero or less when none does."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def output_shape(node: Node, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    """Returns the shape that `node` makes of its inputs' shapes, batch left out.

    `params` maps parameter names to shapes. The node's own `shape` is read for `Reshape` only. Raises InputError that names
    the node when operands do not fit together, geometry is impossible, or a sample would exceed `MAX_ELEMENTS`.
    """
    shape = _shape(node, inputs, params)
    if any(size < 1 for size in shape):
        raise InputError(
            f'{type(node).__name__} "{show(node.name)}" leaves nothing: its output would have shape {shape}; use a smaller kernel or stride'
        )
    if prod(shape) > MAX_ELEMENTS:
        raise InputError(
            f'{type(node).__name__} "{show(node.name)}" has {prod(shape)} outputs for one sample, more than the {MAX_ELEMENTS} allowed'
        )
    return shape


def _shape(node: Node, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    expected = 2 if isinstance(node, Add | Sub) else len(inputs) if isinstance(node, Concat) and inputs else 1
    _require(len(inputs) == expected, node, f"takes {expected} input(s), not {len(inputs)}")
    for name in node.params:
        _require(name in params, node, f'lacks its parameter "{show(name)}"')
    x = inputs[0]
    if isinstance(node, Conv):
        return _conv(node, x, params)
    if isinstance(node, Gemm):
        weight = params[node.weight]
        _require(len(x) == 1, node, f"takes a flat input, not shape {x}; put a flatten before it")
        _require(len(weight) == 2 and weight[1] == x[0], node, f"has a weight of shape {weight} for {x[0]} inputs")
        _require(node.bias is None or params[node.bias] == (weight[0],), node, "has a bias that does not match its weight")
        return (weight[0],)
    if isinstance(node, MaxPool | AveragePool):
        return _pool(node, x)
    if isinstance(node, BatchNorm):
        _require(len(x) in (1, 3), node, f"takes [features] or [channels, height, width], not shape {x}")
        _require(all(params[name] == (x[0],) for name in node.params), node, f"has statistics that do not match its {x[0]} channels")
        return x
    if isinstance(node, AddConstant | MulConstant | DivConstant):
        constant = params[node.constant]
        _require(_broadcasts(constant, x), node, f"has a constant of shape {constant} that does not broadcast to its input's shape {x}")
        return x
    if isinstance(node, Add | Sub):
        verb = "adds" if isinstance(node, Add) else "subtracts"
        _require(x == inputs[1], node, f"{verb} activations of shapes {x} and {inputs[1]}; they must be the same")
        return x
    if isinstance(node, Relu | Neg | Sigmoid | Tanh):
        return x
    if isinstance(node, FakeQuant):
        _require(isfinite(node.scale) and node.scale > 0, node, f"has the scale {node.scale}; a positive number is wanted")
        _require((node.lowest, node.highest) in ((0, 255), (-128, 127)), node, "is of a type other than uint8 and int8")
        _require(node.lowest <= node.zero_point <= node.highest, node, f"has the zero point {node.zero_point}, outside of its type")
        return x
    if isinstance(node, LeakyRelu):
        _require(0 <= node.slope <= 1, node, f"has the slope {node.slope}; one from 0 to 1 is wanted")
        return x
    if isinstance(node, Clip):
        _require(node.lowest <= node.highest, node, f"clips to [{node.lowest}, {node.highest}], which is empty")
        _require(node.lowest < inf and node.highest > -inf, node, "clips to infinity")
        return x
    if isinstance(node, Transpose | Concat | Slice | Pad):
        return _moved(node, inputs)
    if isinstance(node, Reshape):
        _require(prod(node.shape) == prod(x), node, f"turns {prod(x)} elements of shape {x} into shape {node.shape}; the number must stay")
        return node.shape
    raise InputError(f'node "{show(node.name)}" has type {type(node).__name__}, which the graph does not know')


def _moved(node: Transpose | Concat | Slice | Pad, inputs: Sequence[Shape]) -> Shape:
    x = inputs[0]
    if isinstance(node, Transpose):
        _require(sorted(node.order) == list(range(len(x))), node, f"has the order {node.order} for shape {x}")
        return tuple(x[i] for i in node.order)
    if isinstance(node, Concat):
        _require(0 <= node.axis < len(x), node, f"joins along dimension {node.axis} of shape {x}, which is none")
        cut = [(*shape[: node.axis], *shape[node.axis + 1 :]) for shape in inputs]
        _require(
            all(one == cut[0] and len(s) == len(x) for one, s in zip(cut, inputs, strict=True)), node, f"cannot join shapes {list(inputs)}"
        )
        return (*x[: node.axis], sum(shape[node.axis] for shape in inputs), *x[node.axis + 1 :])
    if isinstance(node, Slice):
        _require(len(node.starts) == len(node.stops) == len(node.steps) == len(x), node, f"does not slice every dimension of shape {x}")
        places = list(zip(x, node.starts, node.stops, node.steps, strict=True))
        _require(
            all(0 <= i < j <= size and step >= 1 for size, i, j, step in places), node, f"reaches outside of shape {x}, or leaves nothing"
        )
        return tuple(len(range(i, j, step)) for _, i, j, step in places)
    _require(len(node.before) == len(node.after) == len(x), node, f"does not pad every dimension of shape {x}")
    _require(min(*node.before, *node.after) >= 0, node, "has negative padding; slice instead")
    _require(isfinite(node.value), node, "pads with a value that is not finite")
    return tuple(i + size + j for size, i, j in zip(x, node.before, node.after, strict=True))


def _conv(node: Conv, x: Shape, params: Mapping[str, Shape]) -> Shape:
    weight = params[node.weight]
    _require(len(x) == 3, node, f"takes [channels, height, width], not shape {x}")
    _require(len(weight) == 4 and min(weight) > 0, node, f"has a weight of shape {weight}; [out, in/groups, height, width] is wanted")
    _require(node.groups >= 1 and min(node.stride) >= 1 and min(node.dilation) >= 1, node, "has a stride, dilation or group count below 1")
    _require(min(node.pads) >= 0, node, "has negative padding; slice the input before the network instead")
    _require(
        x[0] == weight[1] * node.groups and weight[0] % node.groups == 0,
        node,
        f"has a weight of shape {weight} in {node.groups} group(s) for {x[0]} channels",
    )
    _require(node.bias is None or params[node.bias] == (weight[0],), node, "has a bias that does not match its weight")
    top, left, bottom, right = node.pads
    return (
        weight[0],
        window_output(x[1], weight[2], node.stride[0], top, bottom, node.dilation[0]),
        window_output(x[2], weight[3], node.stride[1], left, right, node.dilation[1]),
    )


def _pool(node: MaxPool | AveragePool, x: Shape) -> Shape:
    _require(len(x) == 3, node, f"takes [channels, height, width], not shape {x}")
    _require(min(node.kernel) >= 1 and min(node.stride) >= 1, node, "has a kernel or stride below 1")
    top, left, bottom, right = node.pads if isinstance(node, MaxPool) else (0, 0, 0, 0)
    # A window wholly inside the padding has no maximum; padding below the kernel's size rules that out.
    _require(min(top, left, bottom, right) >= 0, node, "has negative padding")
    _require(
        max(top, bottom) < node.kernel[0] and max(left, right) < node.kernel[1], node, "has padding that is not smaller than its kernel"
    )
    return (
        x[0],
        window_output(x[1], node.kernel[0], node.stride[0], top, bottom),
        window_output(x[2], node.kernel[1], node.stride[1], left, right),
    )


def _broadcasts(constant: Shape, x: Shape) -> bool:
    return len(constant) <= len(x) and all(c in (1, size) for c, size in zip(reversed(constant), reversed(x), strict=False))


def _require(condition: bool, node: Node, problem: str) -> None:
    if not condition:
        raise InputError(f'{type(node).__name__} "{show(node.name)}" {problem}')
