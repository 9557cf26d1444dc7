"""What the export stage writes for a target that lists C and a recipe that asks for int8: model.int8.c, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vsparse.artifact.models import C_INT8_SOURCE, CSourceRecord
from vsparse.c_prefix import DEFAULT_PREFIX
from vsparse.graph.ir import Graph
from vsparse.stages.export.c_int8.emit import SOURCE, Int8Source, emit_int8_c, int8_prefix
from vsparse.stages.export.c_source.stage import footprint_of, prefix_of, write_recorded

RECORD = Path(C_INT8_SOURCE).name


def write_int8_c(model: Path, title: str, prefix: str = DEFAULT_PREFIX, machine: Sequence[str] = ()) -> bool:
    """Writes model.int8.c, its headers and c_source.int8.json beside a quantised ONNX file, from that file as it is on disk.

    Returns whether it has a C form; c_source.int8.json says why not. `machine` are the compiler's options for a microcontroller: what the
    C takes of it is recorded too, where its compiler is at hand.
    """

    def emit(graph: Graph, model_sha256: str) -> Int8Source:
        return emit_int8_c(graph, model_sha256, title, prefix)

    def recorded(source: Int8Source) -> CSourceRecord:
        return CSourceRecord(
            written=True,
            reason="",
            files=source.names,
            contract="int8",
            constant_bytes=source.memory.constant_bytes,
            static_bytes=source.memory.arena_bytes,
            prefix=prefix,
            footprint=footprint_of(model.with_name(SOURCE), int8_prefix(prefix), machine),
        )

    return write_recorded(model, RECORD, emit, recorded)


def int8_prefix_of(source: Path) -> str:
    """Returns what the names of a model.int8.c begin with, by the record beside it; the default where there is none."""
    return int8_prefix(prefix_of(source, RECORD))
