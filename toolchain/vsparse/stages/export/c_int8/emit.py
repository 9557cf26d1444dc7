"""Plain C99 for a quantised network: sums of int8 in int32, results rounded to the next grid by float32 (docs/numerics.md, section 6.3).

Activations are int8, channels last; pruned weights are absent where a layer is a list, and zeros where it is dense. The text has no
vectors of its own: sums of integers are exact in any order, so a compiler may make any of them, and with the DSP extension of Cortex-M or
its vectors (MVE) there are kernels that give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from vsparse.artifact.models import C_INT8_BINARY_FILES, C_INT8_FILES
from vsparse.c_prefix import DEFAULT_PREFIX, require_prefix
from vsparse.errors import InputError
from vsparse.graph import validate
from vsparse.graph.ir import Add, AveragePool, Conv, Gemm, Graph, MaxPool, Reshape
from vsparse.graph.operators.quantised import FakeQuant
from vsparse.stages.export.c_int8.fusion import Step, grids_of, is_integer_sum, require_c_operators, steps_of
from vsparse.stages.export.c_int8.place import Margin, Stored, channels_last, is_row_major
from vsparse.stages.export.c_int8.pointwise import (
    emit_average_pool,
    emit_elementwise,
    emit_float_sum,
    emit_integer_relu,
    emit_logits,
    emit_max_pool,
    emit_move,
)
from vsparse.stages.export.c_int8.program import Int8Program
from vsparse.stages.export.c_int8.sums import emit_sum
from vsparse.stages.export.c_int8.text import header, source
from vsparse.stages.export.c_source.arena import Arena, Lifetime, plan_arena
from vsparse.stages.export.c_source.emit import MAX_WEIGHTS, MAX_WINDOW
from vsparse.stages.export.c_source.literals import comment
from vsparse.stages.export.c_source.place import Place, margin_of
from vsparse.stages.export.c_source.text import Addition, CFiles, CMemory
from vsparse.stages.export.c_source.weights import Notation, weight_files

SOURCE, HEADER, WEIGHTS = C_INT8_FILES
INPUT = "input"


@dataclass(frozen=True)
class Int8Source(CFiles):
    """The files, what the program takes, and of each sum on integers whether it lists its non-zero weights."""

    names = C_INT8_FILES
    binary_names = C_INT8_BINARY_FILES
    memory: CMemory
    listed: tuple[bool, ...] = ()


def int8_prefix(prefix: str) -> str:
    """Returns what the names of the int8 C begin with, by the prefix of the float32 one: both may be in one program."""
    return f"{prefix}_int8"


@dataclass(frozen=True)
class Int8Parts:
    """What a quantised network in C is made of: what further functions build upon. `arena_bytes` are those of the inference."""

    program: Int8Program
    steps: tuple[Step, ...]
    stored: Mapping[str, Stored]
    aliases: Mapping[str, str]
    arena_bytes: int


def emit_int8_c(
    graph: Graph,
    model_sha256: str = "",
    title: str = "",
    prefix: str = DEFAULT_PREFIX,
    weights: Notation = "auto",
    add: Callable[[Int8Parts], Addition] | None = None,
) -> Int8Source:
    """Returns the C files for a quantised graph read back from its ONNX file, whose content hash they name.

    Names begin with `prefix` and `_int8`; `weights` is the notation of the weights (c_source). `add` makes further functions of the parts,
    and may add tables; the arena is then that of the largest. Raises InputError for an operator that has no form in it, naming it, for a
    graph that is not in the form of the contract `int8`, for a model too large for a C file, and for a prefix that is no C identifier.
    """
    require_prefix(prefix)
    validate(graph)
    steps = steps_of(graph)
    if sum(int(np.count_nonzero(value)) for value in graph.params.values()) > MAX_WEIGHTS:
        raise InputError(f"the model has more than {MAX_WEIGHTS} weights, too many for a C file; deploy model.int8.onnx")
    for node in graph.nodes:
        if isinstance(node, AveragePool) and prod(node.kernel) > MAX_WINDOW:
            raise InputError(f'node "{node.name}" averages windows of {prod(node.kernel)} elements, more than {MAX_WINDOW}')
    names = int8_prefix(prefix)
    stored, aliases = places_of(graph, steps)
    program = Int8Program(graph, stored)
    for number, step in enumerate(steps):
        if step.result not in aliases:
            program.begin(number, _title(step))
            _emit(program, step)
    program.begin(len(steps), "the logits")
    emit_logits(program, stored[graph.output])
    arena = _arena(graph, steps, stored, aliases)
    own = 4 * max(-(-arena.size // 4), 1)
    added = None if add is None else add(Int8Parts(program, steps, stored, aliases, own))
    memory = CMemory(program.constants.bytes, own if added is None else max(own, 4 * added.arenas["int8"]))
    constants = weight_files(C_INT8_FILES, program.constants.tables, weights, title, names)
    return Int8Source(
        header(
            names, graph.input_shape, prod(graph.shape_of(graph.output)), model_sha256, title, memory, own // 4, constants.assembly, added
        ),
        source(names, title, program.functions, _body(program, arena, stored), added),
        constants.header,
        memory,
        tuple(program.listed),
        binary=constants.binary,
    )


def require_int8_c_form(graph: Graph) -> None:
    """Raises InputError for an operator of a float32 or quantised graph that has no form in the int8 C, naming it."""
    require_c_operators(graph)


def _title(step: Step) -> str:
    parts = [*([step.head] if step.head is not None else []), *step.chain, *([step.grid] if step.grid is not None else [])]
    shown = ", ".join("to int8" if isinstance(node, FakeQuant) else f"{type(node).__name__} {comment(node.name)}" for node in parts)
    return shown or comment(step.result)


def places_of(graph: Graph, steps: tuple[Step, ...]) -> tuple[dict[str, Stored], dict[str, str]]:
    """Returns where each activation lies, and which ones lie where another does, by the name of that."""
    grids, readers = grids_of(graph), graph.consumers()
    made = {step.result: step for step in steps}
    reading: dict[str, list[Step]] = {}
    for step in steps:
        for name in step.inputs:
            reading.setdefault(name, []).append(step)
    stored: dict[str, Stored] = {}
    aliases: dict[str, str] = {}
    shape = graph.input_shape
    stored[graph.input] = Stored(Place(INPUT, shape, 0, tuple(prod(shape[d + 1 :]) for d in range(len(shape))), prod(shape)), None)
    for number, step in enumerate(steps):
        name = step.result
        shape, grid = graph.shape_of(name), grids[name]
        before = stored[step.inputs[0]]
        if isinstance(step.head, Reshape):
            # Sums of integers take their inputs from wherever they lie; others read them in order.
            only_sums = all(isinstance(one.head, Gemm) and grid is not None for one in reading.get(name, [])) and name != graph.output
            same = is_row_major(before.place) and is_row_major(channels_last("", shape)) and not _margin(graph, name, readers, grids)
            if only_sums or same:
                place = before.place if only_sums else channels_last(before.place.array, shape)
                stored[name] = Stored(place, grid)
                aliases[name] = aliases.get(step.inputs[0], step.inputs[0])
                continue
        margin = _margin(graph, name, readers, grids)
        stored[name] = Stored(channels_last(f"a{number + 1}", shape, margin or (0, 0, 0, 0)), grid)
    assert set(stored) == {graph.input, *made}
    return stored, aliases


def _margin(graph: Graph, name: str, readers: dict[str, list[object]] | object, grids: dict[str, FakeQuant | None]) -> Margin | None:
    """Returns the margin that the convolutions which read an int8 map need around it; None where there is none."""
    if grids[name] is None or len(graph.shape_of(name)) != 3:
        return None
    margin = (0, 0, 0, 0)
    for node in graph.nodes:
        if isinstance(node, Conv) and node.inputs[0] == name:
            own = margin_of(node, graph.params[node.weight].shape, graph.shape_of(name))
            t, left, b, r = (max(pair) for pair in zip(own, margin, strict=True))
            margin = (t, left, b, r)
    return margin if any(margin) else None


def _emit(program: Int8Program, step: Step) -> None:
    head, sources, target = step.head, [program.stored[name] for name in step.inputs], program.stored[step.result]
    grids = {name: program.stored[name].grid for name in step.inputs}
    if target.has_margin and target.grid is not None:
        program.do(f"memset({target.place.array}, {target.zero & 255}, {target.bytes});")
    if isinstance(head, Reshape):
        emit_move(program, sources[0], target)
    elif is_integer_sum(head, grids):
        emit_sum(program, step, sources[0], target)
    elif isinstance(head, Conv | Gemm):
        emit_float_sum(program, step, sources[0], target)
    elif isinstance(head, AveragePool):
        emit_average_pool(program, step, sources[0], target)
    elif isinstance(head, MaxPool):
        emit_max_pool(program, step, sources[0], target)
    elif head is None or isinstance(head, Add):
        emit_elementwise(program, step, sources, target)
    else:
        emit_integer_relu(program, sources[0], target)


def _arena(graph: Graph, steps: tuple[Step, ...], stored: dict[str, Stored], aliases: dict[str, str]) -> Arena:
    """Plans where every array lies, in bytes; each lives from the step that writes it to the last that reads it."""
    last = {step.result: number for number, step in enumerate(steps)}
    first = dict(last)
    for number, step in enumerate(steps):
        for name in step.inputs:
            root = aliases.get(name, name)
            last[root] = max(last.get(root, 0), number)
    last[aliases.get(graph.output, graph.output)] = len(steps)
    lives = [Lifetime(stored[name].place.array, stored[name].bytes, first[name], last[name]) for name in first if name not in aliases]
    return plan_arena(lives, 4)


def _body(program: Int8Program, arena: Arena, stored: dict[str, Stored]) -> list[str]:
    """Returns the statements of the whole network, each array a pointer into `arena`."""
    kinds = {one.place.array: one.kind for one in stored.values()}
    lines = []
    for number, statements in program.statements.items():
        text = "\n".join(statements)
        pointers = [
            f"float *const {name} = arena + {offset // 4};"
            if kinds[name] == "float"
            else f"int8_t *const {name} = (int8_t *)(void *)arena + {offset};"
            for name, offset in arena.offsets.items()
            if f"{name}[" in text or f"{name}," in text or f"{name})" in text
        ]
        lines += [f"    /* {program.titles[number]} */", "    {", *[f"        {line}" for line in [*pointers, *statements]], "    }"]
    return lines
