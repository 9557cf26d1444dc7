"""Executes a network in C on an emulated board: the bits of its logits, and how many instructions it takes.

QEMU's instruction counter advances time by a nanosecond an instruction, and SysTick counts that time: what comes back is a number of
instructions, exact to one tick (1 GHz over the board's clock), and says nothing about cycles.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError, UnavailableError
from vsparse.stages.export.c_source.literals import float_literals
from vsparse.stages.export.firmware.boards import Board
from vsparse.stages.export.firmware.link import OPTIONS, link

EMULATOR = "qemu-system-arm"
SECONDS = 600
_MAIN = Path(__file__).resolve().parent / "main.c"
_NANOSECONDS = 10**9


@dataclass(frozen=True)
class Execution:
    """Logits [n, classes] float32, and instructions [n] int64 of each input, to one tick of SysTick."""

    logits: NDArray[np.float32]
    instructions: NDArray[np.int64]


def find_emulator() -> str:
    """Returns the path of QEMU for Arm boards; UnavailableError where this machine has none."""
    path = shutil.which(EMULATOR)
    if path is None:
        raise UnavailableError(f"{EMULATOR} is not on the path, so no firmware is executed here; install it")
    return path


def boot(board: Board, image: Path, counted: bool = True) -> subprocess.CompletedProcess[str]:
    """Executes an image in its folder until it ends by itself; what it writes by semihosting is in stdout and stderr, or in its files.

    `counted` makes its time its instructions, at a price. Raises UnavailableError without QEMU, InputError where it does not end.
    """
    command = [find_emulator(), "-M", board.machine, "-nographic", "-monitor", "none", "-serial", "null"]
    command += ["-icount", "shift=0"] if counted else []
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(image)]
    try:
        return subprocess.run(
            command, cwd=image.parent, capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"the firmware did not end within {SECONDS} s of emulation; give fewer inputs") from error


def emulate(
    board: Board, sources: Sequence[Path], inputs: NDArray[np.float32], classes: int, function: str, options: Sequence[str] = OPTIONS
) -> Execution:
    """Executes `function(const float *input, float *logits)` of some C files on inputs [n, …], one after the other.

    Raises UnavailableError without a compiler or QEMU, InputError where the firmware does not link, or does not end by itself.
    """
    find_emulator()
    rows = np.ascontiguousarray(inputs, np.float32).reshape(len(inputs), -1)
    with tempfile.TemporaryDirectory(prefix="vsparse-firmware-") as name:
        folder = Path(name)
        values = ",\n".join("{" + ",".join(float_literals(row)) + "}" for row in rows)
        (folder / "inputs.h").write_text(f"static const float inputs[{len(rows)}][MODEL_INPUTS] = {{\n{values}\n}};\n")
        defines = (f"MODEL_INPUTS={prod(inputs.shape[1:])}", f"MODEL_CLASSES={classes}", f"MODEL_LOGITS={function}")
        image = folder / "firmware.elf"
        link(board, [*sources, _MAIN], image, options, defines)
        done = boot(board, image)
    said = [line.split() for line in (done.stdout + done.stderr).splitlines()]
    lines = [line for line in said if len(line) == classes + 1]
    if done.returncode or len(lines) != len(rows):
        raise InputError(f"the firmware ended with {done.returncode} on {board.machine}: {(done.stdout + done.stderr)[-200:].strip()}")
    words = np.array([[int(word, 16) for word in line] for line in lines], dtype=np.uint32)
    ticks = words[:, -1].astype(np.int64)
    return Execution(np.ascontiguousarray(words[:, :-1]).view(np.float32), ticks * (_NANOSECONDS // board.clock))
