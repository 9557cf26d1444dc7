"""Live verdicts against the host's float64 intervals: `tightness.py RECIPE MODEL.onnx [--data DIR] [--frames N] [--out RESULTS.json]`.

MODEL is a float32 or a quantised file of a build of that recipe. Every live `certified` must be one of the host's interval bounds with the
last layer folded, under `sequential` or `int8`; what the host certifies and the device does not is counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsparse.bounds import Rounding, ball, interval, last_layer_folding, margin_rows
from vsparse.contract import CONTRACTS
from vsparse.data import load
from vsparse.files import write_bytes
from vsparse.graph import Graph, from_onnx
from vsparse.recipe import load_recipe
from vsparse.stages.export.c_live import CompiledLive, emit_live_c, emit_live_int8_c
from vsparse.stages.export.c_source import CompiledModel

FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0)
OPTIONS = ("-O3", "-march=native", "-std=c99", "-ffp-contract=off")
BATCH = 64


def host(graph: Graph, x: np.ndarray, epsilon: np.float32, labels: np.ndarray, contract: str) -> np.ndarray:
    """Returns the host's lower bounds [n] of the margins of `labels` under a contract."""
    rounding, found = Rounding(graph, CONTRACTS[contract]), []
    classes = prod(graph.shape_of(graph.output))
    for i in range(0, len(x), BATCH):
        box = ball(torch.tensor(x[i : i + BATCH]), Fraction(float(epsilon)))
        boxes = interval(graph, rounding.params, box, rounding)
        rows = margin_rows(torch.tensor(labels[i : i + BATCH]), classes)
        found.append(last_layer_folding(graph, rounding.params, rows, boxes, rounding).min(dim=1).values.numpy())
    return np.concatenate(found)


def main() -> None:
    """Compiles the C, asks both about every frame, and writes the counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--frames", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    recipe, graph = load_recipe(chosen.recipe), from_onnx(chosen.model)
    test = load(recipe.data, chosen.data, 0).test
    step = max(1, len(test) // chosen.frames) if chosen.frames else 1
    x = test.inputs(slice(None, None, step))
    quantised = bool(graph.integers)
    name, prefix = ("model.int8.c", "vsparse_int8") if quantised else ("model.c", "vsparse")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        (emit_live_int8_c if quantised else emit_live_c)(graph).write(Path(folder))
        with CompiledModel(Path(folder) / name, graph.input_shape, prod(graph.shape_of(graph.output)), OPTIONS, prefix) as model:
            live = CompiledLive(model, prefix)
            for factor in FACTORS:
                epsilon = np.float32(float(Fraction(str(recipe.property.epsilon))) * factor)
                verdict = live.certify(x, float(epsilon))
                margin = host(graph, x, epsilon, verdict.label, "int8" if quantised else "sequential")
                rows.append(
                    {
                        "factor": factor,
                        "frames": len(x),
                        "live": int(verdict.certified.sum()),
                        "host": int((margin > 0).sum()),
                        "live_not_host": int((verdict.certified & ~(margin > 0)).sum()),
                        "margin_above_host": int((verdict.margin > margin).sum()),
                    }
                )
                print(rows[-1], flush=True)
    if chosen.out is not None:
        content = {"schema_version": 1, "recipe": chosen.recipe, "precision": "int8" if quantised else "fp32", "rows": rows}
        write_bytes(chosen.out, (json.dumps(content, indent=1) + "\n").encode())
    if any(row["live_not_host"] or row["margin_above_host"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
