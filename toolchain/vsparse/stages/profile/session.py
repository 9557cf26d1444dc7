"""ONNX Runtime sessions set up for timing: nothing hidden, nothing left to chance that has a switch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.stages.export.certify_onnx.names import EPSILON

MAX_INPUT_ELEMENTS = 2**28
PROVIDERS = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class TimedModel:
    """A loaded model and one input for it; `run` is one inference, and `run_ms` times one."""

    path: Path
    run: Callable[[], object]
    settings: dict[str, Any]
    close: Callable[[], object] = lambda: None

    def run_ms(self) -> float:
        """Returns how long one inference takes, in ms."""
        start = time.perf_counter_ns()
        self.run()
        return (time.perf_counter_ns() - start) / 1e6


def open_model(path: Path, threads: int, batch: int, profile: str = "") -> TimedModel:
    """Loads a model on the CPU with spinning off and makes one uniform input in [0, 1] from a fixed seed.

    `profile` is how the name of the file begins that ONNX Runtime's profiler writes when the model is closed; empty: none.

    Raises InputError for a file ONNX Runtime cannot load, for several inputs, for an input that is not float32 or of unknown
    shape, and for a batch the model does not take.
    """
    if not path.is_file():
        raise InputError(f"model {path} is not there; check the path")
    if threads < 1 or batch < 1:
        raise InputError(f"threads is {threads} and batch {batch}; both must be at least 1")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    # Threads that spin between runs make one model look faster and everything else on the machine slower.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(PROVIDERS))
    except Exception as error:  # onnxruntime's exception types share no base class but Exception
        raise InputError(
            f"model {path} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {str(error).splitlines()[0]}"
        ) from error
    feed = _input(path, session, batch)
    outputs = [output.name for output in session.get_outputs()]

    run = partial(session.run, outputs, feed)
    try:
        run()
    except Exception as error:  # as above
        raise InputError(
            f"model {path} does not run at batch {batch}: {str(error).splitlines()[0]}; give a batch the model takes"
        ) from error
    return TimedModel(path, run, _settings(session, threads, batch), session.end_profiling if profile else lambda: None)


def _input(path: Path, session: Any, batch: int) -> dict[str, NDArray[np.float32]]:
    inputs = session.get_inputs()
    further: dict[str, NDArray[np.float32]] = {}
    if len(inputs) == 2 and (inputs[1].name, inputs[1].type, list(inputs[1].shape)) == (EPSILON, "tensor(float)", []):
        inputs, further = inputs[:1], {EPSILON: np.zeros((), np.float32)}  # a certifying file; every radius takes the same time
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{i.name}: {i.type}" for i in inputs) or "none"
        raise InputError(f"model {path} has the inputs {found}; one float32 input is wanted")
    shape = list(inputs[0].shape)
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape[1:]):
        raise InputError(f"model {path} has the input shape {shape}; every size but the batch must be a number")
    if isinstance(shape[0], int) and shape[0] != batch:
        raise InputError(f"model {path} has the fixed batch {shape[0]}, not {batch}; give --batch {shape[0]}")
    full = (batch, *shape[1:])
    if int(np.prod(full, dtype=object)) > MAX_INPUT_ELEMENTS:
        raise InputError(f"model {path} wants an input of shape {list(full)}, more than {MAX_INPUT_ELEMENTS} numbers; lower the batch")
    return {inputs[0].name: np.random.default_rng(0).random(full, dtype=np.float32), **further}


def _settings(session: Any, threads: int, batch: int) -> dict[str, Any]:
    return {
        "runtime": "onnxruntime",
        "runtime_version": onnxruntime.__version__,
        "providers": tuple(session.get_providers()),
        "batch": batch,
        "threads_intra_op": threads,
        "threads_inter_op": 1,
        "spinning": False,
        "graph_optimization_level": "all",
        "denormals_flushed": False,  # ONNX Runtime's default (session.set_denormal_as_zero), left alone
        "input": "uniform in [0, 1], seed 0, the same for every run",
    }
