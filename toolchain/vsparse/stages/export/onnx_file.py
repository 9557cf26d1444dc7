"""The deployed ONNX file: written once, atomically, clean under the ONNX checker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vsparse.artifact.hashes import content_sha256, set_metadata
from vsparse.files import write_bytes
from vsparse.graph import Graph, to_onnx


def write_onnx(graph: Graph, path: Path, opset: int, metadata: Mapping[str, str], *, bfloat16: bool = False) -> str:
    """Writes the graph as an ONNX file of that opset and returns its content hash (`content_sha256`).

    The file has one input `input` [batch, *shape] float32 and one output `logits` [batch, classes] float32; metadata keys get the
    prefix `vsparse.` where they lack it. The model passes the ONNX checker, shape inference included, before anything is
    written, and the file then takes its name in one step. The same graph gives the same bytes. With `bfloat16` parameters are stored in
    bfloat16 (docs/numerics.md, section 8.1). Raises InputError for a graph that still holds a batch normalisation, for a parameter that
    is no bfloat16 number where these are to be stored, and for what the checker refuses.
    """
    model = to_onnx(graph, opset, None, path.stem, bfloat16=bfloat16)
    set_metadata(model, metadata)
    write_bytes(path, model.SerializeToString(deterministic=True))
    return content_sha256(model)
