"""One model through the tensorrt module, where a device has it and no trtexec: built strongly typed, read back, run by libcudart."""

from __future__ import annotations

import ctypes
import ctypes.util
from math import prod
from typing import Any

from vsparse.stages.export.device.basics import Stop, sha256
from vsparse.stages.export.device.engine_layers import parse_layers
from vsparse.stages.export.device.latency import timed_block
from vsparse.stages.export.device.worker import probe_values, uniform

TO_DEVICE, TO_HOST = 1, 2


class CudaRuntime:
    """The few functions of libcudart that an inference needs; Stop where there is none, or it fails."""

    def __init__(self) -> None:
        names = ["libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", ctypes.util.find_library("cudart")]
        for name in [*names, "/usr/local/cuda/lib64/libcudart.so"]:
            try:
                self.library = ctypes.CDLL(name) if name else None
            except OSError:
                continue
            if self.library is not None:
                return
        raise Stop(3, "libcudart is not found; install the CUDA runtime, or JetPack's trtexec, then run again")

    def call(self, name: str, *given: Any) -> None:
        code = getattr(self.library, name)(*given)
        if code != 0:
            raise Stop(3, f"{name} failed with the error {code} of CUDA; check that the GPU and its driver work")

    def allocate(self, size: int) -> Any:
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer

    def stream(self) -> Any:
        stream = ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(stream))
        return stream

    def copy(self, to: Any, source: Any, size: int, way: int) -> None:
        self.call("cudaMemcpy", to, source, ctypes.c_size_t(size), ctypes.c_int(way))


class TensorrtOf:
    """A model as an engine, in memory and in the file that `engine` names; a run is queued and waited for, without a CUDA graph."""

    def __init__(self, given: dict[str, Any]) -> None:
        import tensorrt

        if int(str(tensorrt.__version__).split(".")[0]) < 10:
            raise Stop(3, f"the module of TensorRT {tensorrt.__version__} builds nothing strongly typed; install JetPack's trtexec")
        self.cuda, self.shape, self.batch = CudaRuntime(), given["input_shape"], given["batch"]
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        plan = bytes(build_plan(tensorrt, logger, given))
        with open(given["engine"], "wb") as stream:
            stream.write(plan)
        self.engine = tensorrt.Runtime(logger).deserialize_cuda_engine(plan)
        if self.engine is None:
            raise Stop(1, f"TensorRT {tensorrt.__version__} cannot load the engine that it has just built; run again")
        layers = parse_layers(self.engine.create_engine_inspector().get_engine_information(tensorrt.LayerInformationFormat.JSON))
        self.context, self.stream = self.engine.create_execution_context(), self.cuda.stream()
        self.input, self.output, self.count = given["input"], given["output"], prod(self.shape)
        self.classes = prod(tuple(self.engine.get_tensor_shape(self.output))[1:])
        self.x, self.y = self.cuda.allocate(4 * self.count * self.batch), self.cuda.allocate(4 * self.classes * self.batch)
        self.context.set_tensor_address(self.input, self.x.value)
        self.context.set_tensor_address(self.output, self.y.value)
        self.resize(self.batch)
        values = uniform(self.count * self.batch)
        self.cuda.copy(self.x, values, ctypes.sizeof(values), TO_DEVICE)
        self.settings = {
            "input": "uniform in [0, 1), a fixed seed, the same for every run, on the GPU already",
            "call": "execute_async_v3 and cudaStreamSynchronize, wall clock, no CUDA graph: not to be compared with trtexec",
            "layers": layers,
            "engine_sha256": sha256(given["engine"]),
            "engine_bytes": len(plan),
        }

    def resize(self, batch: int) -> None:
        if not self.context.set_input_shape(self.input, (batch, *self.shape)):
            raise Stop(1, f"the engine does not take a batch of {batch}; give another one")

    def run(self) -> None:
        if not self.context.execute_async_v3(self.stream.value):
            raise Stop(1, "TensorRT could not run the engine; run again")
        self.cuda.call("cudaStreamSynchronize", self.stream)

    def probe(self, given: dict[str, Any]) -> Any:
        x, logits = probe_values(given["path"]), (ctypes.c_float * self.classes)()
        if len(x) != self.count:
            raise ValueError(f"the probe has {len(x)} numbers, not {self.count}")
        self.resize(1)
        self.cuda.copy(self.x, x, ctypes.sizeof(x), TO_DEVICE)
        self.run()
        self.cuda.copy(logits, self.y, ctypes.sizeof(logits), TO_HOST)
        self.resize(self.batch)
        return list(logits)

    def time(self, runs: int, turn_ns: int, lead_ns: int) -> list[int]:
        return timed_block(self.run, runs, turn_ns, lead_ns)


def build_plan(tensorrt: Any, logger: Any, given: dict[str, Any]) -> Any:
    """Builds an engine as trtexec is asked to: strongly typed, TF32 off, 2:4 kernels only where weights have that pattern."""
    try:
        builder = tensorrt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # pybind11 reports a null pointer as TypeError
        raise Stop(
            3, f"TensorRT {tensorrt.__version__} finds no usable GPU or driver here ({error}); check that nvidia-smi works"
        ) from None
    typed = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # from 11 on there is nothing else
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = tensorrt.OnnxParser(network, logger)
    with open(given["path"], "rb") as stream:
        if not parser.parse(stream.read()):
            reason = str(parser.get_error(0).desc()) if parser.num_errors else "no reason was given"
            raise Stop(1, f"TensorRT {tensorrt.__version__} cannot read the file: {reason}")
    config = builder.create_builder_config()
    if hasattr(tensorrt.BuilderFlag, "TF32"):
        config.clear_flag(tensorrt.BuilderFlag.TF32)
    if given.get("structured_sparsity"):
        config.set_flag(tensorrt.BuilderFlag.SPARSE_WEIGHTS)
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    profile, shape = builder.create_optimization_profile(), given["input_shape"]
    # Probes are single samples.
    profile.set_shape(given["input"], (1, *shape), *[(given["batch"], *shape)] * 2)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Stop(1, f"TensorRT {tensorrt.__version__} built no engine; look for free memory and disk space, then run again")
    return plan
