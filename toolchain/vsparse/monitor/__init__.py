"""A stream of frames, certified one by one as the device does it: verdicts, their share over time, and drift of the radius."""

from vsparse.monitor.certifier import FrameCertifier, FrameVerdict
from vsparse.monitor.drift import RadiusDrift
from vsparse.monitor.stream import MonitorSummary, StreamMonitor

__all__ = ["FrameCertifier", "FrameVerdict", "MonitorSummary", "RadiusDrift", "StreamMonitor"]
