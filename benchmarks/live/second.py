"""Both tiers of live verdicts against the host's CROWN-IBP: `second.py RECIPE MODEL.onnx [--data DIR] [--frames N] [--out RESULTS.json]`.

MODEL is a float32 file of a build of that recipe. Every margin that the device tells must be at most the host's in float64 under
`sequential` (intervals with folded last layers, or one backward pass over them, the larger for each margin); what the host certifies
and the device does not is counted. With --time, the cost of open margins is told in inferences.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
from fractions import Fraction
from functools import partial
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from vsparse.bounds import Rounding, ball, crown, interval, last_layer_folding, margin_rows
from vsparse.contract import CONTRACTS
from vsparse.data import load
from vsparse.files import write_bytes
from vsparse.graph import Graph, from_onnx
from vsparse.recipe import load_recipe
from vsparse.stages.export.c_live import CompiledLive, emit_live_c
from vsparse.stages.export.c_source import CompiledModel, emit_c
from vsparse.stages.export.c_source.text import CFiles

AT_ONCE = 250  # frames in memory
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0)
OPTIONS = {"sse2": ("-O3", "-std=c99", "-ffp-contract=off"), "native": ("-O3", "-march=native", "-std=c99", "-ffp-contract=off")}
BATCH = 50
ROUNDS, REPEATS = 60, 200


def host(graph: Graph, x: np.ndarray, epsilon: np.float32, labels: np.ndarray) -> np.ndarray:
    """Returns the host's lower bounds [n, classes − 1] of the margins of `labels`."""
    rounding, found = Rounding(graph, CONTRACTS["sequential"]), []
    classes = prod(graph.shape_of(graph.output))
    for i in range(0, len(x), BATCH):
        box = ball(torch.tensor(x[i : i + BATCH]), Fraction(float(epsilon)))
        boxes = interval(graph, rounding.params, box, rounding)
        rows = margin_rows(torch.tensor(labels[i : i + BATCH]), classes)
        folded = last_layer_folding(graph, rounding.params, rows, boxes, rounding)
        found.append(torch.maximum(folded, crown(graph, rounding.params, box, rows, boxes, rounding)).numpy())
    return np.concatenate(found)


def compiled(source: CFiles, graph: Graph, folder: Path, options: tuple[str, ...]) -> CompiledModel:
    """Returns the C of a network, compiled."""
    source.write(folder)
    return CompiledModel(folder / "model.c", graph.input_shape, prod(graph.shape_of(graph.output)), options)


def seconds(call: Any) -> float:
    """Returns the least time of a call of several."""
    taken = []
    for _ in range(ROUNDS):
        begin = perf_counter()
        call()
        taken.append(perf_counter() - begin)
    return min(taken)


REPEAT = """
#include "model.h"
float repeat_logits(const float *x, int n) { float y[VSPARSE_CLASSES]; for (int i = 0; i < n; i++) vsparse_logits(x, y); return y[0]; }
float repeat_budget(const float *x, float epsilon, int budget, int n)
{ struct vsparse_verdict v; for (int i = 0; i < n; i++) vsparse_certify_budget(x, epsilon, budget, &v); return v.margin; }
float repeat_pass(const float *x, float epsilon, int whole, int n)
{ float sum = 0; for (int i = 0; i < n; i++)
    sum += vs_backward(vs_arena, vs_arena + VS_KEPT_AT, i % VSPARSE_CLASSES, (i + 1) % VSPARSE_CLASSES, whole);
  (void)x; (void)epsilon; return sum; }
"""


def costs(graph: Graph, x: np.ndarray, epsilon: float) -> dict[str, dict[str, float]]:
    """Returns, for each set of options, microseconds of an inference, of verdicts with a budget of 0 and 1, and of a pass."""
    found = {}
    for name, options in OPTIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            source = emit_live_c(graph, second=True)
            source.write(Path(folder))
            path = Path(folder) / "model.c"
            path.write_text(path.read_text() + REPEAT)
            with CompiledModel(path, graph.input_shape, prod(graph.shape_of(graph.output)), options) as model:
                pointer = x[0].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
                eps, library = ctypes.c_float(epsilon), model.library
                calls = {
                    "inference": partial(library.repeat_logits, pointer, REPEATS),
                    "certify": partial(library.repeat_budget, pointer, eps, 0, REPEATS),
                    "one open": partial(library.repeat_budget, pointer, eps, 1, REPEATS),
                    "last layer": partial(library.repeat_pass, pointer, eps, 0, REPEATS),
                    "pass": partial(library.repeat_pass, pointer, eps, 1, REPEATS),
                }
                found[name] = {key: 1e6 * seconds(call) / REPEATS for key, call in calls.items()}
    return found


def main() -> None:
    """Compiles the C, asks both about every frame, and writes the counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--frames", type=int, default=0)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    recipe, graph = load_recipe(chosen.recipe), from_onnx(chosen.model)
    test = load(recipe.data, chosen.data, 0).test
    step = max(1, len(test) // chosen.frames) if chosen.frames else 1
    x = np.ascontiguousarray(test.inputs(slice(None, None, step)), np.float32).reshape(-1, *graph.input_shape)
    budget = prod(graph.shape_of(graph.output)) - 1
    plain, first, both = emit_c(graph).scalar, emit_live_c(graph).scalar, emit_live_c(graph, second=True).scalar
    content: dict[str, Any] = {"schema_version": 1, "recipe": chosen.recipe, "budget": budget}
    content["bytes"] = {
        name: [one.constant_bytes, one.arena_bytes] for name, one in (("inference", plain), ("first", first), ("both", both))
    }
    rows: list[dict[str, Any]] = []
    if chosen.time:
        content["microseconds"] = costs(graph, x, float(Fraction(str(recipe.property.epsilon))))
        print(content, flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        compiled(emit_live_c(graph, second=True), graph, Path(folder), OPTIONS["native"]) as model,
    ):
        live = CompiledLive(model)
        for factor in FACTORS:
            epsilon = np.float32(float(Fraction(str(recipe.property.epsilon))) * factor)
            counts = dict.fromkeys(("intervals", "both", "host", "both_not_host", "margin_above_host"), 0)
            for start in range(0, len(x), AT_ONCE):
                some = x[start : start + AT_ONCE]
                verdict, alone = live.certify(some, float(epsilon), budget), live.certify(some, float(epsilon))
                margin = host(graph, some, epsilon, np.maximum(verdict.label, 0)).min(axis=1)
                sure = margin > 0
                counts["intervals"] += int(alone.certified.sum())
                counts["both"] += int(verdict.certified.sum())
                counts["host"] += int(sure.sum())
                counts["both_not_host"] += int((verdict.certified & ~sure).sum())
                counts["margin_above_host"] += int((verdict.margin > margin).sum())
            rows.append({"factor": factor, "frames": len(x), **counts})
            print(rows[-1], flush=True)
    content["rows"] = rows
    if chosen.out is not None:
        write_bytes(chosen.out, (json.dumps(content, indent=1) + "\n").encode())
    if any(row["both_not_host"] or row["margin_above_host"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
