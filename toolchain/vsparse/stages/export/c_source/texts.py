"""Both texts of a network, operator by operator: where each activation lies, and which function adds the operator's statements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from vsparse.graph.ir import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu, Reshape
from vsparse.stages.export.c_source import convolution, fully_connected, scalar_conv, scalar_gemm
from vsparse.stages.export.c_source.arena import Lifetime
from vsparse.stages.export.c_source.costs import KernelCosts
from vsparse.stages.export.c_source.geometry import WIDEST, Planes, planes
from vsparse.stages.export.c_source.layers import ConvKernels, GemmKernels, LayerKernels
from vsparse.stages.export.c_source.literals import comment
from vsparse.stages.export.c_source.lives import INPUT, Lives, lives_of
from vsparse.stages.export.c_source.operators import (
    emit_average_pool,
    emit_copy,
    emit_elementwise,
    emit_max_pool,
    emit_relu,
    emit_zeros,
)
from vsparse.stages.export.c_source.place import Place, margin_of, padded, plain
from vsparse.stages.export.c_source.program import Program
from vsparse.stages.export.c_source.tables import Tables

MapMargin = tuple[int, int, int, int]


@dataclass(frozen=True)
class Call:
    """One operator to be added: where it reads and writes, and whether it applies a ReLU."""

    program: Program
    graph: Graph
    node: Any
    sources: list[Place]
    target: Place
    relu: bool


_Emit = Callable[[Call], None]


def _reshape(c: Call) -> None:
    """Adds nothing: the elements stay where they are."""


# An operator that is not here is refused by name before anything is emitted; convolutions and fully connected layers differ by text.
EMIT: dict[type[Node], _Emit] = {
    AveragePool: lambda c: emit_average_pool(c.program, c.graph, c.node, c.sources[0], c.target, c.relu),
    MaxPool: lambda c: emit_max_pool(c.program, c.graph, c.node, c.sources[0], c.target, c.relu),
    Relu: lambda c: emit_relu(c.program, c.node.shape, c.sources[0], c.target),
    Add: lambda c: emit_elementwise(c.program, c.graph, c.node, c.sources, c.target, c.relu),
    AddConstant: lambda c: emit_elementwise(c.program, c.graph, c.node, c.sources, c.target, c.relu),
    MulConstant: lambda c: emit_elementwise(c.program, c.graph, c.node, c.sources, c.target, c.relu),
    Reshape: _reshape,
}
SUPPORTED = (Conv, Gemm, *EMIT)


def vector_layouts(graph: Graph, lives: Lives) -> tuple[dict[str, Planes], dict[str, int]]:
    """Returns how each convolution's input lies for the text with vectors, and of arrays that are read as they are the floats needed."""
    layouts: dict[str, Planes] = {}
    extents: dict[str, int] = {}
    for node in graph.nodes:
        if isinstance(node, Conv):
            layouts[node.name] = layout = planes(node, graph.params[node.weight].shape, graph.shape_of(node.inputs[0]))
            if layout.direct:
                root = lives.roots[node.inputs[0]]
                extents[root] = max(extents.get(root, 0), layout.extent)
    return layouts, extents


def scalar_margins(graph: Graph, lives: Lives) -> dict[str, MapMargin]:
    """Returns the zeros (top, left, bottom, right) around the maps of the text without vectors, by the name of their root."""
    margins: dict[str, MapMargin] = {}
    for node in graph.nodes:
        if isinstance(node, Conv):
            root = lives.roots[node.inputs[0]]
            own = margin_of(node, graph.params[node.weight].shape, graph.shape_of(node.inputs[0]))
            if root != graph.input and root not in lives.reshaped:
                t, left, b, r = (max(pair) for pair in zip(own, margins.get(root, (0, 0, 0, 0)), strict=True))
                margins[root] = (t, left, b, r)
    return margins


def vector_program(graph: Graph, tables: Tables, kernels: Mapping[str, LayerKernels], costs: KernelCosts) -> Program:
    """Returns the text for processors with vectors; arrays have room for the whole vectors that convolutions read."""
    lives = lives_of(graph)
    layouts, extents = vector_layouts(graph, lives)
    program = Program(tables, WIDEST)
    arrays = _arrays(program, graph, lives, extents, {name for name, layout in layouts.items() if not layout.direct})
    size = prod(graph.input_shape)
    convs, gemms = kernels_by_kind(kernels)
    if extents.get(graph.input, 0) > size:
        # Whole vectors would be read beyond the end of the caller's array.
        arrays[graph.input] = "copy"
        program.lives.append(Lifetime("copy", extents[graph.input], -2, 2 * lives.spans[graph.input][1] + 1))
        program.begin(-1, "the input")
        program.do(f"memcpy(copy, {INPUT}, {size} * sizeof(float));")
    affine: dict[type[Node], _Emit] = {
        Conv: lambda c: convolution.emit_conv(
            c.program, c.graph, c.node, convs[c.node.name], costs, layouts[c.node.name], c.sources[0], c.target, c.relu
        ),
        Gemm: lambda c: fully_connected.emit_gemm(c.program, c.graph, c.node, gemms[c.node.name], c.sources[0], c.target, c.relu),
    }
    shapes = {graph.input: graph.input_shape, **{node.name: node.shape for node in graph.nodes}}
    places = {name: plain(arrays[root], shapes[name]) for name, root in lives.roots.items()}
    return _emit(program, graph, lives, places, affine, {})


def scalar_program(graph: Graph, tables: Tables, kernels: Mapping[str, LayerKernels]) -> Program:
    """Returns the text for processors without vectors; maps that convolutions read have their padding around them."""
    lives = lives_of(graph)
    margins = scalar_margins(graph, lives)
    shapes = {graph.input: graph.input_shape, **{node.name: node.shape for node in graph.nodes}}

    def place(name: str, array: str) -> Place:
        margin = margins.get(lives.roots[name])
        return plain(array, shapes[name]) if margin is None else padded(array, shapes[name], margin)

    program = Program(tables, 1)
    sizes = {root: place(root, "").size for root in lives.spans}
    arrays = _arrays(program, graph, lives, sizes, {node.name for node in graph.nodes if copies_input(graph, node, lives, margins)})
    places = {name: place(name, arrays[root]) for name, root in lives.roots.items()}
    convs, gemms = kernels_by_kind(kernels)
    affine: dict[type[Node], _Emit] = {
        Conv: lambda c: emit_scalar_conv(c, convs[c.node.name]),
        Gemm: lambda c: scalar_gemm.emit_gemm(c.program, c.graph, c.node, gemms[c.node.name], c.sources[0], c.target, c.relu),
    }
    return _emit(program, graph, lives, places, affine, margins)


def emit_scalar_conv(c: Call, kernels: ConvKernels) -> None:
    source, node = c.sources[0], c.node
    margin = margin_of(node, c.graph.params[node.weight].shape, source.shape)
    if source.is_plain and any(margin):
        # The input may end here: nothing is written to the target before.
        copy = padded("padded", source.shape, margin)
        c.program.scratch("padded", copy.size)
        emit_copy(c.program, source, copy)
        source = copy
    emit_zeros(c.program, c.target)
    scalar_conv.emit_conv(c.program, c.graph, node, kernels, source, c.target, c.relu)


def kernels_by_kind(kernels: Mapping[str, LayerKernels]) -> tuple[dict[str, ConvKernels], dict[str, GemmKernels]]:
    convs = {name: one for name, one in kernels.items() if isinstance(one, ConvKernels)}
    return convs, {name: one for name, one in kernels.items() if isinstance(one, GemmKernels)}


def copies_input(graph: Graph, node: Node, lives: Lives, margins: Mapping[str, object]) -> bool:
    """Returns whether the text without vectors copies an operator's input, to put its padding around it."""
    if not isinstance(node, Conv) or lives.roots[node.inputs[0]] in margins:
        return False
    return any(margin_of(node, graph.params[node.weight].shape, graph.shape_of(node.inputs[0])))


def _arrays(program: Program, graph: Graph, lives: Lives, sizes: dict[str, int], copying: set[str]) -> dict[str, str]:
    """Gives every array a name and asks for its place in the arena.

    `sizes` are the floats of those that need more than they have; operators in `copying` are done with their input before they write.
    """
    arrays = {graph.input: INPUT}
    nodes = {node.name: node for node in graph.nodes}
    read = dict.fromkeys(lives.spans, -1)
    for step, node in enumerate(graph.nodes):
        for name in node.inputs:
            read[lives.roots[name]] = max(read[lives.roots[name]], 2 * step + (node.name not in copying))
    for root, (first, last) in lives.spans.items():
        if root != graph.input:
            arrays[root] = f"b{len(arrays)}"
            end = 2 * last if last == len(graph.nodes) else read[root]
            program.lives.append(Lifetime(arrays[root], max(sizes.get(root, 0), nodes[root].size), 2 * first + 1, max(end, 2 * first + 1)))
    return arrays


def _emit(
    program: Program,
    graph: Graph,
    lives: Lives,
    places: dict[str, Place],
    affine: dict[type[Node], _Emit],
    margins: dict[str, MapMargin],
) -> Program:
    """Adds every operator; those that are applied by the one before them, or change nothing but the shape, add nothing."""
    fused = set(lives.relu.values())
    for step, node in enumerate(graph.nodes):
        if isinstance(node, Reshape) or node.name in fused:
            continue
        relu = node.name in lives.relu
        program.begin(step, f"{type(node).__name__} {comment(node.name)}{', Relu' if relu else ''}: {comment(str(list(node.shape)))}")
        if node.name in margins and not isinstance(node, Conv):
            emit_zeros(program, places[node.name])
        call = Call(program, graph, node, [places[name] for name in node.inputs], places[node.name], relu)
        (affine.get(type(node)) or EMIT[type(node)])(call)
    program.begin(len(graph.nodes), "the logits")
    target = plain("logits", graph.shape_of(graph.output))
    source = places[graph.output]
    if source.is_plain:
        program.do(f"memcpy(logits, {source.array}, {prod(target.shape)} * sizeof(float));")
    else:
        emit_copy(program, source, target)
    return program
