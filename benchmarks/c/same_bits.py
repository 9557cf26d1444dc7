"""Does every compiler and processor compute the stated bits? `same_bits.py RESULTS.json [--nets N] [--inputs N] [--only REGEX] …`

Random networks over every operator that the C has (tests/export/c_nets.py), those of the shipped recipes with random weights
(--recipes, tests/export/c_recipes.py), and networks of builds (--models), in float32 and int8: ten
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
from same_bits_expected import Expected, expected, inputs_of, judge

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "export"))

from c_nets import any_operators  # noqa: E402
from c_options import FLAGS  # noqa: E402
from c_recipes import architectures, recipe_network  # noqa: E402

from vsparse.errors import InputError, UnavailableError  # noqa: E402
from vsparse.files import write_json  # noqa: E402
from vsparse.graph import Graph, from_onnx  # noqa: E402
from vsparse.stages.export.c_int8 import emit_int8_c  # noqa: E402
from vsparse.stages.export.c_source import emit_c  # noqa: E402
from vsparse.stages.export.firmware import BOARDS, boot, link  # noqa: E402
from vsparse.stages.export.quantise import quantise  # noqa: E402

EXACT = ("-std=c99", "-ffp-contract=off")
NEON = ("-march=armv7-a", "-mfpu=neon-vfpv4", "-mfloat-abi=hard", "-marm")
TOGETHER = 10  # networks of one program
FIRST_RECIPE, FIRST_MODEL = 10**5, 10**6  # their seeds


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
    # On Arm clang has no pragma against -fno-honor-nans (docs/c.md), and its NEON of 32 bits flushes subnormals.
    for flag in ("", *(flag for flag in FLAGS["clang"] if flag != "-fno-honor-nans")):
        options = ("-O3", *EXACT, *flag.split())
        arm64, arm = ("--target=aarch64-linux-gnu",), ("--target=arm-linux-gnueabihf", *NEON)
        found[f"aarch64, clang {flag}".strip()] = Configuration("clang", (*arm64, *options), "qemu-aarch64-static", may_refuse=True)
        found[f"armv7, clang {flag}".strip()] = Configuration("clang", (*arm, *options), "qemu-arm-static", same=False, may_refuse=True)
    for level in ("-O2", "-O3"):
        found[f"aarch64 {level}"] = Configuration("aarch64-linux-gnu-gcc", (level, *EXACT), "qemu-aarch64-static")
    for level in ("-O2", "-O3"):
        found[f"armv7 with NEON {level}"] = Configuration("arm-linux-gnueabihf-gcc", (level, *NEON, *EXACT), "qemu-arm-static")
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
    machine = [option for option in how.options if option.startswith(("--target", "-march=armv", "-mfpu", "-mfloat-abi"))]
    for i, source in enumerate(one.sources):
        network = source.name != "same_bits.c"
        flags = [*how.options, *[f"-D{define}" for define in no_arenas(one)]] if network else ["-O2", "-std=c99", *machine]
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
    subprocess.run([how.compiler, *machine, *(["-static"] if how.emulator else []), *objects, "-o", str(binary)], check=True)
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


def units(nets: int, recipes: bool, models: list[Path]) -> Iterator[tuple[str, Any]]:
    """Yields the names of programs and what makes their networks."""
    for first in range(0, nets, TOGETHER):
        last = min(first + TOGETHER, nets)
        yield f"{first}-{last - 1}", lambda first=first, last=last: drawn(first, last)
    if recipes:
        for i, (name, key) in enumerate(architectures().items()):
            yield name, lambda i=i, name=name, key=key: [_with_integers(name, FIRST_RECIPE + i, recipe_network(key))]
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
    parser.add_argument("--recipes", action="store_true", help="the networks of the shipped recipes, narrowed where they are large")
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
    for unit, make in units(given.nets, given.recipes, given.models):
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
