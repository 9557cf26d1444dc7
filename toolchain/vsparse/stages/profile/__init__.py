"""Latency: raw samples on this machine or on a device, and dense against packed side by side."""

from vsparse.stages.profile.comparison import Comparison, compare
from vsparse.stages.profile.latency import Latency, percentile
from vsparse.stages.profile.machine import describe_machine
from vsparse.stages.profile.onnxruntime_latency import profile_onnx, stated
from vsparse.stages.profile.remote import latencies, profile_remote, read_results

__all__ = [
    "Comparison",
    "Latency",
    "compare",
    "describe_machine",
    "latencies",
    "percentile",
    "profile_onnx",
    "profile_remote",
    "read_results",
    "stated",
]
