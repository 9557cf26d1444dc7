"""What the export stage writes for a target that lists C: model.c and model.h beside the ONNX file, or why there are none."""

from __future__ import annotations

from pathlib import Path

from vsparse.artifact.document import write_document
from vsparse.artifact.hashes import content_sha256, parse_model
from vsparse.artifact.models import CSourceRecord
from vsparse.errors import InputError
from vsparse.graph.from_onnx import from_onnx
from vsparse.stages.export.c_source.emit import HEADER, SOURCE, WEIGHTS, emit_c

RECORD = "c_source.json"


def write_c(model: Path, title: str) -> bool:
    """Writes model.c, model.h and c_source.json beside an ONNX file, from that file as it is on disk; returns whether it has a C form.

    A network with an operator that has none is deployed as ONNX alone, and c_source.json says why.
    """
    record = model.with_name(RECORD)
    try:
        source = emit_c(from_onnx(model), content_sha256(parse_model(model)), title)
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
    )
    write_document(record, made)
    return True
