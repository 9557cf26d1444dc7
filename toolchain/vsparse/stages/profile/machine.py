"""The machine a measurement was taken on, as far as it says."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Returns processor model, architecture, usable cores, memory in bytes, load average and operating system.

    Values that the system does not give are None, never guessed.
    """
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores_usable": _cores(),
        "cores_total": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "load_average_1min": _load(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor() -> str | None:
    text = _read("/proc/cpuinfo")
    for key in ("model name", "Model", "Hardware"):
        for line in text.splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == key:
                return value.strip()
    device = _read("/proc/device-tree/model").strip("\0\n ")
    return device or platform.processor() or None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def memory_bytes() -> int | None:
    """Returns the physical memory in bytes, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
