"""The int8 C executed in numpy: sums of integers in int64, everything else one rounding of float32 after another.

Nothing here shares code with the C source but the list of steps, which says what is fused.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.graph.ir import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu, Reshape
from vsparse.graph.operators.quantised import FakeQuant
from vsparse.stages.export.c_int8.fusion import Step, grids_of, steps_of
from vsparse.stages.export.c_source.simulation import execute

_Array = NDArray[np.float32]
_Integers = NDArray[np.int64]


def simulate_integers(graph: Graph, inputs: _Array) -> _Array:
    """Returns the logits [n, classes] float32 of inputs [n, *input_shape], as the int8 C computes them; equal as numbers.

    Raises InputError for a graph that has no such form.
    """
    grids = grids_of(graph)
    # Steps q − z of quantised activations, int64; the others in float32.
    values: dict[str, NDArray[np.float32] | _Integers] = {graph.input: np.ascontiguousarray(inputs, dtype=np.float32)}
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for step in steps_of(graph):
            values[step.result] = _execute(graph, step, values, grids)
        out = values[graph.output]
        return _floats(out, grids[graph.output]).reshape(len(inputs), -1)


def _floats(value: NDArray[np.float32] | _Integers, grid: FakeQuant | None) -> _Array:
    return np.asarray(value, np.float32) if grid is None else value.astype(np.float32) * np.float32(grid.scale)


def _execute(
    graph: Graph, step: Step, values: dict[str, NDArray[np.float32] | _Integers], grids: dict[str, FakeQuant | None]
) -> NDArray[np.float32] | _Integers:
    head, read = step.head, [values[name] for name in step.inputs]
    own = [grids[name] for name in step.inputs]
    if isinstance(head, Reshape):
        return read[0].reshape(len(read[0]), *head.shape)
    if own[0] is not None and isinstance(head, MaxPool | Relu):
        return np.maximum(read[0], 0) if isinstance(head, Relu) else execute(graph, head, [read[0].astype(np.float32)]).astype(np.int64)
    one = np.float32(step.grid.scale) if step.grid is not None and step.relu_alone else None
    if own[0] is not None and isinstance(head, Conv | Gemm | AveragePool):
        integers = read[0].astype(np.int64)
        if isinstance(head, AveragePool):
            total = window_sums(head, integers)
            factor = np.array(own[0].scale, np.float32) / np.float32(prod(head.kernel))
        else:
            total = products(graph, head, integers)
            scale = np.broadcast_to(graph.integers[head.weight].scale, (len(graph.params[head.weight]),))
            factor = (np.float32(own[0].scale) * scale).reshape(-1, *[1] * (len(head.shape) - 1))
        assert np.abs(total).max(initial=0) < 2**31
        value = total.astype(np.int32).astype(np.float32) * (factor if one is None else factor / one)
    elif isinstance(head, Add) and one is not None and all(grid is not None for grid in own):
        a, b = (v.astype(np.float32) * (np.float32(g.scale) / one) for v, g in zip(read, own, strict=True) if g is not None)
        value = a + b
    else:
        floats = [_floats(v, grid) for v, grid in zip(read, own, strict=True)]
        value = floats[0] if head is None else execute(graph, head, floats)
        one = None
    for node in step.chain:
        value = _unary(graph, node, value)
    if step.grid is None:
        return value
    if one is None:
        value = value * (np.float32(1) / np.float32(step.grid.scale))
    first, last = step.grid.steps
    return np.asarray(np.rint(np.clip(value, np.float32(first), np.float32(last))).astype(np.int64))


def _unary(graph: Graph, node: Node, value: _Array) -> _Array:
    if isinstance(node, Relu | AddConstant | MulConstant):
        return execute(graph, node, [value])
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, which cannot be simulated')


def products(graph: Graph, node: Conv | Gemm, x: _Integers, magnitudes: bool = False) -> _Integers:
    """Returns the sums of products [n, *node.shape] of steps x with a layer's integers and its bias, or with their magnitudes alone."""
    weight = graph.integers[node.weight].values.astype(np.int64)
    bias = np.zeros(len(weight), np.int64) if node.bias is None else graph.integers[node.bias].values.astype(np.int64)
    if magnitudes:
        weight, bias = np.abs(weight), 0 * bias
    if isinstance(node, Gemm):
        return x @ weight.T + bias
    out, channels, kh, kw = weight.shape
    top, left, bottom, right = node.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    dy, dx = node.dilation
    spans = [(k - 1) * d + 1 for k, d in zip((kh, kw), node.dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    windows = windows[:, :, :: node.stride[0], :: node.stride[1], ::dy, ::dx]
    per_group = out // node.groups
    parts = [
        np.einsum(
            "nchwij,ocij->nohw", windows[:, g * channels : (g + 1) * channels], weight[g * per_group : (g + 1) * per_group], optimize=True
        )
        for g in range(node.groups)
    ]
    return np.asarray(np.concatenate(parts, axis=1) + bias[:, None, None])


def window_sums(node: AveragePool, x: _Integers) -> _Integers:
    """Returns the sums of windows [n, *node.shape]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, node.kernel, axis=(2, 3))[:, :, :: node.stride[0], :: node.stride[1]]
    return np.asarray(windows.sum(axis=(-2, -1)))
