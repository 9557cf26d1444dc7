"""C for the operators that round once, or not at all: one loop each, written where it is used with the shapes as constants."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from vsparse.graph.ir import Add, AddConstant, AveragePool, Graph, MaxPool, MulConstant, Shape
from vsparse.stages.export.c_source.place import Place, plain
from vsparse.stages.export.c_source.program import Program

# Where a division by a power of two is a multiplication too, and so could be contracted with an addition that follows.
STORED = "VS_STORED;"


def emit_elementwise(
    program: Program, graph: Graph, node: Add | AddConstant | MulConstant, sources: list[Place], target: Place, relu: bool
) -> None:
    """Adds a residual addition, or the addition of or multiplication by a constant, broadcast."""
    if isinstance(node, Add):
        emit_nest(program, node.shape, [*sources, target], lambda s, t, to: store(f"{s} + {t}", to, relu))
        return
    constant = constant_place(program, graph, node)
    sign = "+" if isinstance(node, AddConstant) else "*"
    emit_nest(program, node.shape, [sources[0], constant, target], lambda s, c, to: store(f"{s} {sign} {c}", to, relu))
    if isinstance(node, MulConstant):
        program.do(STORED)


def constant_place(program: Program, graph: Graph, node: AddConstant | MulConstant) -> Place:
    """Returns the place of a constant, broadcast to the shape of the operator."""
    value = graph.params[node.constant]
    shape = (1,) * (len(node.shape) - value.ndim) + value.shape
    steps = tuple(0 if size == 1 else prod(shape[d + 1 :]) for d, size in enumerate(shape))
    name = f"{program.tables.table_of(node.name)}_constant"
    return Place(name, node.shape, 0, steps, prod(node.shape) if shape == node.shape else -1)


def emit_relu(program: Program, shape: Shape, source: Place, target: Place) -> None:
    """Adds a ReLU that no operator before it could apply."""
    emit_nest(program, shape, [source, target], lambda s, to: store(s, to, True))


def emit_copy(program: Program, source: Place, target: Place) -> None:
    """Adds a copy to an array whose margins, where it has some, become zero."""
    emit_zeros(program, target)
    emit_nest(program, target.shape, [source, target], lambda s, to: store(s, to, False))


def emit_zeros(program: Program, target: Place) -> None:
    """Adds what makes the margins of an array zero, where it has some."""
    if not target.is_plain:
        program.do(f"memset({target.array}, 0, {target.size} * sizeof(float));")


def emit_max_pool(program: Program, graph: Graph, node: MaxPool, source: Place, target: Place, relu: bool) -> None:
    """Adds a maximum over windows, clipped to the map; nothing is rounded, and a NaN is larger than every number."""
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
        f"            float most = {source.at(['c', first_y, first_x])};",
        f"            for (int y = {first_y}; y < {end_y}; y++)",
        f"                for (int x = {first_x}; x < {end_x}; x++) {{",
        f"                    const float one = {source.at(['c', 'y', 'x'])};",
        "                    most = one > most || one != one ? one : most;",
        "                }",
        *[f"            {line}" for line in store("most", target.at(["c", "i", "j"]), relu)],
        "        }",
    )


def emit_average_pool(program: Program, graph: Graph, node: AveragePool, source: Place, target: Place, relu: bool) -> None:
    """Adds a mean over windows: the sum in row-major order from its first element on, then one division."""
    channels = node.shape[0]
    sy, sx = node.stride
    window = prod(node.kernel)
    program.do(
        f"for (int c = 0; c < {channels}; c++)",
        f"    for (int i = 0; i < {node.shape[1]}; i++)",
        f"        for (int j = 0; j < {node.shape[2]}; j++) {{",
        "            float sum = 0.0f;",
        f"            for (int y = 0; y < {node.kernel[0]}; y++)",
        f"                for (int x = 0; x < {node.kernel[1]}; x++)",
        f"                    sum += {source.at(['c', f'(i * {sy} + y)', f'(j * {sx} + x)'])};",
        *[f"            {line}" for line in store(f"sum / vs_divisor({window}.0f)", target.at(["c", "i", "j"]), relu)],
        "        }",
        STORED,
    )


def store(value: str, target: str, relu: bool) -> list[str]:
    """Returns statements that round a value to float and store it; a NaN passes through max(·, 0), so that it stays visible."""
    if not relu:
        return [f"{target} = {value};"]
    return [f"const float value = {value};", f"{target} = value < 0.0f ? 0.0f : value;"]


def emit_nest(program: Program, shape: Shape, places: Sequence[Place], body: object) -> None:
    """Adds a loop over all elements, its statements by `body`; one loop where every place has them in row-major order."""
    assert callable(body)
    if all(place.is_plain for place in places):
        flat = (prod(shape),)
        shape, places = flat, [plain(place.array, flat) for place in places]
    indexes = [f"i{d}" if size > 1 else "0" for d, size in enumerate(shape)]
    loops = [(index, size) for index, size in zip(indexes, shape, strict=True) if index != "0"]
    for depth, (index, size) in enumerate(loops):
        last = " {" if depth == len(loops) - 1 else ""
        program.do(f"{'    ' * depth}for (int {index} = 0; {index} < {size}; {index}++){last}")
    inner = body(*(place.at(indexes) for place in places))
    if not loops:
        program.do("{", *[f"    {line}" for line in inner], "}")
        return
    program.do(*[f"{'    ' * len(loops)}{line}" for line in inner], f"{'    ' * (len(loops) - 1)}}}")
