"""Plain C99 for a graph, without dependencies, allocation or any order of summation but the one that is certified.

The order (contract `sequential`, docs/c.md): a sum begins with the bias; then come the products of the non-zero weights in the row-major
order of the weight tensor [out, in/groups, kh, kw], each added by a multiplication and an addition or by one fused multiply-add. Zero
weights and padding may be added too, as the exact zeros that they are. An average is the sum of its window in row-major order, then one
division. Every operator stores its result as float32 before the next one reads it.

model.c has the network twice, for processors with vectors (`vector_program`) and for those without (`scalar_program`); their weights are
in model_weights.h, one set for both but where another order of them is worth its bytes (selection.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from vsparse.artifact.models import C_FILES
from vsparse.c_prefix import DEFAULT_PREFIX, require_prefix
from vsparse.errors import InputError
from vsparse.files import write_bytes
from vsparse.graph import validate
from vsparse.graph.ir import AveragePool, BatchNorm, Graph, Node
from vsparse.stages.export.c_source.arena import Arena
from vsparse.stages.export.c_source.costs import COSTS, KernelCosts
from vsparse.stages.export.c_source.layers import LayerKernels, add_tables
from vsparse.stages.export.c_source.literals import comment
from vsparse.stages.export.c_source.program import Program
from vsparse.stages.export.c_source.selection import select_kernels
from vsparse.stages.export.c_source.tables import Tables
from vsparse.stages.export.c_source.text import Addition, CMemory, header, source, weights
from vsparse.stages.export.c_source.texts import SUPPORTED, scalar_program, vector_program
from vsparse.stages.export.c_source.tiles import kernel_text

SOURCE, HEADER, WEIGHTS = C_FILES
# A weight takes some 13 bytes of text.
MAX_WEIGHTS = 2**25
# A window's size must be a float32 itself.
MAX_WINDOW = 2**24


@dataclass(frozen=True)
class CSource:
    """The three files, and what the program takes with vectors and without."""

    header: str
    source: str
    weights: str
    vector: CMemory
    scalar: CMemory

    def files(self) -> dict[str, str]:
        """Returns the text of each file by its name."""
        return {SOURCE: self.source, HEADER: self.header, WEIGHTS: self.weights}

    def write(self, directory: Path) -> None:
        """Writes the files, each in one step."""
        for name, text in self.files().items():
            write_bytes(directory / name, text.encode())


@dataclass(frozen=True)
class Parts:
    """What a network in C is made of, by the names of its texts, `vector` and `scalar`: what further functions build upon."""

    kernels: Mapping[str, LayerKernels]
    programs: Mapping[str, Program]
    arenas: Mapping[str, Arena]


def emit_c(
    graph: Graph,
    model_sha256: str = "",
    title: str = "",
    prefix: str = DEFAULT_PREFIX,
    costs: KernelCosts = COSTS,
    add: Callable[[Parts], Addition] | None = None,
) -> CSource:
    """Returns the C files for a graph read back from its ONNX file, whose content hash they name.

    `prefix` begins the names of functions and, in capitals, of constants. `costs` are those of the kernels on the machine that is to
    execute the text with vectors: they choose kernels, which changes no bit of a result. `add` makes further functions of the parts, which
    may add kernels, functions and tables to them; the arena is then that of the largest. Raises InputError for an operator that has no C
    form, naming it, for a model too large for a C file, and for a prefix that is no C identifier.
    """
    require_prefix(prefix)
    validate(graph)
    if graph.storage != "fp32":
        raise InputError(f"the file stores {graph.storage}, and the C source computes in float32; make it from the float32 file")
    for node in graph.nodes:
        _require_supported(node)
    if sum(int(np.count_nonzero(value)) for value in graph.params.values()) > MAX_WEIGHTS:
        raise InputError(f"the model has more than {MAX_WEIGHTS} weights, too many for a C file; deploy its ONNX file")
    tables = Tables()
    chosen = select_kernels(graph, costs)
    add_tables(tables, graph, chosen)
    programs = {"vector": vector_program(graph, tables, chosen, costs), "scalar": scalar_program(graph, tables, chosen)}
    arenas = {name: program.arena() for name, program in programs.items()}
    added = None if add is None else add(Parts(chosen, programs, arenas))
    own = {name: max(arenas[name].size, 1) for name in programs}
    floats = own if added is None else {name: max(size, added.arenas[name]) for name, size in own.items()}
    memory = {name: CMemory(tables.bytes_of("vector" if name == "vector" else "scalar"), 4 * floats[name]) for name in programs}
    kernels = {name: [kernel_text(one) for one in program.kernels] for name, program in programs.items()}
    bodies = {name: program.body(arenas[name]) for name, program in programs.items()}
    return CSource(
        header(
            prefix,
            graph.input_shape,
            prod(graph.shape_of(graph.output)),
            model_sha256,
            title,
            memory["vector"],
            memory["scalar"],
            own,
            added,
        ),
        source(
            prefix,
            title,
            tables.index_type,
            [*kernels["vector"], programs["vector"].definitions()],
            bodies["vector"],
            [*kernels["scalar"], programs["scalar"].definitions()],
            bodies["scalar"],
            added,
        ),
        weights(comment(title), tables.text()),
        memory["vector"],
        memory["scalar"],
    )


def require_c_form(graph: Graph) -> None:
    """Raises InputError for an operator that has no C form, naming it."""
    for node in graph.nodes:
        _require_supported(node)


def _require_supported(node: Node) -> None:
    name, kind = node.name, type(node).__name__
    if isinstance(node, BatchNorm):
        raise InputError(f'node "{name}" is a batch normalisation; fold it before the C source is written')
    if not isinstance(node, SUPPORTED):
        known = ", ".join(one.__name__ for one in SUPPORTED)
        raise InputError(f'node "{name}" is a {kind}, which the C source has no form for; it has {known}; deploy the ONNX file instead')
    if isinstance(node, AveragePool) and prod(node.kernel) > MAX_WINDOW:
        raise InputError(f'node "{name}" averages windows of {prod(node.kernel)} elements, more than the {MAX_WINDOW} that float32 counts')
