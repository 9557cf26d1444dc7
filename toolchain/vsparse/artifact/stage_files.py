"""What one stage hands to the next: file names, graphs as ONNX, tensors as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.files import write_bytes
from vsparse.graph import Graph, to_onnx

TRAINED = "trained.onnx"
PACKED = "packed.onnx"
MASKS = "masks.safetensors"
WEIGHTS = "weights.safetensors"
HISTORY = "history.json"
LAYERS = "layers.json"
STORAGE_OPSET = 17


def write_graph(graph: Graph, path: Path) -> None:
    """Writes a graph between two stages, as ONNX."""
    write_bytes(path, to_onnx(graph, STORAGE_OPSET, {}, path.stem).SerializeToString(deterministic=True))


def write_tensors(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """Writes arrays by name as a safetensors file."""
    from safetensors.numpy import save

    write_bytes(path, save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


def read_masks(path: Path) -> dict[str, NDArray[np.bool_]]:
    """Reads masks by parameter name; InputError for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: value.astype(np.bool_) for name, value in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"masks {path} cannot be read: {error}; train again") from error
