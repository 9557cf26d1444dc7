"""The deployed files: ONNX, the graph the runtime makes of it, TensorRT engines, and the `device/` folder."""

from vsparse.artifact.hashes import content_sha256, read_metadata, stamp
from vsparse.stages.export.convolutions import as_convolutions
from vsparse.stages.export.device_folder import CertifiedModel, DeployedSource, Probe, write_device_folder
from vsparse.stages.export.onnx_file import write_onnx
from vsparse.stages.export.runtime_graph import check_runtime_graph
from vsparse.stages.export.tensorrt_engine import build_engine

__all__ = [
    "CertifiedModel",
    "DeployedSource",
    "Probe",
    "as_convolutions",
    "build_engine",
    "check_runtime_graph",
    "content_sha256",
    "read_metadata",
    "stamp",
    "write_device_folder",
    "write_onnx",
]
