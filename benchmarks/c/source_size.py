"""Source bytes of the C of a net of 1.3 million weights, and processor time of compiling it; `source_size.py [RESULTS.json] [--runs N]`.

Each notation of the weights (docs/c.md), float32 and int8, with gcc and, where it is there, clang. A time is user and system time of the
compiler and all its children, the least of `--runs` runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from vsparse.graph import Conv, Gemm, Graph, Relu, Reshape, validate
from vsparse.stages.export.c_int8 import emit_int8_c
from vsparse.stages.export.c_source import emit_c
from vsparse.stages.export.c_source.weights import Notation, units
from vsparse.stages.export.quantise import quantise

OPTIONS = ("-O3", "-std=c99", "-ffp-contract=off", "-march=native")
NOTATIONS: tuple[Notation, ...] = ("text", "binary")


def network() -> Graph:
    """Returns a net for 1 x 28 x 28 with exactly 1,300,000 weights: convolutions to 20 and 12 channels, then 2,170 and 10 outputs."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (20, 1, 3, 3), "w2": (12, 20, 3, 3), "w3": (2170, 588), "w4": (10, 2170)}
    params = {name: (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32) for name, shape in shapes.items()}
    params |= {f"b{name[1]}": rng.normal(size=shape[0]).astype(np.float32) for name, shape in shapes.items()}
    nodes = (
        Conv(name="c1", inputs=("x",), shape=(20, 14, 14), weight="w1", bias="b1", stride=(2, 2), pads=(1, 1, 1, 1)),
        Relu(name="r1", inputs=("c1",), shape=(20, 14, 14)),
        Conv(name="c2", inputs=("r1",), shape=(12, 7, 7), weight="w2", bias="b2", stride=(2, 2), pads=(1, 1, 1, 1)),
        Relu(name="r2", inputs=("c2",), shape=(12, 7, 7)),
        Reshape(name="f", inputs=("r2",), shape=(588,)),
        Gemm(name="g1", inputs=("f",), shape=(2170,), weight="w3", bias="b3"),
        Relu(name="r3", inputs=("g1",), shape=(2170,)),
        Gemm(name="g2", inputs=("r3",), shape=(10,), weight="w4", bias="b4"),
    )
    return validate(Graph(input="x", input_shape=(1, 28, 28), nodes=nodes, output="g2", params=params))


def compiled(compiler: str, source: Path, runs: int) -> float:
    """Returns the seconds of processor time that compiling all files of a network takes, the least of some runs."""
    times = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for unit in units(source):
            subprocess.run([compiler, *OPTIONS, "-c", unit.name, "-o", f"{unit.suffix[1:]}.o"], cwd=source.parent, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def main() -> None:
    """Measures, prints a line for each, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    graph = network()
    quantised = quantise(graph, np.random.default_rng(1).random((32, *graph.input_shape), dtype=np.float32), "int8")
    compilers = [name for name in ("gcc", "clang") if shutil.which(name)]
    rows = []
    for precision, source, emit in (
        ("fp32", "model.c", lambda notation: emit_c(graph, weights=notation)),
        ("int8", "model.int8.c", lambda notation: emit_int8_c(quantised, weights=notation)),
    ):
        for notation in NOTATIONS:
            with tempfile.TemporaryDirectory() as name:
                emit(notation).write(Path(name))
                taken = sum(path.stat().st_size for path in Path(name).iterdir())
                seconds = {one: round(compiled(one, Path(name) / source, args.runs), 2) for one in compilers}
            rows.append({"precision": precision, "weights": notation, "source_bytes": taken, "compile_s": seconds})
            print(f"{precision} {notation}: {taken / 1e6:.2f} MB, {', '.join(f'{key} {value:.2f} s' for key, value in seconds.items())}")
    about = {
        "weights": int(sum(graph.params[name].size for name in graph.params if name.startswith("w"))),
        "parameters": int(sum(value.size for value in graph.params.values())),
        "machine": platform.processor() or platform.machine(),
        "options": list(OPTIONS),
        "runs": args.runs,
        "compilers": {
            one: subprocess.run([one, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0] for one in compilers
        },
    }
    if args.results is not None:
        args.results.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
