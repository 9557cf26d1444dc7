"""model.c and model.int8.c on Cortex-M beside onnx2c and emlearn: instructions under QEMU, flash and RAM by the linker's map.

Usage: microcontroller_peers.py [RESULTS.json] --onnx2c PROGRAM --emlearn PYTHON [--nets N] [--boards NAME …]

The same networks with the same weights and the same options; instructions are not cycles. `--onnx2c` is that program, built from its
repository; `--emlearn` is a Python that has emlearn, whose networks are fully connected. Without one of them its columns are left out.
onnx2c is compiled with -ffast-math too, which its documentation recommends, and which no certificate covers. Rows that RESULTS.json has
already are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from microcontrollers import INPUTS, OPTIMISE
from run import NETS, network

from vsparse.errors import InputError
from vsparse.files import write_json
from vsparse.graph import Gemm, Graph, Relu, Reshape, macs, to_onnx
from vsparse.stages.export.c_int8 import emit_int8_c, simulate_integers
from vsparse.stages.export.c_source import emit_c, simulate
from vsparse.stages.export.firmware import BOARDS, emulate, footprint
from vsparse.stages.export.firmware.boards import Board
from vsparse.stages.export.firmware.link import OPTIONS, cross_compiler_version
from vsparse.stages.export.quantise import quantise

# Of the networks of run.py those that fit; then fully connected ones, for emlearn.
CHOSEN = [*(NETS[i] for i in (0, 1, 2, 3, 6, 7)), ("digits lenet-300-100, dense", "lenet-300-100", 1.0, (1, 8, 8), 1.0, 1), *NETS[4:6]]

# What peers call of the C library's mathematics; by name, as the library comes before the file that needs it.
MATHEMATICS = (*(f"-Wl,-u,{name}" for name in ("expf", "logf", "tanhf", "round", "roundf", "rint", "rintf")), "-lm")
# What gives a peer the interface of model.c: logits, and the class by the largest of them.
SHELL = """
#include <stdint.h>
MODEL
void peer_logits(const float *input, float *logits)
{
    CALL;
}

int peer_classify(const float *input)
{
    float logits[CLASSES];
    int best = 0;
    peer_logits(input, logits);
    for (int i = 1; i < CLASSES; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}
"""
EMLEARN = """
import sys, numpy, emlearn
from emlearn.net import c_generate_net_loadable
given = numpy.load(sys.argv[1])
n = len(given.files) // 2
kinds = ["relu"] * (n - 1) + ["identity"]
weights, biases = [given[f"w{i}"].T for i in range(n)], [given[f"b{i}"] for i in range(n)]
open(sys.argv[2], "w").write(c_generate_net_loadable(kinds, weights, biases, "mynet"))
print(emlearn.includedir, emlearn.__version__)
"""


@dataclass(frozen=True)
class Candidate:
    """A network in C: its file, its prefix, what else it is compiled with, and the logits that it must give, to a tolerance."""

    source: Path
    prefix: str
    more: tuple[str, ...]
    expected: np.ndarray
    tolerance: float


def onnx2c(program: str, graph: Graph, folder: Path) -> Path:
    """Returns the file that onnx2c makes of the network's ONNX file, with the interface of model.c."""
    folder.mkdir()
    (folder / "net.onnx").write_bytes(to_onnx(graph).SerializeToString())
    done = subprocess.run([program, "-l0", "net.onnx"], cwd=folder, capture_output=True, text=True, check=True)
    (folder / "net.h").write_text(done.stdout)
    shape, classes = "".join(f"[{size}]" for size in graph.input_shape[1:]), prod(graph.shape_of(graph.output))
    call = f"entry((const float (*)[{graph.input_shape[0]}]{shape})(const void *)input, (float (*)[{classes}])(void *)logits)"
    return _shell(folder, '#include "net.h"', call, classes)


def emlearn(python: str, graph: Graph, folder: Path) -> tuple[Path, str]:
    """Returns the file that emlearn makes of a fully connected network, and the folder of its headers."""
    folder.mkdir()
    layers = [node for node in graph.nodes if isinstance(node, Gemm)]
    arrays = {f"w{i}": graph.params[node.weight] for i, node in enumerate(layers)}
    arrays |= {f"b{i}": graph.params[str(node.bias)] for i, node in enumerate(layers)}
    np.savez(folder / "weights.npz", **arrays)
    done = subprocess.run([python, "-c", EMLEARN, "weights.npz", "net.h"], cwd=folder, capture_output=True, text=True, check=True)
    classes = prod(graph.shape_of(graph.output))
    call = f"(void)mynet_regress(input, {prod(graph.input_shape)}, logits, {classes})"
    return _shell(folder, '#include "net.h"', call, classes), done.stdout.split()[0]


def _shell(folder: Path, model: str, call: str, classes: int) -> Path:
    path = folder / "peer.c"
    path.write_text(SHELL.replace("MODEL", model).replace("CALL", call).replace("CLASSES", str(classes)))
    return path


def candidates(graph: Graph, x: np.ndarray, folder: Path, given: argparse.Namespace) -> dict[str, Candidate]:
    """Returns the networks in C that are compared, ours first."""
    expected = simulate(graph, x)[graph.output].reshape(len(x), -1)
    emit_c(graph).write(folder)
    integers = quantise(graph, np.random.default_rng(2).random((32, *graph.input_shape), dtype=np.float32))
    emit_int8_c(integers).write(folder)
    found = {
        "ours": Candidate(folder / "model.c", "vsparse", (), expected, 0.0),
        "ours_int8": Candidate(folder / "model.int8.c", "vsparse_int8", (), simulate_integers(integers, x), 0.0),
    }
    if given.onnx2c:
        source = onnx2c(given.onnx2c, graph, folder / "onnx2c")
        found["onnx2c"] = Candidate(source, "peer", (), expected, 1e-4)
        found["onnx2c_fast_math"] = Candidate(source, "peer", ("-ffast-math", "-ffp-contract=fast"), expected, 1e-4)
        # It executes the quantised file node by node, with the weights of floats in RAM; a tie may be rounded to another step.
        source = onnx2c(given.onnx2c, integers, folder / "onnx2c_int8")
        found["onnx2c_int8"] = Candidate(source, "peer", MATHEMATICS, found["ours_int8"].expected, 0.1)
    if given.emlearn and all(isinstance(node, Gemm | Relu | Reshape) for node in graph.nodes):
        source, headers = emlearn(given.emlearn, graph, folder / "emlearn")
        found["emlearn"] = Candidate(source, "peer", (f"-I{headers}", *MATHEMATICS), expected, 1e-4)
    return found


def measure(one: Candidate, board: Board, optimise: str, x: np.ndarray) -> dict[str, int] | None:
    """Returns instructions (the most of the inputs), flash and RAM; None where the network does not fit the board."""
    options = (optimise, *OPTIONS[1:], *one.more)
    try:
        done = emulate(board, [one.source], x, one.expected.shape[1], f"{one.prefix}_logits", options)
    except InputError as error:
        if "overflowed" not in str(error) and "will not fit" not in str(error):
            raise
        return None
    np.testing.assert_allclose(done.logits, one.expected, rtol=one.tolerance, atol=one.tolerance)
    taken = asdict(footprint(board.options, one.source, one.prefix, options, ("-lm",)))
    return {"instructions": int(done.instructions.max()), **{name: taken[name] for name in ("flash_bytes", "code_bytes", "ram_bytes")}}


def versions(given: argparse.Namespace) -> dict[str, str]:
    """Returns what the peers and the compiler say they are."""
    found = {"compiler": cross_compiler_version(), "onnx2c": "absent", "emlearn": "absent"}
    if given.onnx2c:
        found["onnx2c"] = subprocess.run([given.onnx2c, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if given.emlearn:
        ask = "import importlib.metadata as m; print(m.version('emlearn'))"
        found["emlearn"] = subprocess.run([given.emlearn, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    return found


def main() -> None:
    """Runs networks, boards and options, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("--onnx2c", default="")
    parser.add_argument("--emlearn", default="")
    parser.add_argument("--nets", type=int, default=len(CHOSEN))
    parser.add_argument("--boards", nargs="*", default=["cortex-m3", "cortex-m4f", "cortex-m7"], choices=list(BOARDS))
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.results.read_text())["rows"] if given.results and given.results.is_file() else []
    done = {(row["net"], row["board"], row["optimise"]) for row in rows}
    for title, architecture, width, shape, kept, block in CHOSEN[: given.nets]:
        todo = [(board, optimise) for board in given.boards for optimise in OPTIMISE if (title, board, optimise) not in done]
        if not todo:
            continue
        graph, _ = network(architecture, width, shape, kept, block)
        x = np.random.default_rng(1).random((INPUTS, *shape), dtype=np.float32)
        with tempfile.TemporaryDirectory() as name:
            found = candidates(graph, x, Path(name), given)
            for board, optimise in todo:
                taken = {key: measure(one, BOARDS[board], optimise, x) for key, one in found.items()}
                rows.append({"net": title, "macs": macs(graph), "board": board, "optimise": optimise, **taken})
                print(f"{title}, {board} {optimise}: {_ratios(taken)}", flush=True)
                if given.results is not None:
                    write_json(given.results, {"schema_version": 1, "versions": versions(given), "rows": rows})


def _ratios(taken: dict[str, dict[str, int] | None]) -> str:
    """Returns ours to each peer: instructions, flash, RAM."""
    shown = []
    for peer, theirs in taken.items():
        for ours in ("ours", "ours_int8"):
            mine = taken[ours]
            if not peer.startswith("ours") and mine is not None and theirs is not None:
                values = [mine[key] / max(theirs[key], 1) for key in ("instructions", "flash_bytes", "ram_bytes")]
                shown.append(f"{ours}/{peer} {', '.join(f'{value:.2f}' for value in values)}")
    return json.dumps(shown).replace('"', "")


if __name__ == "__main__":
    main()
