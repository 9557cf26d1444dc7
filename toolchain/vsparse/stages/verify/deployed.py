"""The artifact itself: a model file read from disk once, as the graph that is bounded and as the ONNX Runtime session that is replayed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.files import read_bytes
from vsparse.graph import Graph, from_onnx
from vsparse.graph.quantised import is_quantised
from vsparse.processor import half_precision_contract, this_processor

MAX_MODEL_BYTES = 2 * 2**30
Level = Literal["disable", "basic", "extended", "all"]
LEVELS: dict[Level, Any] = {
    "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@dataclass(frozen=True)
class Deployed:
    """A model file as it was on disk: its bytes, their content hash, and the graph they say. Everything else is made from the bytes."""

    file: str
    data: bytes
    sha256: str
    graph: Graph

    @property
    def classes(self) -> int:
        """The number of outputs."""
        return self.graph.shape_of(self.graph.output)[0]

    @property
    def executes(self) -> str:
        """The contract within which ONNX Runtime executes the file on a CPU."""
        if is_quantised(self.graph):
            return "int8"
        return half_precision_contract(this_processor()) if self.graph.storage == "fp16" else "fp32"


def read_model(path: Path, file: str | None = None) -> Deployed:
    """Reads a classifier from disk; `file` is the name it has in claims (default: the path's last part).

    Raises InputError when the file cannot be read, is no ONNX model that a graph can say, has weights that are not finite, or is no
    classifier.
    """
    from vsparse.stages.export.hashes import content_sha256

    data = read_bytes(path, "model", MAX_MODEL_BYTES)
    graph = from_onnx(data, str(path))
    for name, values in graph.params.items():
        if not np.isfinite(values).all():
            raise InputError(f'model {path}: parameter "{name}" has values that are not finite; train or export it again')
    shape = graph.shape_of(graph.output)
    if len(shape) != 1 or shape[0] < 2:
        raise InputError(
            f"model {path} has outputs of shape {list(shape)} for one sample, a classifier has one number for each of two or more classes"
        )
    return Deployed(file or path.name, data, content_sha256(data), graph)


class Runtime:
    """One ONNX Runtime session on the CPU, with the options that are stated in a certificate.

    `batch` samples are executed at once; replays use 1, as a deployed classifier does.
    """

    def __init__(self, model: bytes, level: Level = "all", threads: int = 1, batch: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = LEVELS[level]
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # fatal only: what goes wrong is raised
        self.batch = batch
        try:
            self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own, which share no base but Exception
            raise InputError(f"onnxruntime cannot load the model ({_first_line(error)}); export it again for this version") from error
        self.input = self.session.get_inputs()[0].name

    def run(self, inputs: NDArray[np.float32], outputs: Sequence[str] | None = None) -> list[NDArray[np.float32]]:
        """Returns the outputs (default: all of the model's) of inputs [n, *shape], each [n, …], executed `batch` at a time."""
        names = list(outputs) if outputs is not None else None
        results: list[list[NDArray[np.float32]]] = []
        try:
            for start in range(0, len(inputs), self.batch):
                piece = np.ascontiguousarray(inputs[start : start + self.batch])
                results.append(self.session.run(names, {self.input: piece}))
        except Exception as error:  # as above
            raise InputError(
                f"onnxruntime cannot execute the model on inputs of shape {list(inputs.shape[1:])} ({_first_line(error)})"
            ) from error
        return [np.concatenate(parts) for parts in zip(*results, strict=True)]

    def logits(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the model's first output [n, classes] for inputs [n, *shape]."""
        return self.run(inputs)[0]


def describe_replay(level: Level = "all", threads: int = 1) -> dict[str, str]:
    """Returns how predictions and counterexamples are executed, as a certificate states it."""
    return {
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "provider": "CPUExecutionProvider",
        "graph_optimization_level": level,
        "intra_op_threads": str(threads),
        "batch": "1",
    }


def predictions(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns the index of the largest logit of each row, the first of equals, and -1 where a logit is not finite."""
    largest: NDArray[np.int64] = np.argmax(logits, axis=1).astype(np.int64)
    largest[~np.all(np.isfinite(logits), axis=1)] = -1
    return largest


def session_variants() -> list[tuple[Level, int, int]]:
    """Returns the (graph optimisation level, threads, batch) under which an audit executes a model."""
    return [*itertools.product(LEVELS, (1, 2), (1,)), ("all", 1, 8)]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
