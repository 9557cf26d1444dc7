"""Do the outputs of float16 and int8 files lie in their enclosures on x86 and on aarch64, at every optimisation level?

Usage: python benchmarks/forms/processors.py write FOLDER [--nets 200] [--seed 0] [--wide FILE]
       python benchmarks/forms/execute.py FOLDER x86        (and on the other processor: ... FOLDER arm)
       python benchmarks/forms/processors.py judge FOLDER [--out FILE]

`write` makes random float16 and int8 files, half of each, and a 64-2048-10 float16 net with positive weights, each with 12 inputs; `judge`
compares all outputs with the enclosure of each single input under every contract of the form, and exits with 1 where one lies outside
of a contract that is offered on that processor.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "bounds"))

import numpy as np
import torch
from graph_builder import random_net

from vsparse.bounds import Rounding, interval
from vsparse.contract import CONTRACTS
from vsparse.errors import GateError, InputError
from vsparse.files import write_json
from vsparse.graph import Gemm, Graph, Relu, to_onnx
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.quantised import is_quantised
from vsparse.processor import kept_contracts
from vsparse.reading.kernels import require_kernels
from vsparse.stages.export.half import half
from vsparse.stages.export.onnx_file import write_onnx
from vsparse.stages.export.quantise import quantise
from vsparse.stages.export.runtime_graph import check_runtime_graph

FP16 = ("fp16", "fp16-accumulate", "fp16-chain")
POINTS = 12


def wide(rng: np.random.Generator) -> Graph:
    """Returns a 64-2048-10 network with positive weights: sums of 2,048 terms of one sign."""
    params = {
        "w1": rng.uniform(0, 2 / 64, (2048, 64)).astype(np.float32),
        "b1": np.zeros(2048, np.float32),
        "w2": rng.uniform(0, 0.1, (10, 2048)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }
    nodes = (
        Gemm(name="first", inputs=("x",), shape=(2048,), weight="w1", bias="b1"),
        Relu(name="relu", inputs=("first",), shape=(2048,)),
        Gemm(name="second", inputs=("relu",), shape=(10,), weight="w2", bias="b2"),
    )
    return Graph("x", (64,), nodes, "second", params)


def points(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Returns inputs: random ones, corners, constants, and small ones where subnormal numbers begin."""
    x = rng.random((POINTS, *shape)).astype(np.float32)
    x[3:6] = rng.integers(0, 2, (3, *shape))
    x[6], x[7], x[8] = 0, 1, x[8] * np.float32(2.0**-13)
    return x


def write(folder: Path, nets: int, seed: int, wide_file: Path | None) -> None:
    """Writes the files with their inputs; a network that a form or its gate refuses is drawn again, and counted."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    refused: Counter[str] = Counter()
    made = 0
    while made < nets:
        graph, form = random_net(rng, "fp32", "normal"), "fp16" if made % 2 else "int8"
        path = folder / f"{form}-{made:04}.onnx"
        try:
            x = points(rng, graph.input_shape)
            # A real float32 file first, as a build has it: what changes nothing is gone then.
            graph = from_onnx(to_onnx(graph).SerializeToString())
            write_onnx(half(graph) if form == "fp16" else quantise(graph, x), path, 17, {})
            check_runtime_graph(path)
        except (InputError, GateError) as error:
            refused[f"{form}: {str(error).replace(str(path), 'FILE')[:160]}"] += 1
            path.unlink(missing_ok=True)
            continue
        np.savez(path.with_suffix(".npz"), x=x)
        made += 1
    write_onnx(half(wide(rng)), folder / "fp16-wide.onnx", 17, {})
    np.savez(folder / "fp16-wide.npz", x=points(rng, (64,)))
    if wide_file is not None:
        shutil.copy(wide_file, folder / "fp16-wide16.onnx")
        np.savez(folder / "fp16-wide16.npz", x=np.concatenate([points(rng, from_onnx(wide_file).input_shape) for _ in range(17)])[:200])
    write_json(folder / "refused.json", dict(refused.most_common()))


def judge(folder: Path) -> dict[str, Any]:
    """Returns for each processor and contract how many outputs were compared and how many lie outside."""
    rows: dict[str, dict[str, Any]] = {}
    for facts in sorted(folder.glob("out-*.json")):
        machine = json.loads(facts.read_text())
        outputs = np.load(facts.with_suffix(".npz"))
        table: dict[str, dict[str, Any]] = {}
        for file in sorted(folder.glob("*.onnx")):
            graph = from_onnx(file)
            x = np.load(file.with_suffix(".npz"))["x"]
            made = [outputs[key] for key in outputs.files if key.startswith(f"{file.stem}.")]
            for contract in ("int8",) if is_quantised(graph) else FP16:
                row = table.setdefault(contract, {"files": 0, "outputs": 0, "outside": 0, "unbounded": 0, "nearest": 0.0, "not_about": 0})
                try:
                    require_kernels(CONTRACTS[contract], file.read_bytes(), file.name)
                except InputError:
                    row["not_about"] += 1
                    continue
                low, high = enclosure(graph, contract, x)
                row["files"] += 1
                for values in made:
                    found = values.reshape(low.shape).astype(np.float64)
                    outside = ~((found >= low) & (found <= high))
                    bounded = np.isfinite(low) & np.isfinite(high)
                    row["outputs"] += found.size
                    row["unbounded"] += int((~bounded).sum())
                    row["outside"] += int((outside & bounded).sum() + (np.isnan(found) & bounded).sum())
                    radius = np.where(bounded & (high > low), (high - low) / 2, np.inf)
                    row["nearest"] = max(
                        row["nearest"], float((np.abs(found - (low + high) / 2)[bounded] / radius[bounded]).max(initial=0))
                    )
        kept = (*kept_contracts(machine["machine"]), "int8")
        rows[facts.stem[4:]] = {
            **machine,
            "contracts": {name: {"offered": name in kept, **row, "nearest": round(row["nearest"], 4)} for name, row in table.items()},
        }
    return {"schema_version": 1, "refused": json.loads((folder / "refused.json").read_text()), "processors": rows}


def enclosure(graph: Graph, contract: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends between which the contract puts the outputs at each input."""
    rounding = Rounding(graph, CONTRACTS[contract])
    at = torch.from_numpy(x).double()
    with torch.no_grad():
        low, high = interval(graph, rounding.params, (at, at), rounding)[graph.output]
    return low.numpy(), high.numpy()


def main() -> int:
    """Runs the benchmark; exit 1 where an output lies outside of what is offered."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["write", "judge"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nets", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wide", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results-processors.json"))
    options = parser.parse_args()
    if options.what == "write":
        write(options.folder, options.nets, options.seed, options.wide)
        return 0
    result = judge(options.folder)
    write_json(options.out, result)
    print(json.dumps(result["processors"], indent=1))
    return int(any(row["outside"] for one in result["processors"].values() for row in one["contracts"].values() if row["offered"]))


if __name__ == "__main__":
    sys.exit(main())
