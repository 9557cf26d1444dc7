"""A written file against the graph that was meant: it is read back, compared node by node, executed, and compared with its source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from math import isinf, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.errors import GateError, InputError
from vsparse.files import read_bytes
from vsparse.graph.from_onnx import Reading, read_onnx
from vsparse.graph.ir import AddConstant, AveragePool, Clip, Conv, DivConstant, Graph, MaxPool, Move, MulConstant, Node, Pad, Reshape
from vsparse.graph.onnx_file import MAX_ONNX_BYTES
from vsparse.graph.shapes import show
from vsparse.reading.compare import check_reading, outside, point_count
from vsparse.reading.enclosure import Enclosure
from vsparse.reading.evidence import ReadingEvidence
from vsparse.reading.points import Asked, probes
from vsparse.reading.runtime import Runtime

# Fields that name things; files may use other names.
NAMES = ("name", "inputs", "weight", "bias", "scale", "mean", "variance", "constant")


def check_written(
    path: Path, intended: Graph, *, source: Graph | None = None, exact: bool = False, asked: Asked | None = None
) -> ReadingEvidence:
    """Reads a file back that was just written and compares it with the graph that was meant; returns the evidence of `check_reading`.

    Every node must have the type, attributes and inputs that were meant, and every parameter its very bits. Where the graph was made of a
    `source` by a transformation that keeps the function, the enclosures of both at every probe point must have a value in common: each
    contains the exact one, and what folding rounds is charged to the source (docs/numerics.md, section 9.3). With `exact`, where only terms
    that are zero were left out, the file's outputs must lie in the source's enclosure themselves. Raises GateError where they do not, and
    what `check_reading` raises.
    """
    where = f"model {path}"
    data = read_bytes(path, "model", MAX_ONNX_BYTES)
    reading = read_onnx(data, str(path))
    difference = first_difference(intended, reading.graph)
    if difference:
        raise GateError(f"{where} was written as another network than was meant: {difference}; this is a bug in vsparse, please report it")
    asked = asked or Asked()
    evidence = check_reading(data, reading, where=where, asked=asked)
    if source is not None:
        _agree(where, data, reading, source, exact, asked)
    return evidence


def first_difference(meant: Graph, found: Graph) -> str:
    """Returns in words where two graphs first differ, names apart; empty where they are the same network, bit by bit."""
    if meant.wide_sums != found.wide_sums:
        return "sums in another format"
    if (meant.input_shape, meant.storage) != (found.input_shape, found.storage):
        return f"an input {list(found.input_shape)} of {found.storage} in place of {list(meant.input_shape)} of {meant.storage}"
    ours, theirs = list(_canonical(meant)), list(_canonical(found))
    for (node, form), (_, other) in zip(ours, theirs, strict=False):
        for key in form.keys() | other.keys():
            if not _equal(form.get(key), other.get(key)):
                return f'node "{show(node.name)}" ({type(node).__name__}) has another {key}'
    return "" if len(ours) == len(theirs) else f"{len(theirs)} nodes in place of {len(ours)}"


def _canonical(graph: Graph) -> Iterator[tuple[Node, dict[str, Any]]]:
    """Yields each node with what defines it: attributes, the indices of its inputs, its parameters' values and stored integers.

    What files cannot tell apart is made one: reshapes, moves and clips that change nothing are left out, zeros padded around a map that
    only convolutions read belong to these, one scale for all outputs of one is a scale of its own, the stride of a pool with one window
    does not count, and a division by powers of two is a product.
    """
    count, indices = 0, {graph.input: 0}
    pads: dict[str, Pad] = {}
    readers = graph.consumers()
    for node in graph.nodes:
        if _changes_nothing(node, graph):
            indices[node.name] = indices[node.inputs[0]]
            continue
        if isinstance(node, Pad) and _is_zero_margin(node) and all(isinstance(one, Conv) for one in readers[node.name]):
            pads[node.name] = node
            continue
        if isinstance(node, Conv) and node.inputs[0] in pads:
            pad = pads[node.inputs[0]]
            (top, left), (bottom, right) = pad.before[1:], pad.after[1:]
            own = node.pads
            node = replace(node, inputs=pad.inputs, pads=(own[0] + top, own[1] + left, own[2] + bottom, own[3] + right))
        if isinstance(node, MaxPool | AveragePool) and node.shape[1:] == (1, 1):
            node = replace(node, stride=node.kernel)
        if isinstance(node, Move) and len(node.inputs) == 1 and _keeps_order(node, graph):
            node = Reshape(name=node.name, inputs=node.inputs, shape=node.shape)  # dimensions of size 1 moved
        form: dict[str, Any] = {"type": type(node), "shape": node.shape, "inputs": [indices[name] for name in node.inputs]}
        form |= {
            one.name: getattr(node, one.name)
            for one in fields(node)
            if one.name not in NAMES or not isinstance(getattr(node, one.name), str)
        }
        form.pop("bias", None)
        form["inputs"] = [indices[name] for name in node.inputs]
        form |= {f"parameter {i}": graph.params[name] for i, name in enumerate(node.params)}
        if isinstance(node, AddConstant | MulConstant | DivConstant):
            # How many dimensions of size 1 stand in front of a constant is lost in the file; which number meets which element is not.
            constant = np.broadcast_to(graph.params[node.constant], node.shape)
            if isinstance(node, DivConstant) and (np.abs(np.frexp(constant)[0]) == 0.5).all():
                form["type"], constant = MulConstant, np.float32(1) / constant  # by powers of two: a file's Div is read so
            form["parameter 0"] = constant
        for i, name in enumerate(node.params):
            if name in graph.integers:
                form[f"integers {i}"] = graph.integers[name].values
                scale = graph.integers[name].scale
                form[f"scale {i}"] = scale.reshape(()) if scale.size == 1 else scale
        count += 1
        indices[node.name] = count
        yield node, form


def _changes_nothing(node: Node, graph: Graph) -> bool:
    if isinstance(node, Clip):
        return isinf(node.lowest) and isinf(node.highest) and node.lowest < node.highest
    if len(node.inputs) != 1 or node.shape != graph.shape_of(node.inputs[0]):
        return False
    return isinstance(node, Reshape) or (isinstance(node, Move) and _keeps_order(node, graph))


def _keeps_order(node: Move, graph: Graph) -> bool:
    shape = graph.shape_of(node.inputs[0])
    elements = np.arange(prod(shape))
    return prod(shape) == node.size and np.array_equal(node.rearranged(elements.reshape(shape)).reshape(-1), elements)


def _is_zero_margin(node: Pad) -> bool:
    return node.value == 0 and len(node.before) == 3 and not node.before[0] and not node.after[0]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return type(one) is type(other) and bool(one == other)


def _agree(where: str, data: bytes, reading: Reading, source: Graph, exact: bool, asked: Asked) -> None:
    """Compares a written network with its source at probe points; raises GateError where they cannot be the same function."""
    try:
        before, after = Enclosure(source), Enclosure(reading.graph)
    except InputError:
        return  # what no contract speaks about was executed nowhere, and its evidence says so
    points: NDArray[np.float32] = probes(source.input_shape, asked, point_count(source))
    with torch.no_grad():
        x = torch.from_numpy(points).double()
        first, second = before.at(x)[source.output], after.at(x)[reading.graph.output]
        apart = (first[0] > second[1]) | (second[0] > first[1])
        if exact and reading.batch is None:
            values = torch.from_numpy(Runtime(data, batch=len(points)).run(points)[0]).double().view(first[0].shape)
            apart |= outside(values, first, before.rounding.read_error(source.output, values))
    if apart.any():
        index = tuple(apart.nonzero()[0].tolist())
        raise GateError(
            f"{where} is another function than its source: output {index[1]} lies from {float(second[0][index]):.9g} to "
            f"{float(second[1][index]):.9g} on an input for which the source's lies from {float(first[0][index]):.9g} to "
            f"{float(first[1][index]):.9g}; this is a bug in vsparse, please report it"
        )
