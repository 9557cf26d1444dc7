"""Counts what CROWN certifies of an int8 network with each choice of layers in float32: which layers' grids cost what.

Usage: python benchmarks/forms/layers.py ARTIFACT [--contract NAME] [--split NAME] [--samples N] [--data DIR] [--out FILE]

The model.fp32.onnx of a finished artifact is quantised here with plain scales, once for each set of layers that stay in
float32, all of them left out. Bounds are those of `vsparse verify`, rounding included, without a search. A row says how
many samples are certified, and how many of those that float32 certifies are lost. Data are written after each row.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.contract import CONTRACTS
from vsparse.data import Dataset, load
from vsparse.files import write_json
from vsparse.graph.cost import layer_table
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import load_recipe
from vsparse.stages.export import write_onnx
from vsparse.stages.export.exporters import CALIBRATION
from vsparse.stages.export.quantise import quantise
from vsparse.stages.verify.cascade import Cascade, Question
from vsparse.stages.verify.deployed import read_model

BATCH = 64


def margins(path: Path, contract: str, perturbation: PerturbationSet, samples: Dataset, count: int) -> NDArray[np.float64]:
    """Returns the margins that CROWN proves over refined bounds, of `count` samples that are evenly spaced."""
    model = read_model(path)
    cascade = Cascade(model, Question(perturbation, CONTRACTS[contract], ("crown",), 0, 1, 1, 0))
    index = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(np.int64))
    x, labels = samples.inputs(index).reshape(-1, *model.graph.input_shape), samples.labels[index]
    parts = [slice(start, start + BATCH) for start in range(0, len(labels), BATCH)]
    return np.concatenate([cascade.bound("crown", x[part], labels[part]) for part in parts])


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--contract", default="int8-tensorrt", choices=["int8", "int8-tensorrt"])
    parser.add_argument("--split", default="validation", choices=["validation", "test"])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    recipe = load_recipe(str(given.artifact / "recipe.toml"))
    splits = load(recipe.data, given.data, recipe.train.seed)
    path = given.artifact / "model" / "model.fp32.onnx"
    graph, judged, around = read_model(path).graph, getattr(splits, given.split), recipe.property.perturbation
    index = np.unique(np.linspace(0, len(splits.train) - 1, min(CALIBRATION, len(splits.train))).round().astype(np.int64))
    calibration = splits.train.inputs(index).reshape(len(index), *graph.input_shape)
    costs = {row.name: row.macs for row in layer_table(graph) if row.weights}
    base = margins(path, "fp32", around, judged, given.samples)
    what = {"recipe": recipe.name, "epsilon": str(recipe.property.epsilon), "contract": given.contract, "split": given.split}
    content: dict[str, Any] = {**what, "samples": len(base), "multiply_adds": costs, "fp32": int((base > 0).sum()), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.int8.onnx"
        for floats in (chosen for size in range(len(costs)) for chosen in combinations(costs, size)):
            write_onnx(quantise(graph, calibration, given.contract, floats=frozenset(floats)), file, 17, {})
            found = margins(file, given.contract, around, judged, given.samples)
            row = {"float_layers": floats, "certified": int((found > 0).sum()), "lost": int(((base > 0) & ~(found > 0)).sum())}
            content["rows"].append({**row, "margin_mean": round(float(found.mean()), 4)})
            sys.stderr.write(f"{content['rows'][-1]}\n")
            if given.out is not None:
                write_json(given.out, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
