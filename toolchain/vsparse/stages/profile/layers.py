"""The time of each layer on this machine: by ONNX Runtime's profiler, and of C by a copy that reads the clock between layers."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from vsparse.artifact.device import LayerTime
from vsparse.artifact.forms import FORMS, INT8_C
from vsparse.artifact.hashes import MAX_MODEL_BYTES, parse_model
from vsparse.errors import InputError, UnavailableError
from vsparse.files import read_bytes
from vsparse.stages.export.c_int8.stage import int8_prefix_of
from vsparse.stages.export.c_source.stage import prefix_of
from vsparse.stages.export.c_source.weights import beside
from vsparse.stages.export.device.basics import Stop
from vsparse.stages.export.device.c_harness import compile_layers, compile_source
from vsparse.stages.export.device.layer_times import layered_runs, onnxruntime_rows
from vsparse.stages.export.device.worker import COf
from vsparse.stages.profile.session import open_model

SECONDS = 600


def onnx_layers(path: Path, threads: int = 1, batch: int = 1) -> tuple[LayerTime, ...]:
    """Returns the time of each kernel that ONNX Runtime executes, in whole microseconds as its profiler writes them.

    A fused operator is one kernel. Raises InputError as `open_model` does.
    """
    with tempfile.TemporaryDirectory(prefix="vsparse-layers-") as scratch:
        model = open_model(path, threads, batch, str(Path(scratch) / "profile"))
        for _ in range(layered_runs(1e6 * model.run_ms())):
            model.run()
        model.close()
        found = sorted(Path(scratch).glob("profile*"))
        try:
            return _rows(onnxruntime_rows(str(found[0]) if found else ""))
        except Stop as stop:
            raise InputError(f"{path}: {stop}; leave --layers out") from stop


def c_layers(source: Path, model: Path, prefix: str) -> tuple[LayerTime, ...]:
    """Returns the time of each layer of a network in C on one thread, a reading of the clock included; its own text stays as it is.

    `model` is the ONNX file that it was made from. Raises UnavailableError without a C compiler, InputError for a source that it refuses.
    """
    written = parse_model(read_bytes(model, "model", MAX_MODEL_BYTES)).graph
    shape, (classes,) = (tuple(d.dim_value for d in one[0].type.tensor_type.shape.dim)[1:] for one in (written.input, written.output))
    files = [path.name for path in beside(source)]
    described: dict[str, Any] = {"role": "c", "file": source.name, "files": files, "prefix": prefix, "precision": "fp32"}
    with tempfile.TemporaryDirectory(prefix="vsparse-layers-") as scratch:
        try:
            made = compile_source(str(source.parent), scratch, described, 1, SECONDS)
            opening = {"library": made["library"], "prefix": prefix, "inputs": prod(shape), "classes": classes, "batch": 1}
            return _rows(COf(opening).layers(compile_layers(str(source.parent), scratch, described, made["options"], SECONDS)))
        except Stop as stop:
            raise (UnavailableError if stop.code == 3 else InputError)(f"{source}: {stop}; leave --layers out") from stop


def layer_times(source: Path, options: dict[str, Any]) -> dict[str, tuple[LayerTime, ...]]:
    """Returns the times of the layers of an ONNX file, or of every form of an artifact that runs here, by form.

    `options` are those of `profile_onnx`. C is left out without a compiler.
    """
    threads, batch = int(options.get("threads", 1)), int(options.get("batch", 1))
    if not source.is_dir():
        return {source.name: onnx_layers(source, threads, batch)}
    found: dict[str, tuple[LayerTime, ...]] = {}
    for form in FORMS:
        model, file = source / form.model, source / form.file
        if not (form.latency and file.is_file() and model.is_file()):
            continue
        if form.is_onnx:
            found[file.name] = onnx_layers(file, threads, batch)
            continue
        with suppress(UnavailableError):
            found[file.name] = c_layers(file, model, int8_prefix_of(file) if form == INT8_C else prefix_of(file))
    return found


def _rows(found: list[dict[str, Any]]) -> tuple[LayerTime, ...]:
    return tuple(LayerTime.model_validate(row) for row in found)
