"""The model files of further precisions: made from the float32 file that was written, and checked as that one is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vsparse.artifact import precision_model
from vsparse.artifact.document import write_document
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.files import write_json
from vsparse.graph.from_onnx import from_onnx
from vsparse.reading import check_written
from vsparse.stages.export.half import half
from vsparse.stages.export.onnx_file import write_onnx
from vsparse.stages.export.quantise import quantise
from vsparse.stages.export.runtime_graph import check_runtime_graph

# Training samples, evenly spaced over the split, whose activations set the ranges of a quantised model.
CALIBRATION = 512


def write_precision(model: Path, precision: str, opset: int, metadata: Mapping[str, str], training: Dataset) -> Path:
    """Writes the file of one precision (`fp16` or `int8`) beside the float32 model, with what the runtime makes of it; returns its path.

    The file is read back, executed and compared with what was meant; reading.PRECISION.json keeps the evidence.

    Raises InputError for another precision and for a network that it cannot hold, GateError where the runtime changes a weight.
    """
    graph = from_onnx(model)
    if precision == "fp16":
        made = half(graph)
    elif precision == "int8":
        index = np.unique(np.linspace(0, len(training) - 1, min(CALIBRATION, len(training))).round().astype(np.int64))
        made = quantise(graph, training.inputs(index).reshape(len(index), *graph.input_shape))
    else:
        raise InputError(f'there is no precision "{precision}" to export; choose fp16 or int8')
    path = model.with_name(Path(precision_model(precision)).name)
    write_onnx(made, path, opset, {**metadata, "contract": precision})
    write_document(path.with_name(f"runtime_graph.{precision}.json"), check_runtime_graph(path))
    write_json(path.with_name(f"reading.{precision}.json"), check_written(path, made).as_dict())
    return path
