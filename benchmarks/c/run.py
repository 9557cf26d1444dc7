"""Latency of model.c against ONNX Runtime: one thread, batch 1, alternating in one run; `run.py [RESULTS.json]`."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime
import torch

from vsparse.graph import Graph, Relu, fold_batch_norm, from_onnx, from_torch, macs, to_onnx
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.stages.export.c_source import CompiledModel, compiler_version, emit_c
from vsparse.stages.export.c_source.compile import OPTIONS

VARIANTS = {
    "c_portable": OPTIONS,
    "c_native": (*OPTIONS, "-march=native"),
    "c_native_fma": ("-O3", "-std=c99", "-ffp-contract=fast", "-march=native"),
}
# Name, architecture, width, input, share of weights kept at random (1: all).
NETS = [
    ("digits cnn4, packed to a fifth", "cnn4", 0.4, (1, 8, 8), 1.0),
    ("digits cnn4, dense", "cnn4", 1.0, (1, 8, 8), 1.0),
    ("digits cnn4, a fifth of the weights, unstructured", "cnn4", 1.0, (1, 8, 8), 0.2),
    ("mnist cnn4, packed to a fifth", "cnn4", 0.4, (1, 28, 28), 1.0),
    ("mnist cnn4, dense", "cnn4", 1.0, (1, 28, 28), 1.0),
    ("mnist cnn4, a tenth of the weights, unstructured", "cnn4", 1.0, (1, 28, 28), 0.1),
    ("mnist cnn5, width 1/4", "cnn5", 0.25, (1, 28, 28), 1.0),
    ("mnist cnn7, width 1/4", "cnn7", 0.25, (1, 28, 28), 1.0),
    ("mnist cnn7, width 1/4, a tenth, unstructured", "cnn7", 0.25, (1, 28, 28), 0.1),
]
ROUNDS, SECONDS = 9, 0.25


def network(architecture: str, width: float, shape: tuple[int, int, int], kept: float) -> Graph:
    """Returns a network with random weights: latency does not depend on what they are, but on which are zero."""
    torch.manual_seed(0)
    net = make(Network(architecture=architecture, width=width), shape, 10).eval()
    graph = from_onnx(to_onnx(fold_batch_norm(from_torch(net, shape))).SerializeToString())
    rng = np.random.default_rng(0)
    pruned = {name: np.where((rng.random(v.shape) < kept) | (v.ndim == 1), v, 0).astype(np.float32) for name, v in graph.params.items()}
    return replace(graph, params=pruned)


def timed(call: object, repeats: int) -> float:
    """Returns microseconds a call, over `repeats` of them."""
    assert callable(call)
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats * 1e6


def measure(graph: Graph) -> dict[str, object]:
    """Returns medians over rounds in which every variant is timed in turn, and the ratios to ONNX Runtime of each round's times."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).random((1, *graph.input_shape), dtype=np.float32)
    name = session.get_inputs()[0].name
    feed = {name: x}
    reference = session.run(None, feed)[0][0]
    calls = {"onnxruntime": lambda: session.run(None, feed)}
    out = np.zeros(reference.shape, np.float32)
    source = emit_c(graph, "", "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        source.write(Path(folder))
        compiled = {key: CompiledModel(Path(folder) / "model.c", graph.input_shape, len(reference), how) for key, how in VARIANTS.items()}
    pointer = ctypes.POINTER(ctypes.c_float)
    given, taken = x.ctypes.data_as(pointer), out.ctypes.data_as(pointer)
    for key, model in compiled.items():
        function = model._function
        function(given, taken)
        assert np.allclose(out, reference, atol=1e-4), key
        calls[key] = lambda function=function: function(given, taken)
    repeats = {key: max(3, int(SECONDS / ROUNDS * 1e6 / timed(call, 20))) for key, call in calls.items()}
    times: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(ROUNDS):
        for key, call in calls.items():
            times[key].append(timed(call, repeats[key]))
    for model in compiled.values():
        model.close()
    ratios = {
        key: statistics.median(mine / theirs for mine, theirs in zip(times[key], times["onnxruntime"], strict=True)) for key in VARIANTS
    }
    weights = [v for v in graph.params.values() if v.ndim > 1]
    return {
        "macs": macs(graph),
        "nonzero_share": sum(int(np.count_nonzero(v)) for v in weights) / sum(v.size for v in weights),
        "constant_bytes": source.vector.constant_bytes,
        "static_bytes": source.vector.arena_bytes,
        "microseconds": {key: round(statistics.median(values), 2) for key, values in times.items()},
        "ratio_to_onnxruntime": {key: round(value, 3) for key, value in ratios.items()},
    }


def main() -> None:
    """Runs all networks and writes the results."""
    results: dict[str, object] = {
        "schema_version": 1,
        "machine": platform.machine(),
        "compiler": compiler_version(),
        "onnxruntime": onnxruntime.__version__,
        "threads": 1,
        "nets": {},
    }
    nets = results["nets"]
    assert isinstance(nets, dict)
    for title, architecture, width, shape, kept in NETS:
        graph = network(architecture, width, shape, kept)
        nets[title] = measure(graph)
        relus = sum(isinstance(node, Relu) for node in graph.nodes)
        print(f"{title} ({relus} ReLUs): {nets[title]['microseconds']} us, ratios {nets[title]['ratio_to_onnxruntime']}", flush=True)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
