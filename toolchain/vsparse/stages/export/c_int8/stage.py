"""What the export stage writes for a target that lists C and a recipe that asks for int8: model.int8.c, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vsparse.artifact.document import read_if_there, write_document
from vsparse.artifact.hashes import content_sha256, parse_model
from vsparse.artifact.models import C_INT8_SOURCE, CSourceRecord
from vsparse.c_prefix import DEFAULT_PREFIX
from vsparse.errors import InputError
from vsparse.graph.from_onnx import from_onnx
from vsparse.stages.export.c_int8.emit import HEADER, SOURCE, WEIGHTS, Int8Source, emit_int8_c, int8_prefix
from vsparse.stages.export.c_source.stage import footprint_of

RECORD = Path(C_INT8_SOURCE).name


def write_int8_c(
    model: Path, title: str, prefix: str = DEFAULT_PREFIX, machine: Sequence[str] = (), emit: Callable[..., Int8Source] = emit_int8_c
) -> bool:
    """Writes model.int8.c, its headers and c_source.int8.json beside a quantised ONNX file, from that file as it is on disk.

    Returns whether it has a C form; c_source.int8.json says why not. `machine` are the compiler's options for a microcontroller: what the
    C takes of it is recorded too, where its compiler is at hand. `emit` makes the files, as `emit_int8_c` does.
    """
    record = model.with_name(RECORD)
    try:
        source = emit(from_onnx(model), content_sha256(parse_model(model)), title, prefix)
    except InputError as error:
        write_document(record, CSourceRecord(written=False, reason=str(error)))
        return False
    source.write(model.parent)
    made = CSourceRecord(
        written=True,
        reason="",
        files=(SOURCE, HEADER, WEIGHTS),
        contract="int8",
        constant_bytes=source.memory.constant_bytes,
        static_bytes=source.memory.arena_bytes,
        prefix=prefix,
        footprint=footprint_of(model.with_name(SOURCE), int8_prefix(prefix), machine) if machine else None,
    )
    write_document(record, made)
    return True


def int8_prefix_of(source: Path) -> str:
    """Returns what the names of a model.int8.c begin with, by the record beside it; the default where there is none."""
    record = read_if_there(CSourceRecord, source.with_name(RECORD))
    return int8_prefix(DEFAULT_PREFIX if record is None else record.prefix)
