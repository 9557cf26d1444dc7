"""C of a device folder compiled here for a device that has no compiler: delivered beside the source, for the agent to load."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

from vsparse.artifact.device_folder import DeviceFolder
from vsparse.files import read_bytes
from vsparse.stages.export.device.c_harness import compile_commands, write_harness

# What compiles for a machine, as its `uname -m` names it.
COMPILERS = {
    "aarch64": ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-clang"),
    "armv7l": ("arm-linux-gnueabihf-gcc",),
    "riscv64": ("riscv64-linux-gnu-gcc",),
    "x86_64": ("x86_64-linux-gnu-gcc",),
}
SECONDS = 600


def cross_compiler(machine: str) -> str | None:
    """Returns what compiles for a machine of that name here; None where nothing does."""
    names = (*COMPILERS.get(machine, ()), *(("cc", "gcc", "clang") if machine == platform.machine() else ()))
    return next((path for path in map(shutil.which, names) if path), None)


def delivered_libraries(folder: Path, manifest: DeviceFolder, machine: str, scratch: Path) -> list[Path]:
    """Compiles each network in C of a device folder for `machine` into `scratch`; returns the libraries, none without a compiler for it.

    One that does not compile is left out: the agent then says that the device has no compiler.
    """
    compiler, made = cross_compiler(machine), []
    if compiler is None:
        return []
    for source in manifest.c_sources:
        place, library = scratch / source.role, scratch / f"prebuilt-{source.role}.so"
        place.mkdir()
        for name in source.files:
            (place / name).write_bytes(read_bytes(folder / name, "C source", 2**30))
        write_harness(str(place), source.prefix)
        for command in compile_commands(compiler, source.model_dump(mode="json"), str(library), 1, native=False):
            try:
                done = subprocess.run(command, cwd=place, capture_output=True, timeout=SECONDS, check=False)
            except (OSError, subprocess.TimeoutExpired):
                continue
            if done.returncode == 0:
                made.append(library)
                break
    return made
