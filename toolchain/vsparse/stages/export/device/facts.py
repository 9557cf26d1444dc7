"""Which device this is: model, SoC, JetPack, power mode, runtimes; None where it does not say."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from typing import Any

from vsparse.stages.export.device.basics import clean, finished, output_of, read_text

MODULE = re.compile(r"p\d{4}-\d{4}")
# Numbers of modules; those of carrier boards have the same form and say nothing about what computes.
MODULE_FAMILIES = ("p2888", "p3668", "p3701", "p3767", "p3834")


def describe_device(root: str) -> dict[str, Any]:
    """Says what this machine is: device tree, Jetson release, power mode, memory, system; None where it does not say."""
    release = read_text(os.path.join(root, "etc/nv_tegra_release")).splitlines()
    compatible = [clean(part) for part in read_text(os.path.join(root, "proc/device-tree/compatible")).split("\0") if part.strip()]
    mode = re.search(r"NV Power Mode:\s*(\S+)", output_of(["nvpmodel", "-q"]))
    system = re.search(r'^PRETTY_NAME="?([^"\n]*)', read_text(os.path.join(root, "etc/os-release")), re.M)
    memory = re.search(r"^MemTotal:\s*(\d{1,15}) kB", read_text(os.path.join(root, "proc/meminfo")), re.M)
    emulated, emulator = emulation(root)
    return {
        "model": clean(read_text(os.path.join(root, "proc/device-tree/model"))) or None,
        "compatible": compatible,
        "soc": next((one for one in reversed(compatible) if re.match(r"nvidia,tegra|brcm,bcm", one)), None),
        "processor": processor(root),
        "tegra_release": clean(release[0].strip("# ")) if release else None,
        "jetpack": jetpack(),
        "power_mode": clean(mode.group(1)) if mode else None,
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "system": clean(system.group(1)) if system else None,
        "memory_bytes": int(memory.group(1)) * 1024 if memory else None,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "emulated": emulated,
        "emulator": emulator,
    }


def processor(root: str) -> str | None:
    text = read_text(os.path.join(root, "proc/cpuinfo"))
    for key in ("model name", "Model", "Hardware"):
        found = re.search(rf"^{key}\s*:\s*(.+)$", text, re.M)
        if found:
            return clean(found.group(1))
    return None


# ELF's numbers of the architectures that `uname -m` may name; 32 bits on a 64-bit kernel are not emulated.
FAMILIES = {"x86": (3, 62), "arm": (40, 183), "riscv": (243,), "ppc": (20, 21), "s390": (22,), "loongarch": (258,), "mips": (8,)}
NAMES = {"i386": "x86", "i686": "x86", "aarch64": "arm", "armv": "arm"}
SELF = "proc/thread-self/exe"  # what proc/self/exe is, emulators say themselves; for this the kernel answers


def emulation(root: str) -> tuple[bool | None, str | None]:
    """Whether an emulator executes this, so that times mean nothing, and which; None where that cannot be told.

    Under user emulation the executable that the kernel runs is the emulator, mostly of another architecture than the machine claims to
    have, and /proc/cpuinfo may be that of the processor below; an emulated machine may say so in the name of its processor.
    """
    executable, text = os.path.join(root, SELF), read_text(os.path.join(root, "proc/cpuinfo"))
    claimed, found = family(platform.machine()), elf_machine(executable)
    if named_emulator(executable) or (claimed and found and found not in FAMILIES[claimed]):
        return True, emulator_version(executable) or "a user emulator"
    if claimed not in (None, "x86") and re.search(r"^(vendor_id|flags)\s*:", text, re.M):
        return True, "a user emulator on x86"
    processor = re.search(r"^(?:model name|Processor|Hardware|cpu model)\s*:\s*(.*(?:QEMU|TCG).*)$", text, re.M)
    clocks = read_text(os.path.join(root, "sys/devices/system/clocksource/clocksource0/available_clocksource"))
    if processor and "kvm-clock" not in clocks:  # QEMU with KVM may give its processor that name, and executes nothing itself
        return True, clean(processor.group(1), 100)
    return (False, None) if text or found else (None, None)


def family(machine: str) -> str | None:
    """The family of what `uname -m` says; None for one that is not known."""
    known = [NAMES.get(start, start) for start in (*NAMES, *FAMILIES) if machine.startswith(start)]
    return known[0] if known else None


def named_emulator(path: str) -> bool:
    try:
        return os.path.basename(os.readlink(path)).startswith(("qemu-", "box64", "FEX"))
    except OSError:
        return False


def elf_machine(path: str) -> int | None:
    """The architecture of an executable as its ELF header has it; None where it is none, or cannot be read."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(20)
    except OSError:
        return None
    if len(head) < 20 or head[:4] != b"\x7fELF" or head[5] not in (1, 2):
        return None
    return int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")


def emulator_version(path: str) -> str | None:
    """What an emulator says of its version, read in its executable."""
    try:
        with open(path, "rb") as stream:
            told = re.search(rb"qemu-[a-z0-9_]{1,20} version [ -~]{1,80}", stream.read(1 << 27))
    except OSError:
        return None
    return "qemu-user, " + clean(told.group(0).decode("ascii"), 100) if told else None


def jetpack() -> str | None:
    """The version of the package nvidia-jetpack, where it is installed."""
    text = output_of(["dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"])
    return clean(text) or None


def describe_runtimes(trtexec: str | None) -> dict[str, Any]:
    """Says which runtimes there are: of a module its version, or why it is not imported; of a tool its first line or its path."""
    found: dict[str, Any] = {"trtexec": trtexec, "compiler": compiler_version()}
    for name in ("numpy", "onnxruntime", "tensorrt"):
        found[name] = module_version(name)
    return found


def module_version(name: str) -> dict[str, Any]:
    """The version of a module, as its package says; of one without, as a process of its own says: an import may crash."""
    try:
        if importlib.util.find_spec(name) is None:
            return {"version": None, "reason": f"No module named '{name}'"}
        return {"version": clean(importlib.metadata.version(name)), "reason": ""}
    except (ImportError, ValueError):
        pass
    try:
        code, text = finished([sys.executable, "-c", f"import {name}; print('vsparse', {name}.__version__)"], 120)
    except (OSError, subprocess.SubprocessError) as error:
        return {"version": None, "reason": clean(str(error))}
    told = re.search(r"^vsparse (\S+)$", text, re.M)
    if code == 0 and told:
        return {"version": clean(told.group(1)), "reason": ""}
    lines = text.strip().splitlines()
    return {"version": None, "reason": clean(lines[-1] if lines else f"exit code {code}")}


def find_compiler() -> str | None:
    return next((path for path in map(shutil.which, ("cc", "gcc", "clang")) if path), None)


def compiler_version() -> str | None:
    compiler = find_compiler()
    lines = output_of([compiler, "--version"]).splitlines() if compiler else []
    return clean(lines[0]) if lines else None


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
