"""TensorRT engines where this machine can build them: strongly typed, TF32 off, and read back afterwards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import onnx as onnx_package

from vsparse.artifact.hashes import content_sha256, parse_model
from vsparse.artifact.models import EngineReport
from vsparse.errors import GateError, InputError, UnavailableError, VsparseError
from vsparse.files import read_bytes, sha256_bytes, write_bytes
from vsparse.graph.from_onnx import from_onnx
from vsparse.stages.export.certifying_folder import unrounded_ends
from vsparse.stages.export.device.engine_layers import layer_faults, parse_layers
from vsparse.stages.export.structured import has_two_four
from vsparse.target import Target

ON_DEVICE = "copy the device/ folder to the device and run run_on_device.py there"
WORKSPACE_BYTES = 2**30
# The contract that an engine of a precision must show where no target says another one.
CONTRACT_OF = {"fp32": "fp32", "fp16": "fp16-accumulate", "int8": "int8-tensorrt"}


def build_engine(
    onnx: Path,
    out: Path,
    precision: str = "fp32",
    batch: int = 1,
    sparsity: Literal["disable", "enable"] = "disable",
    target: Target | None = None,
    contract: str = "",
    timing_cache: Path | None = None,
) -> EngineReport:
    """Builds an engine from an ONNX file with the installed TensorRT (10 or 11) and this machine's GPU, and writes it atomically.

    The network is strongly typed, so the file's types are the engine's; TF32 is cleared; `sparsity="enable"` lets TensorRT use 2:4
    kernels where the weights have that pattern already. The engine's inspector is read back, and a layer that does not show the arithmetic
    of `contract` (default: the target's for the precision, or else `CONTRACT_OF`'s, and `fp16-tensorrt` for a file that types its sums as
    float32) is a GateError: nothing is written then. Builds are not
    deterministic, so two builds differ; `timing_cache` is read where it is there, and written, so that a later build chooses the same
    kernels. With a Jetson as `target`, only a Jetson builds: an engine runs on the GPU model that built it.
    Raises UnavailableError where there is no TensorRT, no GPU, another device or a TensorRT before 10, InputError for a precision the file
    is not in, or that no contract is about, for a forced sparsity (it overwrites weights), for one that no weight has, and for a file the
    parser refuses.
    """
    model = parse_model(onnx)
    held = _precision(model)
    if precision != held or precision not in CONTRACT_OF:
        raise InputError(
            f'"{precision}" cannot be built: {onnx} is in {held}, and a strongly typed engine is what its model is; use {held}'
        )
    offered = {} if target is None else target.precisions
    contract = contract or (offered[precision].contract if precision in offered else CONTRACT_OF[precision])
    graph = from_onnx(onnx) if precision == "fp16" else None
    if contract == CONTRACT_OF["fp16"] and target is None and graph is not None and graph.wide_sums:
        contract = "fp16-tensorrt"
    if sparsity not in ("disable", "enable"):
        raise InputError(
            f'sparsity "{sparsity}" is refused: it changes weights, so the engine would not be the certified network; use enable'
        )
    if sparsity == "enable" and not has_two_four(model):
        raise InputError(f'no weight of {onnx} has two zeros in each four inputs; use "disable", or train it with the granularity 2:4')
    if batch < 1:
        raise InputError(f"batch is {batch}; it must be at least 1")
    if target is not None and target.device.kind == "jetson" and target.device.soc not in _device_tree():
        raise UnavailableError(f"an engine for {target.name} cannot be built on another machine than a {target.device.module}; {ON_DEVICE}")
    name, shape = _input(onnx)
    data = read_bytes(onnx, "model", 2**30)
    trt = import_tensorrt()
    logger = _logger(trt)
    start = time.monotonic()
    try:
        plan = _build(trt, logger, onnx, data, name, (batch, *shape), sparsity, timing_cache)
        layers = _layers(trt, logger, plan)
    except VsparseError:
        raise
    except Exception as error:  # the bindings raise many types, some of them C++'s
        raise UnavailableError(f"TensorRT {trt.__version__} failed here ({type(error).__name__}: {error}); {ON_DEVICE}") from error
    seconds = time.monotonic() - start
    faults = layer_faults(layers, contract, unrounded_ends(graph) if graph is not None and contract == "fp16-tensorrt" else ())
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise GateError(f"the TensorRT engine of {onnx} does not honour the contract {contract}: {faults[0]}{more}; build it again")
    write_bytes(out, plan)
    return EngineReport(
        onnx_sha256=sha256_bytes(data),
        content_sha256=content_sha256(data),
        engine_sha256=sha256_bytes(plan),
        engine_bytes=len(plan),
        tensorrt_version=str(trt.__version__),
        precision=precision,
        sparsity=sparsity,
        batch=batch,
        build_s=seconds,
        layers=tuple(layers),
    )


def import_tensorrt() -> Any:
    """Returns the tensorrt module of version 10 or newer; raises UnavailableError that says what to do instead."""
    try:
        import tensorrt
    except Exception as error:  # its libraries may be missing or fit another driver: OSError, AttributeError, …
        raise UnavailableError(f"TensorRT's Python package does not import here ({type(error).__name__}: {error}); {ON_DEVICE}") from error
    version = str(getattr(tensorrt, "__version__", "0"))
    if not version.split(".")[0].isdigit() or int(version.split(".")[0]) < 10:
        raise UnavailableError(f"TensorRT {version} cannot build strongly typed networks here; install 10 or newer, or {ON_DEVICE}")
    return tensorrt


def open_builder(trt: Any, logger: Any) -> Any:
    """Returns a builder; raises UnavailableError where TensorRT finds no GPU."""
    try:
        return trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # pybind11 reports a null pointer as TypeError
        raise UnavailableError(f"TensorRT {trt.__version__} finds no usable GPU or driver here ({error}); {ON_DEVICE}") from error


def _precision(model: onnx_package.ModelProto) -> str:
    """Returns the precision of a file: int8 with QuantizeLinear, fp16 or bf16 by the type of a weight or of an activation, else fp32."""
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {a.i for node in model.graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    half = {onnx_package.TensorProto.FLOAT16: "fp16", onnx_package.TensorProto.BFLOAT16: "bf16"}
    return next((name for kind, name in half.items() if kind in types), "fp32")


def _device_tree() -> list[str]:
    try:
        return Path("/proc/device-tree/compatible").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _input(onnx: Path) -> tuple[str, tuple[int, ...]]:
    model = parse_model(onnx)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise InputError(f"model {onnx} has {len(inputs)} inputs; one is wanted")
    sizes = tuple(d.dim_value for d in inputs[0].type.tensor_type.shape.dim)
    if len(sizes) < 2 or not all(size > 0 for size in sizes[1:]):
        raise InputError(f"model {onnx} does not say the shape of its input {inputs[0].name}; export it again")
    return inputs[0].name, sizes[1:]


def _logger(trt: Any) -> Any:
    class Collecting(trt.ILogger):  # type: ignore[misc]  # the base class is only known where TensorRT is installed
        """Keeps errors and warnings instead of printing them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Collecting()


def _build(
    trt: Any, logger: Any, onnx: Path, data: bytes, name: str, shape: tuple[int, ...], sparsity: str, timing_cache: Path | None
) -> bytes:
    builder = open_builder(trt, logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(data):
        reason = "; ".join(str(parser.get_error(i).desc()) for i in range(min(parser.num_errors, 3))) or "no reason given"
        raise InputError(f"TensorRT {trt.__version__} cannot read {onnx}: {reason}; choose an opset it knows (17)")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if config.get_flag(trt.BuilderFlag.TF32):
        raise GateError(f"TensorRT {trt.__version__} keeps TF32 on although it was cleared; {ON_DEVICE}")
    if sparsity == "enable":
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    profile = builder.create_optimization_profile()
    profile.set_shape(name, shape, shape, shape)
    config.add_optimization_profile(profile)
    if timing_cache is not None:
        kept = read_bytes(timing_cache, "timing cache", 2**30) if timing_cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(kept), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = logger.errors[-1] if logger.errors else "no reason given"
        raise GateError(f"TensorRT {trt.__version__} built no engine from {onnx}: {reason}")
    if timing_cache is not None:
        write_bytes(timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _layers(trt: Any, logger: Any, plan: bytes) -> list[Any]:
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise GateError(f"TensorRT {trt.__version__} cannot load the engine that it has just built; {ON_DEVICE}")
    return parse_layers(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
