"""What was measured on the machine of the build, and not on the device that an artifact is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vsparse.artifact.latency import LatencyFile

# What measures on the target, where `ARTIFACT` stands for the artifact's directory.
ADVICE = "vsparse profile ARTIFACT --host user@address"
NOT_YET = "not measured on the target yet"
# A microcontroller runs no script: its owner calls the C from firmware.
HARNESS = "a microcontroller is measured by its own harness, docs/how-to-microcontroller.md"


def on_target(target: Mapping[str, Any], processor: str) -> bool:
    """Whether ONNX Runtime on the CPU of this processor is what a target (as in target.toml) executes.

    A target of kind `host` is whatever machine builds; a Raspberry Pi is known by its name in /proc/cpuinfo; TensorRT on a Jetson's GPU
    is never what a build measures.
    """
    device, runtime = (target[name] if isinstance(target.get(name), Mapping) else {} for name in ("device", "runtime"))
    kind = device.get("kind", "host")
    if kind == "host":
        return True
    module = str(device.get("module", ""))
    return runtime.get("name") == "onnxruntime" and kind == "raspberry-pi" and bool(module) and module.lower() in processor.lower()


def build_machine(latency: Mapping[str, LatencyFile]) -> str:
    """Returns the processor on which latency was measured; `an unnamed processor` where that is not on record."""
    for item in latency.values():
        name = item.packed.machine.get("processor") or item.packed.machine.get("architecture")
        if name:
            return str(name)
    return "an unnamed processor"


def measured_elsewhere(processor: str, target: str) -> str:
    """Returns the words that stand beside a number which was not measured on the target."""
    return f"measured on the build machine ({processor}), not on {target}"


def not_yet(kind: str, why: str = "") -> str:
    """Returns what a gate says that only numbers of the target could judge, and the one command that brings them.

    `kind` is that of the target's device, `why` the reason that the numbers there are do not count.
    """
    way = HARNESS if kind == "microcontroller" else f"`{ADVICE}` measures there"
    return f"{NOT_YET}{f' ({why})' if why else ''}; {way}"


def with_directory(text: str, directory: object) -> str:
    """Returns a text of an artifact with its own directory in the command that measures on the target."""
    return text.replace(ADVICE, ADVICE.replace("ARTIFACT", str(directory)))
