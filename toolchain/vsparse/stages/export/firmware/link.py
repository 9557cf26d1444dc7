"""Compiles a network in C for a microcontroller and links it: an image for an emulator, or sizes from the linker's map."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vsparse.errors import InputError, UnavailableError
from vsparse.stages.export.c_source.weights import units
from vsparse.stages.export.firmware.boards import Board
from vsparse.stages.export.firmware.stack import CALL_GRAPH, USAGE, deepest, defined

COMPILER = "arm-none-eabi-gcc"
# Without -mcpu and the like, which are a board's.
OPTIONS = ("-O2", "-std=c99", "-ffp-contract=off")
SECONDS = 300
_HERE = Path(__file__).resolve().parent
_SIZES = ("-ffunction-sections", "-fdata-sections", USAGE)


@dataclass(frozen=True)
class Footprint:
    """Bytes of a network in a firmware: flash (constants and code, with what it takes of the C library), RAM, and its stack.

    `flash_bytes` is `constant_bytes` and `code_bytes`; `stack_bytes` is the deepest chain of calls, 0 where the compiler bounds none.
    """

    flash_bytes: int
    constant_bytes: int
    code_bytes: int
    ram_bytes: int
    stack_bytes: int
    compiler: str


def find_cross_compiler() -> str:
    """Returns the path of a C compiler for Cortex-M; UnavailableError where this machine has none."""
    path = shutil.which(COMPILER)
    if path is None:
        raise UnavailableError(f"{COMPILER} is not on the path, so nothing is compiled for a microcontroller here; install it")
    return path


def link(board: Board, sources: Sequence[Path], image: Path, options: Sequence[str] = OPTIONS, defines: Sequence[str] = ()) -> None:
    """Compiles C files with the start-up code of a board and links them, with weights that are beside them in the binary notation.

    Raises InputError with the compiler's words where that fails.
    """
    sources = [path.absolute() for path in sources]  # the compiler runs in the image's folder
    script = (_HERE / "board.ld").read_text(encoding="utf-8")
    for name, value in zip(("ROM_START", "ROM_BYTES", "RAM_START", "RAM_BYTES"), (*board.rom, *board.ram), strict=True):
        script = script.replace(name, hex(value))
    layout = image.with_suffix(".ld")
    layout.write_text(script, encoding="utf-8")
    files = [str(path) for path in (*[path for path in sources if path.suffix == ".c"], _HERE / "startup.c")]
    for number, path in enumerate(unit for source in sources for unit in units(source) if unit.suffix == ".S"):
        # In its own folder, as the file of bytes that it names is the first of that name.
        files.append(str(image.absolute().with_name(f"weights{number}.o")))
        _run([find_cross_compiler(), *board.options, "-c", path.name, "-o", files[-1]], path.absolute().parent)
    folders = [f"-I{folder}" for folder in sorted({str(path.parent) for path in (*sources, image)})]
    flags = [*board.options, *options, *[f"-D{one}" for one in defines], *folders]
    _run([find_cross_compiler(), *flags, "-nostartfiles", "--specs=nano.specs", f"-T{layout}", *files, "-o", str(image)], image.parent)


def footprint(
    machine: Sequence[str], source: Path, prefix: str, options: Sequence[str] = OPTIONS, libraries: Sequence[str] = ()
) -> Footprint:
    """Links a network's model.c into an image with nothing else, and returns what it takes by the linker's map and -fstack-usage.

    `machine` are the options that name the processor. The entry point is `PREFIX_classify`, with the arena of the file's own, and where
    the file defines them `PREFIX_certify` and `PREFIX_radius` too; `libraries` such as -lm are linked too: peers need them, model.c does
    not. Raises UnavailableError without a compiler.
    """
    compiler = find_cross_compiler()
    with tempfile.TemporaryDirectory(prefix="vsparse-size-") as name:
        folder = Path(name)
        objects = [str(folder / f"{path.suffix[1:]}.o") for path in units(source)]
        for path, made in zip(units(source), objects, strict=True):
            _compile_measured([compiler, *machine, *options, *_SIZES, "-c", path.name, "-o", made], path.absolute().parent)
        usage, graph = (_text_of(folder / name) for name in ("c.su", "c.ci"))
        entries = entry_points(usage, prefix)
        ends = (
            "-nostartfiles",
            "--specs=nano.specs",
            "-Wl,--gc-sections",
            f"-Wl,-e,{entries[0]}",
            *[f"-Wl,-u,{one}" for one in entries],
            f"-Wl,-Map,{folder / 'model.map'}",
        )
        _run([compiler, *machine, *ends, *objects, *libraries, "-o", "model.elf"], folder)
        sections = sizes_of((folder / "model.map").read_text(encoding="utf-8", errors="replace"))
    constants = sum(size for section, size in sections if section.startswith(".rodata"))
    code = sum(size for section, size in sections if section.startswith((".text", ".ARM", ".data")))
    ram = sum(size for section, size in sections if section.startswith((".bss", "COMMON", ".data")))
    return Footprint(constants + code, constants, code, ram, deepest(usage, graph, entries), _version(compiler))


_ENTRY = re.compile(r"^ (\.[\w.$-]+|COMMON)(?:\n)?\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+\S", re.MULTILINE)


def sizes_of(text: str) -> list[tuple[str, int]]:
    """Returns (section, bytes) of every input section that a GNU linker's map says was kept."""
    kept = text.partition("Linker script and memory map")[2]
    return [(section, int(size, 16)) for section, _, size in _ENTRY.findall(kept) if int(size, 16)]


def entry_points(usage: str, prefix: str) -> tuple[str, ...]:
    """Returns `PREFIX_classify`, and those of the live certificate that the compiler says (.su) the file defines."""
    there = defined(usage)
    live = (f"{prefix}_{one}" for one in ("certify", "certify_budget", "radius"))
    return (f"{prefix}_classify", *(name for name in live if name in there))


def cross_compiler_version() -> str:
    """Returns the first line that the compiler for Cortex-M says about itself, or `absent`."""
    try:
        return _version(find_cross_compiler())
    except (UnavailableError, OSError, subprocess.TimeoutExpired):
        return "absent"


def _version(compiler: str) -> str:
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    return said.splitlines()[0] if said else "unknown"


def _text_of(path: Path) -> str:
    """Returns the text of a file, "" where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _compile_measured(command: list[str], folder: Path) -> None:
    """Compiles with a graph of calls, where the compiler writes one."""
    try:
        _run([*command, CALL_GRAPH], folder)
    except InputError:
        _run(command, folder)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{COMPILER} did not finish within {SECONDS} s; compile with -Os, or deploy a smaller network") from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line or "overflowed" in line), done.stderr[:200])
        raise InputError(
            f"{COMPILER} refuses the network ({first.strip()}); lower network.width, or raise train.sparsity, if it is too large"
        )
