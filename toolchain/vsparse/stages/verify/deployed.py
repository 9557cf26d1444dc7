"""The deployed model: a file read from disk once, both as the graph that is bounded and as the ONNX Runtime session for replay."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.files import read_bytes
from vsparse.graph import Graph, Reading, read_onnx
from vsparse.graph.quantised import integer_contract, is_quantised
from vsparse.processor import half_precision_contract, this_processor
from vsparse.reading.integer_kernels import adds_bytes_exactly
from vsparse.reading.runtime import LEVELS, Level, Runtime

__all__ = [
    "MAX_MODEL_BYTES",
    "Deployed",
    "Level",
    "Runtime",
    "describe_replay",
    "predictions",
    "read_model",
    "session_variants",
]

MAX_MODEL_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Deployed:
    """A model file as it was on disk: its bytes, their content hash, and the network read from them; all else derives from the bytes."""

    file: str
    data: bytes
    sha256: str
    reading: Reading

    @property
    def graph(self) -> Graph:
        """The network that was read."""
        return self.reading.graph

    @property
    def classes(self) -> int:
        """The number of outputs."""
        return self.graph.shape_of(self.graph.output)[0]

    @property
    def executes(self) -> str:
        """The contract that ONNX Runtime's CPU execution of the file satisfies."""
        if is_quantised(self.graph):
            return integer_contract(self.graph)
        if self.graph.wide_sums:
            return "fp16-tensorrt"
        return half_precision_contract(this_processor()) if self.graph.storage == "fp16" else "fp32"

    @property
    def levels(self) -> tuple[Level, ...]:
        """The optimisation levels at which ONNX Runtime executes the file within the contract; the last one replays.

        Files for TensorRT run in floats, as they stand: the integer kernels of processors without VNNI saturate their 8-bit weights. So do
        others with such weights where this processor's kernels saturate.
        """
        floats = self.executes == "int8-tensorrt" or (self.executes == "int8-exact" and not adds_bytes_exactly())
        return ("disable",) if floats else tuple(LEVELS)


def read_model(path: Path, file: str | None = None, regression: bool = False) -> Deployed:
    """Reads a classifier, or a network with one answer for `regression`; `file` is its name in claims (default: the path's last part).

    Raises InputError when the file cannot be read, is no ONNX model that the graph IR can represent, has weights that are not finite, or
    is no classifier.
    """
    from vsparse.artifact.hashes import content_sha256

    data = read_bytes(path, "model", MAX_MODEL_BYTES)
    reading = read_onnx(data, str(path))
    graph = reading.graph
    for name, values in graph.params.items():
        if not np.isfinite(values).all():
            raise InputError(f'model {path}: parameter "{name}" has values that are not finite; train or export it again')
    shape = graph.shape_of(graph.output)
    if regression and tuple(shape) != (1,):
        raise InputError(f"model {path} has outputs of shape {list(shape)} for one sample, and property.delta is about networks with one")
    if not regression and tuple(shape) == (1,):
        raise InputError(f"model {path} has one output: a number, whose property is that it changes by no more than δ; say --delta δ")
    if not regression and (len(shape) != 1 or shape[0] < 2):
        raise InputError(
            f"model {path} has outputs of shape {list(shape)} for one sample, a classifier has one number for each of two or more classes"
        )
    return Deployed(file or path.name, data, content_sha256(data), reading)


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


def session_variants(levels: Sequence[Level] = tuple(LEVELS)) -> list[tuple[Level, int, int]]:
    """Returns the (graph optimisation level, threads, batch) under which an audit executes a model."""
    return [*itertools.product(levels, (1, 2), (1,)), (levels[-1], 1, 8)]
