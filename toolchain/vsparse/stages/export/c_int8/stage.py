"""What the export stage writes for a target that lists C and a recipe that asks for int8: model.int8.c, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vsparse.artifact.hashes import content_sha256, parse_model
from vsparse.artifact.models import C_INT8_SOURCE, CSourceRecord
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.ir import Graph
from vsparse.stages.export.c_int8.emit import SOURCE, Int8Source, emit_int8_c, int8_prefix
from vsparse.stages.export.c_source.stage import AS_IT_COMES, CRequest, analysis_of, footprint_of, prefix_of, write_recorded
from vsparse.stages.export.c_source.weights import Notation

RECORD = Path(C_INT8_SOURCE).name


def write_int8_c(model: Path, title: str, asked: CRequest = AS_IT_COMES, emit: Callable[..., Int8Source] = emit_int8_c) -> bool:
    """Writes model.int8.c, its headers and c_source.int8.json beside a quantised ONNX file, from that file as it is on disk.

    Returns whether it has a C form; c_source.int8.json says why not. The costs that are asked for concern the float32 text alone. `emit`
    makes the files, as `emit_int8_c` does.
    """
    prefix = int8_prefix(asked.prefix)

    def emitted(graph: Graph, model_sha256: str, weights: Notation = asked.weights) -> Int8Source:
        return emit(graph, model_sha256, title, asked.prefix, weights)

    def as_text() -> Mapping[str, str | bytes]:
        return emitted(from_onnx(model), content_sha256(parse_model(model)), "text").files()

    def recorded(source: Int8Source) -> CSourceRecord:
        return CSourceRecord(
            written=True,
            reason="",
            files=tuple(source.files()),
            contract="int8",
            constant_bytes=source.memory.constant_bytes,
            static_bytes=source.memory.arena_bytes,
            prefix=asked.prefix,
            footprint=footprint_of(model.with_name(SOURCE), prefix, asked.machine),
            analysis=analysis_of(as_text, SOURCE, prefix, asked.eva),
        )

    return write_recorded(model, RECORD, emitted, recorded)


def int8_prefix_of(source: Path) -> str:
    """Returns what the names of a model.int8.c begin with, by the record beside it; the default where there is none."""
    return int8_prefix(prefix_of(source, RECORD))
