"""The deployed files: ONNX, the graph the runtime makes of it, TensorRT engines, and the `device/` folder."""

from vsparse.export.device_folder import Probe, Timing, write_device_folder
from vsparse.export.hashes import content_sha256, read_metadata, stamp
from vsparse.export.onnx_file import write_onnx
from vsparse.export.runtime_graph import RuntimeGraphReport, check_runtime_graph
from vsparse.export.tensorrt_engine import EngineReport, build_engine

__all__ = [
    "EngineReport",
    "Probe",
    "RuntimeGraphReport",
    "Timing",
    "build_engine",
    "check_runtime_graph",
    "content_sha256",
    "read_metadata",
    "stamp",
    "write_device_folder",
    "write_onnx",
]
