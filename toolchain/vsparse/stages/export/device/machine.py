"""Which device this is, and what its power meter says."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
from typing import Any

from vsparse.stages.export.device.basics import output_of, read_text

MODULE = re.compile(r"p\d{4}-\d{4}")
# Numbers of modules; those of carrier boards have the same form and say nothing about what computes.
MODULE_FAMILIES = ("p2888", "p3668", "p3701", "p3767", "p3834")


def describe_device(root: str) -> dict[str, Any]:
    """Says what this machine is: device tree, Jetson release, power mode; None where it does not say."""
    release = read_text(os.path.join(root, "etc/nv_tegra_release")).splitlines()
    compatible = [part for part in read_text(os.path.join(root, "proc/device-tree/compatible")).split("\0") if part.strip()]
    mode = re.search(r"NV Power Mode:\s*(\S+)", output_of(["nvpmodel", "-q"]))
    return {
        "model": read_text(os.path.join(root, "proc/device-tree/model")).strip("\0\n ") or None,
        "compatible": compatible,
        "tegra_release": release[0].strip("# ") if release else None,
        "power_mode": mode.group(1) if mode else None,
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def device_fault(device: dict[str, Any], target: dict[str, Any]) -> str:
    """Returns why this is not the target's device, or an empty text."""
    if target["kind"] == "jetson" and not device["tegra_release"]:
        return "/etc/nv_tegra_release is not there, so this is no Jetson"
    if target["soc"] and target["soc"] not in device["compatible"]:
        return "the device tree says {}, not {}".format(", ".join(device["compatible"]) or "nothing", target["soc"])
    if target["kind"] == "jetson":
        found = sorted({number for entry in device["compatible"] for number in MODULE.findall(entry)})
        named = [number for number in found if number[:5] in MODULE_FAMILIES]
        if target["modules"] and named and not set(named) & set(target["modules"]):
            return "its module is {}, not {}".format(", ".join(named), " or ".join(target["modules"]))
    return ""


def read_power(text: str, rails: list[str]) -> dict[str, Any] | None:
    """Reads tegrastats' log: the mean over its lines of the instantaneous mW of the rails that make up the module."""
    lines = []
    for line in text.splitlines():
        found = {name: int(value) for name, value in re.findall(r"\b(V[A-Z0-9_]+) (\d+)mW", line)}
        if rails and all(rail in found for rail in rails):
            lines.append(sum(found[rail] for rail in rails))
    return {"power_mw_mean": math.fsum(lines) / len(lines), "readings": len(lines), "rails": rails} if lines else None


def start_meter(log: str) -> Any:
    tool = shutil.which("tegrastats")
    if not tool:
        return None
    try:
        return subprocess.Popen([tool, "--interval", "100", "--logfile", log], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return None


def stop_meter(meter: Any) -> None:
    if meter is not None:
        meter.terminate()
        try:
            meter.wait(10)
        except subprocess.TimeoutExpired:
            meter.kill()
            meter.wait()
