"""Latency of model.c against its peers: one thread, batch 1, alternating in one run.

Usage: run.py [RESULTS.json] [--rounds N] [--only TEXT] [--peers FOLDER]

Times are those of the processor (of all threads of this process), so that other work on the machine takes less part in them. In each round
every variant and peer is timed in turn; a ratio is the median over the rounds of time / time of ONNX Runtime in the same round.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from peers import peers, versions

from vsparse.graph import Graph, fold_batch_norm, from_onnx, from_torch, macs, to_onnx
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.stages.export.c_source import CompiledModel, compiler_version, emit_c

COMMON = ("-std=c99", "-march=native")
VARIANTS = {
    "c_O3": ("-O3", *COMMON, "-ffp-contract=off"),
    "c_O3_fused": ("-O3", *COMMON, "-ffp-contract=fast"),
    "c_O2": ("-O2", *COMMON, "-ffp-contract=off"),
    "c_O2_fused": ("-O2", *COMMON, "-ffp-contract=fast"),
    "c_O3_portable": ("-O3", "-std=c99", "-ffp-contract=off"),
}
# Name, architecture, width, input, share of weights kept, and whether single ones or blocks of four outputs are.
NETS = [
    ("digits cnn4, packed to a fifth", "cnn4", 0.4, (1, 8, 8), 1.0, 1),
    ("digits cnn4, dense", "cnn4", 1.0, (1, 8, 8), 1.0, 1),
    ("digits cnn4, a fifth, elements", "cnn4", 1.0, (1, 8, 8), 0.2, 1),
    ("mnist cnn4, packed to a fifth", "cnn4", 0.4, (1, 28, 28), 1.0, 1),
    ("mnist lenet-300-100, dense", "lenet-300-100", 1.0, (1, 28, 28), 1.0, 1),
    ("mnist lenet-300-100, a tenth, elements", "lenet-300-100", 1.0, (1, 28, 28), 0.1, 1),
    ("mnist cnn4, dense", "cnn4", 1.0, (1, 28, 28), 1.0, 1),
    ("mnist cnn4, a tenth, elements", "cnn4", 1.0, (1, 28, 28), 0.1, 1),
    ("mnist cnn5, width 1/4", "cnn5", 0.25, (1, 28, 28), 1.0, 1),
    ("cifar cnn4, dense", "cnn4", 1.0, (3, 32, 32), 1.0, 1),
    ("mnist cnn7, width 1/4", "cnn7", 0.25, (1, 28, 28), 1.0, 1),
    ("mnist cnn7, width 1/4, a tenth, elements", "cnn7", 0.25, (1, 28, 28), 0.1, 1),
    ("mnist cnn7, width 0.4", "cnn7", 0.4, (1, 28, 28), 1.0, 1),
    ("mnist cnn7, width 0.4, a quarter, blocks of 4", "cnn7", 0.4, (1, 28, 28), 0.25, 4),
    ("mnist cnn7, width 0.4, a tenth, elements", "cnn7", 0.4, (1, 28, 28), 0.1, 1),
]
SECONDS = 0.02


def network(architecture: str, width: float, shape: tuple[int, int, int], kept: float, block: int = 1) -> tuple[Graph, torch.nn.Module]:
    """Returns a network with random weights, pruned, and the module before: latency depends on which weights are zero alone."""
    torch.manual_seed(0)
    net = make(Network(architecture=architecture, width=width), shape, 10).eval()
    graph = from_onnx(to_onnx(fold_batch_norm(from_torch(net, shape))).SerializeToString())
    rng = np.random.default_rng(0)

    def prune(value: np.ndarray) -> np.ndarray:
        if value.ndim == 1:
            return value
        mask = rng.random((-(-len(value) // block), *value.shape[1:])) < kept
        return np.where(mask.repeat(block, 0)[: len(value)], value, 0).astype(np.float32)

    return replace(graph, params={name: prune(value) for name, value in graph.params.items()}), net


def timed(call: Callable[[], object], repeats: int) -> float:
    """Returns microseconds a call of this process's processor time, over `repeats` of them."""
    started = time.process_time_ns()
    for _ in range(repeats):
        call()
    return (time.process_time_ns() - started) / repeats / 1e3


def measure(graph: Graph, net: torch.nn.Module, rounds: int) -> dict[str, object]:
    """Returns medians over rounds in which every variant is timed in turn, and the ratios to ONNX Runtime of each round's times."""
    x = np.random.default_rng(1).random((1, *graph.input_shape), dtype=np.float32)
    calls: dict[str, Callable[[], object]] = dict(peers(graph, net, x))
    reference = np.asarray(calls["onnxruntime"]()).reshape(-1)
    for key in ("torch", "torch_sparse", "litert_xnnpack"):  # ExecuTorch has the module before it was pruned
        if key in calls:
            assert np.allclose(np.asarray(calls[key]()).reshape(-1), reference, atol=1e-4), key
    out = np.zeros(reference.shape, np.float32)
    source = emit_c(graph, "", "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        source.write(Path(folder))
        compiled = {key: CompiledModel(Path(folder) / "model.c", graph.input_shape, len(reference), how) for key, how in VARIANTS.items()}
    pointer = ctypes.POINTER(ctypes.c_float)
    given, taken = x.ctypes.data_as(pointer), out.ctypes.data_as(pointer)
    for key, model in compiled.items():
        function = model.function
        function(given, taken)
        assert np.allclose(out, reference, atol=1e-4), key
        calls[key] = lambda function=function: function(given, taken)
    repeats = {key: max(3, int(SECONDS * 1e6 / timed(call, 20))) for key, call in calls.items()}
    times: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            times[key].append(timed(call, repeats[key]))
    for model in compiled.values():
        model.close()
    base = times["onnxruntime"]
    weights = [v for v in graph.params.values() if v.ndim > 1]
    return {
        "macs": macs(graph),
        "nonzero_share": sum(int(np.count_nonzero(v)) for v in weights) / sum(v.size for v in weights),
        "constant_bytes": source.vector.constant_bytes,
        "static_bytes": source.vector.arena_bytes,
        "microseconds": {key: round(statistics.median(values), 2) for key, values in times.items()},
        "ratio_to_onnxruntime": {
            key: round(statistics.median(mine / theirs for mine, theirs in zip(values, base, strict=True)), 3)
            for key, values in times.items()
            if key != "onnxruntime"
        },
    }


def main() -> None:
    """Runs the networks and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--only", default="")
    parser.add_argument("--peers", default="", help="a folder of further packages (site-packages), taken after those of this Python")
    given = parser.parse_args()
    sys.path += [given.peers] if given.peers else []
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "unknown"
    )
    nets: dict[str, object] = {}
    results = {
        "schema_version": 2,
        "machine": platform.machine(),
        "processor": cpu,
        "compiler": compiler_version(),
        "peers": versions(),
        "threads": 1,
        "rounds": given.rounds,
        "variants": {key: " ".join(how) for key, how in VARIANTS.items()},
        "nets": nets,
    }
    for title, architecture, width, shape, kept, block in NETS:
        if given.only not in title:
            continue
        found = nets[title] = measure(*network(architecture, width, shape, kept, block), given.rounds)
        print(f"{title}: {found['microseconds']} us, ratios {found['ratio_to_onnxruntime']}", flush=True)
        if given.results:
            given.results.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
