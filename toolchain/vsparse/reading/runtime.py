"""One ONNX Runtime session on the CPU, with the options that are stated in certificates and evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.graph.shapes import show

Level = Literal["disable", "basic", "extended", "all"]
LEVELS: dict[Level, Any] = {
    "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
VERSION: str = onnxruntime.__version__


class Runtime:
    """One ONNX Runtime session on the CPU.

    `batch` samples are executed at once; replays use 1, as a deployed classifier does. Raises InputError for a model that cannot be loaded.
    """

    def __init__(self, model: bytes, level: Level = "all", threads: int = 1, batch: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = LEVELS[level]
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # fatal only: what goes wrong is raised
        if threads > 1:
            # Threads that spin between runs slow down everything else on the machine.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.batch = batch
        try:
            self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own, which share no base but Exception
            raise InputError(f"onnxruntime cannot load the model ({first_line(error)}); export it again for this version") from error
        self.input = self.session.get_inputs()[0].name

    def run(self, inputs: NDArray[np.float32], outputs: Sequence[str] | None = None) -> list[NDArray[np.float32]]:
        """Returns the outputs (default: all of the model's) of inputs [n, *shape], each [n, …], executed `batch` at a time."""
        names = list(outputs) if outputs is not None else None
        results = [self.run_once(inputs[start : start + self.batch], names) for start in range(0, len(inputs), self.batch)]
        return [np.concatenate(parts) for parts in zip(*results, strict=True)]

    def run_once(self, inputs: NDArray[np.float32], outputs: Sequence[str] | None = None) -> list[NDArray[np.float32]]:
        """Returns the outputs of inputs [n, *shape] that are executed together; InputError where the runtime refuses them."""
        try:
            found: list[NDArray[np.float32]] = self.session.run(outputs, {self.input: np.ascontiguousarray(inputs)})
        except Exception as error:  # as above
            raise InputError(
                f"onnxruntime cannot execute the model on inputs of shape {list(inputs.shape[1:])} ({first_line(error)})"
            ) from error
        return found

    def logits(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the model's first output [n, classes] for inputs [n, *shape]."""
        return self.run(inputs)[0]


def first_line(error: Exception) -> str:
    """Returns an error's type and the first line of its text, printable (it names nodes of the file) and cut to fit into a sentence."""
    text = str(error).strip()
    return show(f"{type(error).__name__}: {text.splitlines()[0] if text else ''}", 300)
