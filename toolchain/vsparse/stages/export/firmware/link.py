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

COMPILER = "arm-none-eabi-gcc"
# Without -mcpu and the like, which are a board's.
OPTIONS = ("-O2", "-std=c99", "-ffp-contract=off")
SECONDS = 300
_HERE = Path(__file__).resolve().parent
_SIZES = ("-ffunction-sections", "-fdata-sections", "-fstack-usage")


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
            _run([compiler, *machine, *options, *_SIZES, "-c", path.name, "-o", made], path.absolute().parent)
        usage = (folder / "c.su").read_text(encoding="utf-8", errors="replace")
        entry = f"{prefix}_classify"
        ends = (
            "-nostartfiles",
            "--specs=nano.specs",
            "-Wl,--gc-sections",
            f"-Wl,-e,{entry}",
            *[f"-Wl,-u,{one}" for one in entry_points(usage, entry)],
            f"-Wl,-Map,{folder / 'model.map'}",
        )
        _run([compiler, *machine, *ends, *objects, *libraries, "-o", "model.elf"], folder)
        sections = sizes_of((folder / "model.map").read_text(encoding="utf-8", errors="replace"))
    constants = sum(size for section, size in sections if section.startswith(".rodata"))
    code = sum(size for section, size in sections if section.startswith((".text", ".ARM", ".data")))
    ram = sum(size for section, size in sections if section.startswith((".bss", "COMMON", ".data")))
    return Footprint(constants + code, constants, code, ram, deepest(usage, entry), _version(compiler))


_ENTRY = re.compile(r"^ (\.[\w.$-]+|COMMON)(?:\n)?\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+\S", re.MULTILINE)


def sizes_of(text: str) -> list[tuple[str, int]]:
    """Returns (section, bytes) of every input section that a GNU linker's map says was kept."""
    kept = text.partition("Linker script and memory map")[2]
    return [(section, int(size, 16)) for section, _, size in _ENTRY.findall(kept) if int(size, 16)]


def entry_points(usage: str, entry: str) -> tuple[str, ...]:
    """Returns `entry`, which is `PREFIX_classify`, and those of the live certificate that the compiler says (.su) the file defines."""
    outer, defined = entry.removesuffix("_classify"), {name for name, _, _ in _frames(usage)}
    return (entry, *[name for name in (f"{outer}_certify", f"{outer}_radius", f"{outer}_certify_budget") if name in defined])


def deepest(usage: str, entry: str) -> int:
    """Returns an upper bound of the stack of a call from the functions' own frames in the .su file; 0 where one has no bound.

    No function of model.c calls itself, and the kernels do not call each other: a call is at most `PREFIX_classify`, `_classify_in`,
    `_logits_in`, the network, and the kernel with the largest frame. Where the file defines them, those of `PREFIX_certify` and
    `PREFIX_radius` count too: each its `_in`, then `vs_live` and either the bounds, with a kernel, an input's ends or the label's row,
    or the margin with a row; `_certify_in` also calls `_classify_in`. `PREFIX_certify_budget` calls all of these, or backward passes.
    """
    frames: dict[str, int] = {}
    for name, size, kind in _frames(usage):
        if kind not in ("static", "dynamic,bounded"):
            return 0
        whole = name.partition(".part.")[0]  # a function that the compiler split calls its part
        frames[whole] = frames.get(whole, 0) + size
    outer = entry.removesuffix("_classify")
    kernels = [size for name, size in frames.items() if name.startswith("vs_") and name.partition(".")[0] not in _NO_KERNELS]
    kernel = max(kernels, default=0)

    def own(*names: str) -> int:
        """The frames of functions, each with the copies that the compiler made of it."""
        return sum(size for name, size in frames.items() if name.partition(".")[0] in names)

    inference = own(f"{outer}_classify_in", f"{outer}_logits_in", "vs_network") + kernel
    bounded = own("vs_bounds", "vs_trace") + max(kernel, own("vs_region", "vs_ends"), own("vs_label", "vs_row"))
    live = own("vs_live") + max(bounded, own("vs_margin", "vs_row"))
    certify = own(f"{outer}_certify_in") + max(inference, live)
    passes = own("vs_second", "vs_backward", *_PARTS) + kernel
    below = {
        entry: inference,
        f"{outer}_certify": certify,
        f"{outer}_certify_budget": own(f"{outer}_certify_budget_in") + max(certify, passes),
        f"{outer}_radius": own(f"{outer}_radius_in") + live,
    }
    return max(own(one) + below[one] for one in entry_points(usage, entry))


# Functions of model.c that call others, by name.
_NO_KERNELS = ("vs_network", "vs_live", "vs_bounds", "vs_trace", "vs_margin", "vs_region", "vs_label", "vs_second", "vs_backward")
# What kernels of a backward pass call.
_PARTS = ("vs_total", "vs_cost", "vs_below")


def _frames(usage: str) -> list[tuple[str, int, str]]:
    """Returns the name, the bytes and the kind of every frame in a .su file."""
    lines = [line.split("\t") for line in usage.splitlines()]
    return [(place.rsplit(":", 1)[1], int(size), kind) for place, size, kind in lines]


def cross_compiler_version() -> str:
    """Returns the first line that the compiler for Cortex-M says about itself, or `absent`."""
    try:
        return _version(find_cross_compiler())
    except (UnavailableError, OSError, subprocess.TimeoutExpired):
        return "absent"


def _version(compiler: str) -> str:
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    return said.splitlines()[0] if said else "unknown"


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
