"""What the export stage writes for a target that lists C: model.c and model.h beside the ONNX file, or why there are none."""

from __future__ import annotations

from pathlib import Path

from vsparse.artifact.hashes import content_sha256, parse_model
from vsparse.errors import InputError
from vsparse.files import write_json
from vsparse.graph.from_onnx import from_onnx
from vsparse.stages.export.c_source.emit import HEADER, SOURCE, emit_c

RECORD = "c_source.json"


def write_c(model: Path, title: str) -> bool:
    """Writes model.c, model.h and c_source.json beside an ONNX file, from that file as it is on disk; returns whether it has a C form.

    A network with an operator that has none is deployed as ONNX alone, and c_source.json says why.
    """
    try:
        source = emit_c(from_onnx(model), content_sha256(parse_model(model)), title)
    except InputError as error:
        write_json(model.with_name(RECORD), {"schema_version": 1, "written": False, "reason": str(error)})
        return False
    source.write(model.parent)
    write_json(
        model.with_name(RECORD),
        {
            "schema_version": 1,
            "written": True,
            "reason": "",
            "files": [SOURCE, HEADER],
            "contract": "sequential",
            "constant_bytes": source.constant_bytes,
            "static_bytes": source.static_bytes,
        },
    )
    return True
