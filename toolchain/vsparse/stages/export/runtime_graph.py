"""The graph that ONNX Runtime executes against the graph that was verified (docs/numerics.md, 6)."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from vsparse.errors import GateError, InputError
from vsparse.stages.export.hashes import content_sha256, parse_model
from vsparse.stages.export.runtime_clips import clip_attributes, fused_clip_ends
from vsparse.stages.export.runtime_factors import depthwise_factors, is_filled_with_ones
from vsparse.stages.export.runtime_formats import dispensable, folded, require_one_value, widened

LEVELS: dict[str, Any] = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@dataclass(frozen=True)
class LevelReport:
    """What one optimisation level did: the initializers it left alone, those it re-laid (same numbers, other order), its operators."""

    level: str
    identical: int
    reordered: int
    operators: dict[str, int]


@dataclass(frozen=True)
class RuntimeGraphReport:
    """Evidence that the runtime folded nothing; it exists only where the check passed."""

    runtime: str
    runtime_version: str
    content_sha256: str
    initializers: int
    levels: tuple[LevelReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        return asdict(self)


def check_runtime_graph(path: Path) -> RuntimeGraphReport:
    """Saves ONNX Runtime's optimised graph of a model at each level and compares its initializers with the file's.

    At `basic` and `extended` every initializer must be bit-identical to one of the file's (dtype, shape, bytes) and none may be
    missing. At `all` the runtime may re-lay a tensor for its vector kernels (NCHWc: a permutation with zero padding), so the multiset of
    non-zero bit patterns must be that of one of the file's tensors; a factor for each channel may become a depthwise convolution of
    size 1, whose further channels it fills with ones. CPU provider, one thread; nothing is executed.
    A float16 tensor may be kept in float32; of a quantised file the integers may be kept as the floats they stand for, and scales of
    biases may go (docs/numerics.md). The ends of a Clip may become attributes of the convolution before it.
    Raises GateError that names the first tensor that breaks this, InputError for a file ONNX Runtime cannot load.
    """
    model = parse_model(path)
    try:
        ours = _initializers(model)
    except Exception as error:  # a malformed tensor raises whatever numpy and protobuf happen to raise
        raise InputError(f"model {path} holds a tensor that cannot be read ({str(error).splitlines()[0]}); export it again") from error
    floats, may_go = {**folded(model, ours), **clip_attributes(model)}, dispensable(model, ours)
    reports = []
    with tempfile.TemporaryDirectory(prefix="vsparse-runtime-graph-") as folder:
        for level, setting in LEVELS.items():
            optimised = _optimise(path, setting, Path(folder) / f"{level}.onnx")
            reports.append(_compare(path, level, ours, optimised, floats, may_go))
            require_one_value(optimised, f"ONNX Runtime {onnxruntime.__version__} at optimisation level {level}")
    return RuntimeGraphReport("onnxruntime", onnxruntime.__version__, content_sha256(model), len(ours), tuple(reports))


def _optimise(path: Path, level: Any, out: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(out)
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # it warns that a model optimised for this machine should not be moved: it is not
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exception types share no base class but Exception
        raise InputError(
            f"model {path} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {str(error).splitlines()[0]}"
        ) from error
    return parse_model(out)


def _initializers(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Returns every constant tensor of the graph by name: initializers, and `Constant` nodes, which the runtime turns into such."""
    tensors = {tensor.name: widened(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    tensors[node.output[0]] = widened(numpy_helper.to_array(attribute.t))
    return tensors


def _exact(array: NDArray[Any]) -> str:
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _nonzero_bits(array: NDArray[Any]) -> str:
    """Names the multiset of non-zero bit patterns of a tensor; a negative zero counts as non-zero, its bits are."""
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    return hashlib.sha256(array.dtype.str.encode() + np.sort(bits[bits != 0]).tobytes()).hexdigest()


def _compare(
    path: Path,
    level: str,
    ours: dict[str, NDArray[Any]],
    optimised: onnx.ModelProto,
    floats: Mapping[str, NDArray[Any]] | None = None,
    may_go: Collection[str] = (),
) -> LevelReport:
    """Compares the tensors; `floats` are what integers among ours stand for, `may_go` those that need not be there."""
    floats = floats or {}
    theirs = _initializers(optimised) | fused_clip_ends(optimised)
    known = [*ours.values(), *floats.values()]
    exact = {_exact(array) for array in known} | {_exact(array.reshape(())) for array in known if array.size == 1}
    loose = {_nonzero_bits(array) for array in known if array.dtype.kind == "f"} if level == "all" else set()
    factors = depthwise_factors(optimised) if level == "all" else set()
    identical = reordered = 0
    seen_exact, seen_loose = set(), set()
    for name, array in theirs.items():
        key = _exact(array)
        if key in exact:
            identical += 1
            seen_exact.add(key)
            if array.dtype.kind == "f":
                seen_loose.add(_nonzero_bits(array))
            continue
        if array.dtype.kind == "f" and (loose_key := _nonzero_bits(array)) in loose:
            reordered += 1
            seen_loose.add(loose_key)
            continue
        original = next((one for one in known if is_filled_with_ones(array, one)), None) if name in factors else None
        if original is not None:
            reordered += 1
            seen_loose.add(_nonzero_bits(original))
            continue
        raise GateError(
            f'ONNX Runtime {onnxruntime.__version__} changed the weights of {path} at optimisation level {level}: its tensor "{name}" '
            f"{list(array.shape)} is none of the file's, so what runs is not what was verified; "
            "`vsparse export MODEL` writes a file with nothing left to fold"
        )
    for name, array in ours.items():
        forms = [array, floats[name]] if name in floats else [array]
        scalars = [one.reshape(()) for one in forms if one.size == 1]
        relaid = any(one.dtype.kind == "f" and _nonzero_bits(one) in seen_loose for one in forms)
        if name not in may_go and not relaid and not any(_exact(one) in seen_exact for one in forms + scalars):
            raise GateError(
                f'ONNX Runtime {onnxruntime.__version__} dropped the tensor "{name}" of {path} at optimisation level {level}, so what runs '
                "is not what was verified; `vsparse export MODEL` writes a file with nothing left to fold or to remove"
            )
    operators = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in optimised.graph.node)
    return LevelReport(level, identical, reordered, dict(sorted(operators.items())))
