"""Latency: raw samples on this machine or on a device, and dense against packed side by side."""

from vsparse.stages.profile.comparison import compare
from vsparse.stages.profile.machine import describe_machine
from vsparse.stages.profile.onnxruntime_latency import profile_onnx, stated
from vsparse.stages.profile.remote import copied_results, profile_remote, read_results

__all__ = [
    "compare",
    "copied_results",
    "describe_machine",
    "profile_onnx",
    "profile_remote",
    "read_results",
    "stated",
]
