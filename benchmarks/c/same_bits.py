"""Does every compiler and processor compute the stated bits? `same_bits.py RESULTS.json [--nets N] [--inputs N] [--only REGEX] …`

Random networks over every operator that the C has (tests/export/c_nets.py), and networks of builds (--models), in float32 and int8: ten
networks become one program (same_bits.c), which draws its inputs and writes its logits. Compared with the simulation of the stated order,
number for number, and with the enclosure that the bounds prove for each input under the contract. Results are added to RESULTS.json: what
it has already is not executed again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "export"))

from c_nets import any_operators  # noqa: E402
from c_options import FLAGS  # noqa: E402

from vsparse.bounds import Rounding, interval  # noqa: E402
from vsparse.contract import CONTRACTS  # noqa: E402
from vsparse.errors import InputError, UnavailableError  # noqa: E402
from vsparse.files import write_json  # noqa: E402
from vsparse.graph import FakeQuant, Graph, from_onnx  # noqa: E402
from vsparse.stages.export.c_int8 import emit_int8_c, simulate_integers  # noqa: E402
from vsparse.stages.export.c_source import emit_c, simulate  # noqa: E402
from vsparse.stages.export.c_source.simulation import execute as execute_operator  # noqa: E402
from vsparse.stages.export.firmware import BOARDS, boot, link  # noqa: E402
from vsparse.stages.export.quantise import quantise  # noqa: E402

EXACT = ("-std=c99", "-ffp-contract=off")
TOGETHER = 10  # networks of one program
KINDS, NOT_ASKED = 8, -(2**31)
FIRST_MODEL = 10**6  # its seed

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Configuration:
    """How the networks are compiled and executed: a compiler, its options, and an emulator's command or a board."""

    compiler: str
    options: tuple[str, ...]
    emulator: str = ""
    board: str = ""
    same: bool = True  # fused multiply-add has other bits, inside the enclosures
    may_refuse: bool = False


def configurations() -> dict[str, Configuration]:
    """Returns every configuration by its name."""
    found = {f"gcc {level}": Configuration("gcc", (level, *EXACT)) for level in ("-O0", "-O2", "-O3", "-Os")}
    found["gcc -O3 -march=native"] = Configuration("gcc", ("-O3", "-march=native", *EXACT))
    found["gcc -O3 -march=native, fused"] = Configuration("gcc", ("-O3", "-march=native", "-std=c99", "-ffp-contract=fast"), same=False)
    found["clang -O2"] = Configuration("clang", ("-O2", *EXACT))
    for flag in FLAGS["clang"]:
        found[f"clang -O3 -march=native {flag}"] = Configuration("clang", ("-O3", *EXACT, "-march=native", *flag.split()), may_refuse=True)
    for level in ("-O2", "-O3"):
        found[f"aarch64 {level}"] = Configuration("aarch64-linux-gnu-gcc", (level, *EXACT), "qemu-aarch64-static")
    neon = ("-march=armv7-a", "-mfpu=neon-vfpv4", "-mfloat-abi=hard", "-marm")
    for level in ("-O2", "-O3"):
        found[f"armv7 with NEON {level}"] = Configuration("arm-linux-gnueabihf-gcc", (level, *neon, *EXACT), "qemu-arm-static")
    for board in BOARDS:
        for level in ("-O2", "-Os"):
            found[f"{board} {level}"] = Configuration("arm-none-eabi-gcc", (level, *EXACT), "qemu-system-arm", board)
    return found


@dataclass(frozen=True)
class Network:
    """A network and its quantised form, with the seed of its inputs."""

    name: str
    seed: int
    graph: Graph
    integers: Graph


def drawn(first: int, last: int) -> list[Network]:
    """Returns random networks."""
    return [_with_integers(f"network {seed}", seed, any_operators(seed)) for seed in range(first, last)]


def built(index: int, folder: Path) -> Network:
    """Returns the network of a build; where it has no int8 form, that of its float32 file on random inputs."""
    graph = from_onnx(folder / "model" / "model.fp32.onnx")
    integers = folder / "model" / "model.int8.onnx"
    if integers.is_file():
        return Network(folder.name, FIRST_MODEL + index, graph, from_onnx(integers))
    return _with_integers(folder.name, FIRST_MODEL + index, graph)


def _with_integers(name: str, seed: int, graph: Graph) -> Network:
    samples = np.random.default_rng(seed).normal(size=(16, *graph.input_shape)).astype(np.float32)
    return Network(name, seed, graph, quantise(graph, samples))


def inputs_of(seed: int, count: int, shape: tuple[int, ...]) -> Values:
    """Returns the inputs [count, *shape] that same_bits.c draws, to the bit."""
    index = np.arange(count, dtype=np.uint32)
    state = (np.uint32(seed * 0x9E3779B9 % 2**32) + index * np.uint32(0x85EBCA6B)) | np.uint32(1)

    def draw() -> NDArray[np.uint32]:
        nonlocal state
        state = state ^ (state << np.uint32(13))
        state = state ^ (state >> np.uint32(17))
        state = state ^ (state << np.uint32(5))
        return state

    for _ in range(8):
        draw()
    size = prod(shape)
    place = draw() % np.uint32(size)
    a, b = np.empty((count, size), np.uint32), np.empty((count, size), np.uint32)
    for i in range(size):
        a[:, i], b[:, i] = draw(), draw()
    positive = (a >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
    both = ((a >> np.uint32(8)).astype(np.float32) - np.float32(2**23)) * np.float32(2**-23)
    tiny = np.where(b % 4 != 0, a & np.uint32(0x807FFFFF), np.uint32(0)).view(np.float32)
    wide = ((a & np.uint32(0x807FFFFF)) | (np.uint32(107) + b % np.uint32(24)) << np.uint32(23)).view(np.float32)
    ends = np.array(
        [0, 1 << 31, 0x3F800000, 0xBF800000, 0x3F7FFFFF, 0x3F800001, 0x800000, 0x80800000, 0x7FFFFF, 1, 0x80000001, 0x3F000000], np.uint32
    ).view(np.float32)
    mixed = np.where(b & np.uint32(16), tiny, both)
    kinds = [positive, both, np.float32(4) * both, wide, tiny, ends[b % 12], mixed, both]
    x = np.select([(index % KINDS == kind)[:, None] for kind in range(KINDS)], kinds).astype(np.float32)
    far = np.array([0x7FC00000, 0x7F800000, 0x7F7FFFFF, 0xFF7FFFFF], np.uint32).view(np.float32)
    last = np.flatnonzero(index % KINDS == KINDS - 1)
    x[last, place[last]] = far[last // KINDS % 4]
    return x.reshape(count, *shape)


@dataclass(frozen=True)
class Expected:
    """What a form of a network may compute for each input: logits [n, classes], the other choice where terms of zeros are left out, bounds.

    `finite` are the inputs that the bounds are about.
    """

    logits: Values
    absent: Values
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    finite: NDArray[np.bool_]


def expected(graph: Graph, x: Values, integers: bool) -> Expected:
    """Returns what the simulation and the bounds say of inputs [n, *shape]."""
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if integers:
        logits = simulate_integers(graph, np.where(np.isnan(x), np.float32(0), x))
        logits[_meets_nan(graph, x)] = np.nan
        absent = logits
    else:
        logits = simulate(graph, x)[graph.output].reshape(len(x), -1)
        absent = simulate(graph, x, pruned_absent=True)[graph.output].reshape(len(x), -1)
    rounding = Rounding(graph, CONTRACTS["int8" if integers else "sequential"])
    lower, upper = np.full(logits.shape, -np.inf), np.full(logits.shape, np.inf)
    rows = np.flatnonzero(finite)
    for part in np.array_split(rows, -(-len(rows) // 128)):
        point = torch.from_numpy(x[part]).double()
        low, high = interval(graph, rounding.params, (point, point), rounding)[graph.output]
        lower[part], upper[part] = low.numpy().reshape(len(part), -1), high.numpy().reshape(len(part), -1)
    return Expected(logits, absent, lower, upper, finite)


def _meets_nan(graph: Graph, x: Values) -> NDArray[np.bool_]:
    """Returns of which inputs [n, *shape] a value that is not a number meets a grid: one that no operator reads does not."""
    values = {graph.input: x}
    found = np.zeros(len(x), bool)
    for node in graph.nodes:
        if not all(name in values for name in node.inputs):
            continue
        if isinstance(node, FakeQuant):
            found |= np.isnan(values[node.inputs[0]]).reshape(len(x), -1).any(axis=1)
        else:
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                values[node.name] = execute_operator(graph, node, [values[name] for name in node.inputs])
    return found


def judge(wanted: Expected, logits: Values, classes: NDArray[np.int32], same: bool) -> dict[str, int]:
    """Returns counts of logits with other bits (but for the sign of zero), of logits outside their enclosures, and of wrong classes."""
    n = len(logits)
    agree = _equal(wanted.logits[:n], wanted.absent[:n])
    right = np.where(agree, _equal(logits, wanted.logits[:n]), _equal(logits, wanted.absent[:n]) | ~np.isfinite(logits))
    unbounded = np.isinf(wanted.lower[:n]) & np.isinf(wanted.upper[:n])
    inside = ((logits >= wanted.lower[:n]) & (logits <= wanted.upper[:n])) | unbounded
    visible = np.isfinite(logits).all(axis=1)
    best = np.where(visible, np.where(np.isnan(logits), -np.inf, logits).argmax(axis=1), -1)
    asked = classes != NOT_ASKED
    return {
        "logits": logits.size,
        "other_bits": int((~right).sum()) if same else 0,
        "outside": int((~inside)[wanted.finite[:n]].sum()),
        "classes": int(asked.sum()),
        "wrong_classes": int((best != classes)[asked].sum()),
        "refused_classes": int((classes == -1).sum()),
        "bounded": int((~unbounded)[wanted.finite[:n]].sum()),
    }


def _equal(a: Values, b: Values) -> NDArray[np.bool_]:
    return (a == b) | (np.isnan(a) & np.isnan(b))


@dataclass(frozen=True)
class Program:
    """Some networks as files of one program; of each form its name, its graph, and what it may compute."""

    folder: Path
    sources: list[Path]
    forms: list[tuple[str, Graph, Expected]]

    def words(self) -> list[int]:
        """Returns the words that the program writes for one input of each form."""
        return [1 + prod(graph.shape_of(graph.output)) for _, graph, _ in self.forms]


def program(networks: list[Network], inputs: int, folder: Path) -> Program:
    """Writes the networks, with the table that same_bits.c reads."""
    forms: list[tuple[str, Graph, Expected]] = []
    sources, headers, rows, flags = [], [], [], []
    for i, one in enumerate(networks):
        own = folder / f"n{i}"
        own.mkdir()
        emit_c(one.graph, prefix=f"n{i}").write(own)
        emit_int8_c(one.integers, prefix=f"n{i}").write(own)
        x = inputs_of(one.seed, inputs, one.graph.input_shape)
        for graph, prefix, file in ((one.graph, f"n{i}", "model"), (one.integers, f"n{i}_int8", "model.int8")):
            sources.append(own / f"{file}.c")
            headers.append(f'#include "n{i}/{file}.h"')
            name = prefix.upper()
            flags.append(f"{name}_ARENA_FLOATS")
            rows.append(f"    {{{one.seed}u, {name}_INPUTS, {name}_CLASSES, {prefix}_logits_in, {prefix}_classify_in}},")
            forms.append((f"{one.name}, {'int8' if graph is one.integers else 'fp32'}", graph, expected(graph, x, graph is one.integers)))
    largest = " + ".join(flags)  # the largest of them is not known before the compiler chooses a text; their sum holds it
    text = [
        *headers,
        "static const struct { uint32_t seed, inputs, classes; int (*logits)(float *, size_t, const float *, float *); "
        "int (*classify)(float *, size_t, const float *); } nets[] = {",
        *rows,
        "};",
        f"#define MOST_INPUTS {max(prod(one.graph.input_shape) for one in networks)}",
        f"#define MOST_CLASSES {max(prod(graph.shape_of(graph.output)) for _, graph, _ in forms)}",
        f"#define ARENA_FLOATS ({largest})",
    ]
    (folder / "nets.h").write_text("\n".join(text) + "\n")
    main = folder / "same_bits.c"
    main.write_bytes(Path(__file__).with_suffix(".c").read_bytes())
    return Program(folder, [*sources, main], forms)


def no_arenas(one: Program) -> list[str]:
    """Returns the options that leave out the arenas of the files' own."""
    return [f"N{i}{form}_NO_STATIC_ARENA" for i in range(len(one.forms) // 2) for form in ("", "_INT8")]


def execute(how: Configuration, one: Program, inputs: int) -> bytes | None:
    """Returns what the program writes, or None where the files refuse an option that they may refuse; InputError where they may not."""
    if how.board:
        image = one.folder / "firmware.elf"
        board = BOARDS[how.board]
        link(board, one.sources, image, how.options, [*no_arenas(one), f"INPUTS={inputs}", "BARE_METAL=1"])
        done = boot(board, image, counted=False)
        if done.returncode:
            raise InputError(f"the firmware ended with {done.returncode}: {(done.stdout + done.stderr)[-200:]}")
        return (one.folder / "out.bin").read_bytes()
    objects, refused = [], 0
    for i, source in enumerate(one.sources):
        network = source.name != "same_bits.c"
        flags = [*how.options, *[f"-D{define}" for define in no_arenas(one)]] if network else ["-O2", "-std=c99"]
        made = one.folder / f"{i}.o"
        objects.append(str(made))
        command = [how.compiler, *flags, f"-I{one.folder}", "-c", str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and how.may_refuse and network and "compile without" in done.stderr:
            refused += 1
        elif done.returncode:
            raise InputError(f"{how.compiler} does not compile {source}: {done.stderr[:300]}")
    if refused:
        if refused != len(one.sources) - 1:
            raise InputError(f"{refused} of {len(one.sources) - 1} files refuse {how.options}")
        return None
    binary = one.folder / "program"
    # Linked without the options: those for unsafe mathematics would add a start-up that flushes subnormals.
    subprocess.run([how.compiler, *(["-static"] if how.emulator else []), *objects, "-o", str(binary)], check=True)
    command = [*([how.emulator] if how.emulator else []), str(binary), str(inputs)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def compare(one: Program, written: bytes, inputs: int, same: bool) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Returns the counts of each form (fp32, int8), and a line for each network that is wrong."""
    counts: dict[str, dict[str, int]] = {"fp32": {}, "int8": {}}
    wrong = []
    words = np.frombuffer(written, np.int32)
    if len(words) != inputs * sum(one.words()):
        raise InputError(f"the program wrote {len(words)} words, not {inputs * sum(one.words())}")
    start = 0
    for (name, _, wanted), width in zip(one.forms, one.words(), strict=True):
        rows = words[start : start + inputs * width].reshape(inputs, width)
        start += inputs * width
        found = judge(wanted, np.ascontiguousarray(rows[:, 1:]).view(np.float32), rows[:, 0], same)
        total = counts[name[-4:]]
        for key, value in found.items():
            total[key] = total.get(key, 0) + value
        if found["other_bits"] or found["outside"] or found["wrong_classes"]:
            wrong.append(f"{name}: {found['other_bits']} other bits, {found['outside']} outside, {found['wrong_classes']} wrong classes")
    return counts, wrong


def units(nets: int, models: list[Path]) -> Iterator[tuple[str, Any]]:
    """Yields the names of programs and what makes their networks."""
    for first in range(0, nets, TOGETHER):
        last = min(first + TOGETHER, nets)
        yield f"{first}-{last - 1}", lambda first=first, last=last: drawn(first, last)
    for i, folder in enumerate(models):
        yield folder.name, lambda i=i, folder=folder: [built(i, folder)]


def add(record: dict[str, Any], unit: str, networks: int, counts: dict[str, dict[str, int]], wrong: list[str]) -> None:
    """Adds what a program gave to the record of a configuration."""
    record["done"].append(unit)
    record["networks"] += networks
    record["violations"] += wrong
    for form, values in counts.items():
        for key, value in values.items():
            record[form][key] = record[form].get(key, 0) + value


def main() -> None:
    """Runs programs and configurations, and adds to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--nets", type=int, default=200, help="random networks")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="folders of builds, each a further network")
    parser.add_argument("--inputs", type=int, default=1000, help="of each network on hosts and under qemu-user")
    parser.add_argument("--board-inputs", type=int, default=40, help="of each network on boards")
    parser.add_argument("--only", default="", help="configurations whose name has this regular expression")
    given = parser.parse_args()
    records = {name: record for name, record in _saved(given.results).items() if re.search(given.only, name)}
    chosen = {name: how for name, how in configurations().items() if re.search(given.only, name)}
    for name, how in list(chosen.items()):
        missing = [tool for tool in (how.compiler, how.emulator) if tool and not shutil.which(tool)]
        if missing:
            print(f"{name}: {missing[0]} is absent", file=sys.stderr)
            del chosen[name]
    for unit, make in units(given.nets, given.models):
        todo = {name: how for name, how in chosen.items() if unit not in records.get(name, {}).get("done", [])}
        if not todo:
            continue
        networks = make()
        most = max(given.board_inputs if how.board else given.inputs for how in todo.values())
        with tempfile.TemporaryDirectory(prefix="vsparse-bits-") as name:
            one = program(networks, most, Path(name))
            for title, how in todo.items():
                inputs = given.board_inputs if how.board else given.inputs
                record = records.setdefault(title, _record(how, inputs))
                if record["inputs"] != inputs:
                    raise SystemExit(f"{title} has {record['inputs']} inputs a network in {given.results}; give as many, or another file")
                try:
                    written = execute(how, one, inputs)
                except (InputError, UnavailableError, subprocess.CalledProcessError) as error:
                    add(record, unit, 0, {}, [f"{unit}: {error}"])
                else:
                    if written is None:
                        record["refused"] += len(networks)
                        add(record, unit, len(networks), {}, [])
                    else:
                        add(record, unit, len(networks), *compare(one, written, inputs, how.same))
                # Others may be adding other configurations.
                write_json(given.results, {"schema_version": 1, "configurations": _saved(given.results) | records})
        print(f"{unit}: " + ", ".join(f"{title}: {len(records[title]['violations'])} wrong" for title in todo), file=sys.stderr, flush=True)


def _saved(results: Path) -> dict[str, Any]:
    return dict(json.loads(results.read_text())["configurations"]) if results.is_file() else {}


def _record(how: Configuration, inputs: int) -> dict[str, Any]:
    said = subprocess.run([how.compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    options = " ".join((*(BOARDS[how.board].options if how.board else ()), *how.options))
    return {
        "compiler": said,
        "options": options,
        "emulator": how.emulator,
        "inputs": inputs,
        "networks": 0,
        "refused": 0,
        "fp32": {},
        "int8": {},
        "violations": [],
        "done": [],
    }


if __name__ == "__main__":
    main()
