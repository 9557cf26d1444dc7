"""Latency: raw samples on this machine or on a device, and dense against packed side by side."""

from vsparse.stages.profile.comparison import compare
from vsparse.stages.profile.device_results import DeviceGateError, copied_results, failed_there, read_results, require_about
from vsparse.stages.profile.layers import layer_times
from vsparse.stages.profile.machine import describe_machine
from vsparse.stages.profile.onnxruntime_latency import profile_onnx, stated
from vsparse.stages.profile.remote import AgentOptions, profile_remote
from vsparse.stages.profile.result import ProfileResult, profiled

__all__ = [
    "AgentOptions",
    "DeviceGateError",
    "ProfileResult",
    "compare",
    "copied_results",
    "describe_machine",
    "failed_there",
    "layer_times",
    "profile_onnx",
    "profile_remote",
    "profiled",
    "read_results",
    "require_about",
    "stated",
]
