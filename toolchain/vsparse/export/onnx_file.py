"""The deployed ONNX file: written once, atomically, clean under the ONNX checker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from vsparse.errors import InputError
from vsparse.export.hashes import PREFIX, content_sha256, set_metadata
from vsparse.files import write_bytes
from vsparse.graph import Graph, to_onnx
from vsparse.graph.ir import BatchNorm


def write_onnx(graph: Graph, path: Path, opset: int, metadata: Mapping[str, str]) -> str:
    """Writes the graph as an ONNX file of that opset and returns its content hash (`content_sha256`).

    The file has one input `input` [batch, *shape] float32 and one output `logits` [batch, classes] float32; metadata keys get the
    prefix `vsparse.` where they lack it. The model is run through the ONNX checker with shape inference before anything is
    written, and the file then takes its name in one step. Raises InputError for a graph that still holds a batch
    normalisation, for weights that are not finite, and for what the checker refuses.
    """
    for node in graph.nodes:
        if isinstance(node, BatchNorm):
            raise InputError(f'node "{node.name}" is a batch normalisation; fold it (vsparse.graph.fold_batch_norm) before export')
    model = to_onnx(
        graph, opset, {key if key.startswith(PREFIX) else PREFIX + key: str(value) for key, value in metadata.items()}, path.stem
    )
    set_metadata(model, metadata)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(
            f"the network cannot be written as ONNX opset {opset}: {str(error).splitlines()[0]}; choose another opset"
        ) from error
    write_bytes(path, model.SerializeToString(deterministic=True))
    return content_sha256(model)
