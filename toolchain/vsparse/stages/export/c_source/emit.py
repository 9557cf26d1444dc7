"""Plain C99 for a graph: model.c and model.h, without dependencies, allocation or any order of summation but the one that is certified.

The order (contract `sequential`, docs/c.md): a sum begins with the bias; then come the products of the non-zero weights in the row-major
order of the weight tensor [out, in/groups, kh, kw], each added by a multiplication and an addition or by one fused multiply-add. Zero
weights and padding may be added too, as the exact zeros that they are. An average is the sum of its window in row-major order, then one
division. Every operator stores its result as float32 before the next one reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vsparse.errors import InputError
from vsparse.files import write_bytes
from vsparse.graph import validate
from vsparse.graph.ir import Add, AddConstant, AveragePool, BatchNorm, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu, Reshape
from vsparse.stages.export.c_source.buffers import INPUT, Buffers, plan_buffers
from vsparse.stages.export.c_source.convolution import emit_conv
from vsparse.stages.export.c_source.costs import COSTS, KernelCosts
from vsparse.stages.export.c_source.fully_connected import emit_gemm
from vsparse.stages.export.c_source.geometry import Planes, planes
from vsparse.stages.export.c_source.literals import comment
from vsparse.stages.export.c_source.operators import emit_average_pool, emit_elementwise, emit_max_pool, emit_relu
from vsparse.stages.export.c_source.program import Program
from vsparse.stages.export.c_source.tiles import kernel_text

SOURCE, HEADER = "model.c", "model.h"
# A weight takes some 16 bytes of text.
MAX_WEIGHTS = 2**25
# A window's size must be a float32 itself.
MAX_WINDOW = 2**24


@dataclass(frozen=True)
class CSource:
    """The two files, and what the program takes: bytes of constant tables (ROM) and of static arrays (RAM)."""

    header: str
    source: str
    constant_bytes: int
    static_bytes: int

    def write(self, directory: Path) -> None:
        """Writes model.c and model.h, each in one step."""
        write_bytes(directory / HEADER, self.header.encode())
        write_bytes(directory / SOURCE, self.source.encode())


def emit_c(graph: Graph, model_sha256: str = "", title: str = "", costs: KernelCosts = COSTS) -> CSource:
    """Returns model.c and model.h for a graph read back from its ONNX file, whose content hash both name.

    `costs` are those of the kernels on the machine that is to execute it: they choose kernels, which changes no bit of a result.

    Raises InputError for an operator that has no C form, naming it, and for a model too large for a C file.
    """
    validate(graph)
    if graph.storage != "fp32":
        raise InputError(f"the file stores {graph.storage}, and the C source computes in float32; make it from the float32 file")
    for node in graph.nodes:
        _require_supported(node)
    if sum(int(np.count_nonzero(value)) for value in graph.params.values()) > MAX_WEIGHTS:
        raise InputError(f"the model has more than {MAX_WEIGHTS} weights, too many for a C file; deploy its ONNX file")
    layouts = {
        node.name: planes(node, graph.params[node.weight].shape, graph.shape_of(node.inputs[0]))
        for node in graph.nodes
        if isinstance(node, Conv)
    }
    extents: dict[str, int] = {}
    for node in graph.nodes:
        if node.name in layouts and layouts[node.name].direct:
            extents[node.inputs[0]] = max(extents.get(node.inputs[0], 0), layouts[node.name].extent)
    buffers = plan_buffers(graph, extents)
    program = Program()
    copied = _copy_input(program, graph, buffers, extents)
    for node in graph.nodes:
        _emit(program, graph, node, layouts, buffers, copied, costs)
    classes = prod(graph.shape_of(graph.output))
    program.do(f"memcpy(logits, {copied.get(graph.output, buffers.arrays[graph.output])}, {classes} * sizeof(float));")
    arrays = {**buffers.sizes, **program.scratches}
    static = 4 * sum(arrays.values())
    header = _header(graph, model_sha256, title, program.bytes_of_tables, static)
    return CSource(header, _source(program, arrays, title), program.bytes_of_tables, static)


def _require_supported(node: Node) -> None:
    name, kind = node.name, type(node).__name__
    if isinstance(node, BatchNorm):
        raise InputError(f'node "{name}" is a batch normalisation; fold it before the C source is written')
    if not isinstance(node, SUPPORTED):
        known = ", ".join(one.__name__ for one in SUPPORTED)
        raise InputError(f'node "{name}" is a {kind}, which the C source has no form for; it has {known}; deploy the ONNX file instead')
    if isinstance(node, AveragePool) and prod(node.kernel) > MAX_WINDOW:
        raise InputError(f'node "{name}" averages windows of {prod(node.kernel)} elements, more than the {MAX_WINDOW} that float32 counts')


def _copy_input(program: Program, graph: Graph, buffers: Buffers, extents: dict[str, int]) -> dict[str, str]:
    """Copies the caller's array where a convolution would read whole vectors beyond its end, and returns the activations that move."""
    own = {name for name, array in buffers.arrays.items() if array == INPUT}
    size, reach = prod(graph.input_shape), max((extents.get(name, 0) for name in own), default=0)
    if reach <= size:
        return {}
    program.scratch("copy", reach)
    program.do(f"memcpy(copy, {INPUT}, {size} * sizeof(float));")
    return dict.fromkeys(own, "copy")


@dataclass(frozen=True)
class _Call:
    """One operator to be added: where it reads and writes, whether it applies a ReLU, and how convolutions lie in memory."""

    program: Program
    graph: Graph
    node: Any
    sources: list[str]
    target: str
    relu: bool
    layouts: dict[str, Planes]
    costs: KernelCosts


def _reshape(c: _Call) -> None:
    """Adds nothing: the elements stay where they are."""


# An operator that is not here is refused by name before anything is emitted.
_EMIT: dict[type[Node], Callable[[_Call], None]] = {
    Conv: lambda c: emit_conv(c.program, c.graph, c.node, c.layouts[c.node.name], c.sources[0], c.target, c.relu, c.costs),
    Gemm: lambda c: emit_gemm(c.program, c.graph, c.node, c.sources[0], c.target, c.relu, c.costs),
    AveragePool: lambda c: emit_average_pool(c.program, c.graph, c.node, c.sources[0], c.target, c.relu),
    MaxPool: lambda c: emit_max_pool(c.program, c.graph, c.node, c.sources[0], c.target, c.relu),
    Relu: lambda c: emit_relu(c.program, c.node.size, c.sources[0], c.target),
    Add: lambda c: emit_elementwise(c.program, c.graph, c.node, c.sources, c.target, c.relu),
    AddConstant: lambda c: emit_elementwise(c.program, c.graph, c.node, c.sources, c.target, c.relu),
    MulConstant: lambda c: emit_elementwise(c.program, c.graph, c.node, c.sources, c.target, c.relu),
    Reshape: _reshape,
}
SUPPORTED = tuple(_EMIT)


def _emit(
    program: Program,
    graph: Graph,
    node: Node,
    layouts: dict[str, Planes],
    buffers: Buffers,
    copied: dict[str, str],
    costs: KernelCosts,
) -> None:
    """Adds one operator; those that are applied by the one before them, or change nothing but the shape, add nothing."""
    if isinstance(node, Reshape) or node.name in buffers.relu.values():
        return
    sources = [copied.get(name, buffers.arrays[name]) for name in node.inputs]
    target, relu = buffers.arrays[buffers.relu.get(node.name, node.name)], node.name in buffers.relu
    program.do(f"/* {type(node).__name__} {comment(node.name)}{', Relu' if relu else ''}: {comment(str(list(node.shape)))} */")
    _EMIT[type(node)](_Call(program, graph, node, sources, target, relu, layouts, costs))


def _source(program: Program, arrays: dict[str, int], title: str) -> str:
    kernels = [kernel_text(name) for name in program.kernels]
    prelude = kernel_text("prelude")
    return "\n".join(
        [
            f"/* {comment(title)}: a certified network. What is certified, and of which sums: see model.h. */",
            f'#include "{HEADER}"',
            "",
            prelude,
            f"typedef {program.index_type} vs_index;",
            "",
            *kernels,
            *program.tables(),
            "",
            *[f"static float {name}[{size}] VS_ALIGNED;" for name, size in arrays.items()],
            "",
            "void vsparse_logits(const float *input, float *logits)",
            "{",
            *program.statements,
            "}",
            "",
            _CLASSIFY,
        ]
    )


_CLASSIFY = """int vsparse_classify(const float *input)
{
    float logits[VSPARSE_CLASSES];
    int best = 0;
    vsparse_logits(input, logits);
    for (int i = 0; i < VSPARSE_CLASSES; i++) {
        if (!(logits[i] >= -FLT_MAX && logits[i] <= FLT_MAX))
            return -1;
        if (logits[i] > logits[best])
            best = i;
    }
    return best;
}
"""


def _header(graph: Graph, model_sha256: str, title: str, constant: int, static: int) -> str:
    shape = " x ".join(str(size) for size in graph.input_shape)
    return f"""/* {comment(title)}: a certified network in C99, without dependencies or allocation.

   Compile with `cc -O3 -std=c99 -ffp-contract=off -c model.c` (add -march=native for the machine's own vectors; -ffast-math is refused).
   The certificate is about {comment(model_sha256) or "the ONNX file that this was made from"}
   under the contract `sequential`: float32, rounding to nearest, subnormals kept or flushed to zero. A sum starts with its bias and
   adds the products of its non-zero weights in row-major order of the weight tensor [out, in/groups, kh, kw], each with or without
   a fused multiply-add; an average is the sum of its window in row-major order and one division.
   {constant} bytes of constants, {static} bytes of static arrays; the functions are not reentrant. */
#ifndef VSPARSE_MODEL_H
#define VSPARSE_MODEL_H

#define VSPARSE_INPUTS {prod(graph.input_shape)} /* {shape}, row-major */
#define VSPARSE_CLASSES {prod(graph.shape_of(graph.output))}
#define VSPARSE_MODEL_SHA256 "{comment(model_sha256)}" /* content hash of the ONNX file, as the certificate states it */

#ifdef __cplusplus
extern "C" {{
#endif

/* Computes the logits of one input. */
void vsparse_logits(const float *input, float *logits);

/* Returns the class with the largest logit, the first of equals, or -1 where a logit is not finite. */
int vsparse_classify(const float *input);

#ifdef __cplusplus
}}
#endif
#endif
"""
