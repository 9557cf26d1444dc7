"""What the export stage writes for a target that lists C: model.c and model.h beside the ONNX file, or why there are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from vsparse.artifact.document import read_if_there, write_document
from vsparse.artifact.hashes import content_sha256, parse_model
from vsparse.artifact.models import CFootprint, CSourceRecord
from vsparse.c_prefix import DEFAULT_PREFIX
from vsparse.errors import InputError, UnavailableError
from vsparse.graph.from_onnx import from_onnx
from vsparse.stages.export.c_source.emit import HEADER, SOURCE, WEIGHTS, CSource, emit_c
from vsparse.stages.export.firmware.link import OPTIONS, footprint

RECORD = "c_source.json"


def write_c(
    model: Path, title: str, prefix: str = DEFAULT_PREFIX, machine: Sequence[str] = (), emit: Callable[..., CSource] = emit_c
) -> bool:
    """Writes model.c, model.h and c_source.json beside an ONNX file, from that file as it is on disk; returns whether it has a C form.

    `machine` are the compiler's options for a microcontroller: what the C takes of it is recorded too, where its compiler is at hand.
    `emit` makes the files. A network with an operator that has none is deployed as ONNX alone, and c_source.json says why.
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
        contract="sequential",
        constant_bytes=source.vector.constant_bytes,
        static_bytes=source.vector.arena_bytes,
        scalar_constant_bytes=source.scalar.constant_bytes,
        scalar_static_bytes=source.scalar.arena_bytes,
        prefix=prefix,
        footprint=footprint_of(model.with_name(SOURCE), prefix, machine) if machine else None,
    )
    write_document(record, made)
    return True


def prefix_of(source: Path) -> str:
    """Returns what the names of a model.c begin with, by the record beside it; the default where there is none."""
    record = read_if_there(CSourceRecord, source.with_name(RECORD))
    return DEFAULT_PREFIX if record is None else record.prefix


def footprint_of(source: Path, prefix: str, machine: Sequence[str]) -> CFootprint | None:
    """Returns what a network in C takes of a microcontroller; None where its compiler is not at hand."""
    try:
        found = footprint(machine, source, prefix)
    except UnavailableError:
        return None
    return CFootprint(**{**asdict(found), "stack_bytes": found.stack_bytes or None}, options=(*machine, *OPTIONS))
