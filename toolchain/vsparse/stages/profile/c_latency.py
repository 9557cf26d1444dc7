"""model.c compiled for this machine and set up for timing, as an ONNX Runtime session is."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from vsparse.artifact.hashes import MAX_MODEL_BYTES, parse_model
from vsparse.errors import InputError
from vsparse.files import read_bytes, sha256_file
from vsparse.stages.export.c_source.compile import NATIVE, OPTIONS, CompiledModel, compiler_version
from vsparse.stages.profile.session import TimedModel


@contextmanager
def opened_c_source(source: Path, model: Path, prefix: str, batch: int) -> Iterator[TimedModel]:
    """Compiles model.c as docs/c.md says, for this machine's own vectors, and yields it; its library is removed at the end of the block.

    `model` is the ONNX file that it was made from; its names begin with `prefix`. A run is one call of its function for each of `batch`
    samples, through ctypes, on one thread, with the input that a session is timed with. Raises UnavailableError without a C compiler,
    InputError for a source that it refuses.
    """
    written = parse_model(read_bytes(model, "model", MAX_MODEL_BYTES)).graph
    shape, (classes,) = (tuple(d.dim_value for d in one[0].type.tensor_type.shape.dim)[1:] for one in (written.input, written.output))
    compiled, options = _compiled(source, shape, classes, prefix)
    with compiled:
        inputs = np.random.default_rng(0).random((batch, prod(shape)), dtype=np.float32)
        outputs = np.zeros((batch, classes), np.float32)
        pointer = ctypes.POINTER(ctypes.c_float)
        calls = [(inputs[i].ctypes.data_as(pointer), outputs[i].ctypes.data_as(pointer)) for i in range(batch)]
        function = compiled.function

        def run() -> None:
            for values, logits in calls:
                function(values, logits)

        run()
        yield TimedModel(
            source,
            run if batch > 1 else partial(function, *calls[0]),
            {
                "runtime": source.name,
                "runtime_version": compiler_version(),
                "providers": (" ".join(options),),
                "batch": batch,
                "threads_intra_op": 1,
                "threads_inter_op": 1,
                "c_source_sha256": sha256_file(source),
                "call": f"{prefix}_logits through ctypes",
                "input": "uniform in [0, 1], seed 0, the same for every run",
            },
        )


def _compiled(source: Path, input_shape: tuple[int, ...], classes: int, prefix: str) -> tuple[CompiledModel, tuple[str, ...]]:
    try:
        return CompiledModel(source, input_shape, classes, NATIVE, prefix), NATIVE
    except InputError:  # a compiler that does not know -march=native
        return CompiledModel(source, input_shape, classes, OPTIONS, prefix), OPTIONS
