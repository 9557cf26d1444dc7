"""C for the operators that round once, or not at all: one loop each, written where it is used with the shapes as constants."""

from __future__ import annotations

from math import prod

from vsparse.graph.ir import Add, AddConstant, AveragePool, Graph, MaxPool, MulConstant
from vsparse.stages.export.c_source.program import Program


def emit_elementwise(
    program: Program, graph: Graph, node: Add | AddConstant | MulConstant, sources: list[str], target: str, relu: bool
) -> None:
    """Adds a residual addition, or the addition of or multiplication by a constant, broadcast."""
    if isinstance(node, Add):
        program.do(f"for (int i = 0; i < {node.size}; i++) {{", *_store(f"{sources[0]}[i] + {sources[1]}[i]", f"{target}[i]", relu), "}")
        return
    constant = graph.params[node.constant]
    name = program.next_name()
    program.floats(f"{name}_constant", constant)
    shape = (1,) * (len(node.shape) - constant.ndim) + constant.shape
    sign = "+" if isinstance(node, AddConstant) else "*"
    at_activation, at_constant, lines = [], [], []
    for d, size in enumerate(node.shape):
        lines.append(f"{'    ' * d}for (int i{d} = 0; i{d} < {size}; i{d}++)")
        at_activation.append(f"i{d} * {prod(node.shape[d + 1 :])}")
        if shape[d] > 1:
            at_constant.append(f"i{d} * {prod(shape[d + 1 :])}")
    i, j = " + ".join(at_activation) or "0", " + ".join(at_constant) or "0"
    inner = ["{", *_store(f"{sources[0]}[{i}] {sign} {name}_constant[{j}]", f"{target}[{i}]", relu), "}"]
    program.do(*lines, *inner)


def emit_relu(program: Program, size: int, source: str, target: str) -> None:
    """Adds a ReLU that no operator before it could apply."""
    program.do(f"for (int i = 0; i < {size}; i++) {{", *_store(f"{source}[i]", f"{target}[i]", True), "}")


def emit_max_pool(program: Program, graph: Graph, node: MaxPool, source: str, target: str, relu: bool) -> None:
    """Adds a maximum over windows, clipped to the map; nothing is rounded."""
    channels, height, width = graph.shape_of(node.inputs[0])
    top, left, bottom, right = node.pads
    clipped = any(node.pads)
    ends = [
        f"const int y0 = i * {node.stride[0]} - {top}, x0 = j * {node.stride[1]} - {left};",
        f"const int y1 = y0 + {node.kernel[0]}" + (f" < {height} ? y0 + {node.kernel[0]} : {height};" if clipped else ";"),
        f"const int x1 = x0 + {node.kernel[1]}" + (f" < {width} ? x0 + {node.kernel[1]} : {width};" if clipped else ";"),
    ]
    program.do(
        f"for (int c = 0; c < {channels}; c++)",
        f"    for (int i = 0; i < {node.shape[1]}; i++)",
        f"        for (int j = 0; j < {node.shape[2]}; j++) {{",
        *[f"            {line}" for line in ends],
        f"            const float *from = {source} + (long)c * {height * width};",
        f"            float most = from[{'(y0 < 0 ? 0 : y0)' if clipped else 'y0'} * {width} + {'(x0 < 0 ? 0 : x0)' if clipped else 'x0'}];",
        f"            for (int y = {'y0 < 0 ? 0 : y0' if clipped else 'y0'}; y < y1; y++)",
        f"                for (int x = {'x0 < 0 ? 0 : x0' if clipped else 'x0'}; x < x1; x++)",
        f"                    most = from[y * {width} + x] > most ? from[y * {width} + x] : most;",
        *[f"        {line}" for line in _store("most", f"{target}[((long)c * {node.shape[1]} + i) * {node.shape[2]} + j]", relu)],
        "        }",
    )


def emit_average_pool(program: Program, graph: Graph, node: AveragePool, source: str, target: str, relu: bool) -> None:
    """Adds a mean over windows: the sum in row-major order from its first element on, then one division."""
    channels, height, width = graph.shape_of(node.inputs[0])
    window = prod(node.kernel)
    program.do(
        f"for (int c = 0; c < {channels}; c++)",
        f"    for (int i = 0; i < {node.shape[1]}; i++)",
        f"        for (int j = 0; j < {node.shape[2]}; j++) {{",
        f"            const float *from = {source} + ((long)c * {height} + i * {node.stride[0]}) * {width} + j * {node.stride[1]};",
        "            float sum = 0.0f;",
        f"            for (int y = 0; y < {node.kernel[0]}; y++)",
        f"                for (int x = 0; x < {node.kernel[1]}; x++)",
        f"                    sum += from[y * {width} + x];",
        *[
            f"        {line}"
            for line in _store(f"sum / {window}.0f", f"{target}[((long)c * {node.shape[1]} + i) * {node.shape[2]} + j]", relu)
        ],
        "        }",
    )


def _store(value: str, place: str, relu: bool) -> list[str]:
    """Returns statements that round a value to float and store it; a NaN passes through max(·, 0), so that it stays visible."""
    if not relu:
        return [f"    {place} = {value};"]
    return [f"    const float value = {value};", f"    {place} = value < 0.0f ? 0.0f : value;"]
