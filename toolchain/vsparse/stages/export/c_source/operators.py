"""C for the operators that round once, or not at all: one loop each, written where it is used with the shapes as constants."""

from __future__ import annotations

from math import prod

from vsparse.graph.ir import Add, AddConstant, AveragePool, Graph, MaxPool, MulConstant
from vsparse.stages.export.c_source.program import Program

# Where a division by a power of two is a multiplication too, and so could be contracted with an addition that follows.
STORED = "VS_STORED;"


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
    if isinstance(node, MulConstant):
        program.do(STORED)


def emit_relu(program: Program, size: int, source: str, target: str) -> None:
    """Adds a ReLU that no operator before it could apply."""
    program.do(f"for (int i = 0; i < {size}; i++) {{", *_store(f"{source}[i]", f"{target}[i]", True), "}")


def emit_max_pool(program: Program, graph: Graph, node: MaxPool, source: str, target: str, relu: bool) -> None:
    """Adds a maximum over windows, clipped to the map; nothing is rounded, and a NaN anywhere in a window is its maximum."""
    channels, height, width = graph.shape_of(node.inputs[0])
    (kh, kw), (sy, sx), (top, left) = node.kernel, node.stride, node.pads[:2]
    first_y, first_x, end_y, end_x = "y0", "x0", f"y0 + {kh}", f"x0 + {kw}"
    if any(node.pads):
        first_y, first_x = "(y0 < 0 ? 0 : y0)", "(x0 < 0 ? 0 : x0)"
        end_y, end_x = f"(y0 + {kh} < {height} ? y0 + {kh} : {height})", f"(x0 + {kw} < {width} ? x0 + {kw} : {width})"
    program.do(
        f"for (int c = 0; c < {channels}; c++)",
        f"    for (int i = 0; i < {node.shape[1]}; i++)",
        f"        for (int j = 0; j < {node.shape[2]}; j++) {{",
        f"            const int y0 = i * {sy} - {top}, x0 = j * {sx} - {left};",
        f"            const float *from = {source} + (long)c * {height * width};",
        f"            float most = from[{first_y} * {width} + {first_x}];",
        f"            for (int y = {first_y}; y < {end_y}; y++)",
        f"                for (int x = {first_x}; x < {end_x}; x++)",
        "                {",
        f"                    const float other = from[y * {width} + x];",
        "                    most = other > most || other != other ? other : most;",
        "                }",
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
        STORED,
    )


def _store(value: str, target: str, relu: bool) -> list[str]:
    """Returns statements that round a value to float and store it; a NaN passes through max(·, 0), so that it stays visible."""
    if not relu:
        return [f"    {target} = {value};"]
    return [f"    const float value = {value};", f"    {target} = value < 0.0f ? 0.0f : value;"]
