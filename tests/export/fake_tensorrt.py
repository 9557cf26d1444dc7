"""A small stand-in for the tensorrt module: the names and signatures of 10.3 to 11.4 that an engine build uses.

Checked against what was read from the real bindings packages of these versions (tensorrt_api.json, test_export_tensorrt.py).
"""

from __future__ import annotations

import enum
import json
from types import ModuleType
from typing import Any


def make(
    version: str = "10.13.3", *, gpu: bool = True, layers: Any = (), parses: bool = True, builds: bool = True, sticky_tf32: bool = False
) -> Any:
    trt = ModuleType("tensorrt")
    record: dict[str, Any] = {"flags": set(), "shapes": [], "network_flags": None, "caches": []}

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        STRONGLY_TYPED = 1

    class BuilderFlag(enum.Enum):
        TF32 = 7
        SPARSE_WEIGHTS = 8

    class ProfilingVerbosity(enum.Enum):
        LAYER_NAMES_ONLY = 0
        DETAILED = 2

    class LayerInformationFormat(enum.Enum):
        ONELINE = 0
        JSON = 1

    class MemoryPoolType(enum.Enum):
        WORKSPACE = 0

    class ILogger:
        class Severity(enum.Enum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2

        def __init__(self) -> None:
            pass

    class Logger(ILogger):
        ERROR = ILogger.Severity.ERROR

        def __init__(self, severity: Any = None) -> None:
            super().__init__()

    class TimingCache:
        def serialize(self) -> bytes:
            return b"times"

    class Config:
        profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

        def __init__(self) -> None:
            record["flags"] = {BuilderFlag.TF32}

        def clear_flag(self, flag: Any) -> None:
            if not sticky_tf32:
                record["flags"].discard(flag)

        def set_flag(self, flag: Any) -> None:
            record["flags"].add(flag)

        def get_flag(self, flag: Any) -> bool:
            return flag in record["flags"]

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            record["workspace"] = pool_size

        def add_optimization_profile(self, profile: Any) -> int:
            return 0

        def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
            record["caches"].append(serialized_timing_cache)
            return TimingCache()

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            return True

        def get_timing_cache(self) -> TimingCache:
            return TimingCache()

    class Profile:
        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            record["shapes"].append((input, min, opt, max))

    class Builder:
        def __init__(self, logger: Any) -> None:
            if not gpu:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self.logger = logger

        def create_network(self, flags: int = 0) -> Any:
            record["network_flags"] = flags
            return object()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
            record["verbosity"] = config.profiling_verbosity.name
            if not builds:
                self.logger.log(ILogger.Severity.ERROR, "no implementation for node c1")
                return None
            return b"plan"

    class ParserError:
        def desc(self) -> str:
            return "unsupported operator"

    class OnnxParser:
        num_errors = 1

        def __init__(self, network: Any, logger: Any) -> None:
            pass

        def parse(self, model: bytes, path: str | None = None) -> bool:
            return parses

        def get_error(self, index: int) -> ParserError:
            return ParserError()

    class Inspector:
        def get_engine_information(self, format: Any) -> str:
            return layers if isinstance(layers, str) else json.dumps({"Layers": list(layers)})

    class Engine:
        def create_engine_inspector(self) -> Inspector:
            return Inspector()

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Engine:
            return Engine()

    for name, value in list(locals().items()):
        if isinstance(value, type):
            setattr(trt, name, value)
    trt.__version__ = version  # type: ignore[attr-defined]  # a module made by hand
    trt.record = record  # type: ignore[attr-defined]  # as above
    return trt
