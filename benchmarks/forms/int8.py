"""Counts what an int8 network certifies with plain scales, with those that are chosen, and what its float32 network certifies.

Usage: python benchmarks/forms/int8.py ARTIFACT… [--data DIR] [--samples N] [--out FILE]

The model.fp32.onnx of each finished artifact is quantised here. `crown_mean` is the mean of the margins that CROWN
proves over refined bounds, of all samples; `certified`, `falsified` and `unknown` are counted after the whole cascade.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from vsparse.contract import CONTRACTS
from vsparse.data import Dataset, load
from vsparse.files import write_json
from vsparse.graph import Graph
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Recipe, load_recipe
from vsparse.stages.export import write_onnx
from vsparse.stages.export.exporters import CALIBRATION
from vsparse.stages.export.fit import fitted
from vsparse.stages.export.quantise import quantise
from vsparse.stages.verify.cascade import Cascade, Question
from vsparse.stages.verify.deployed import read_model

BATCH = 64


def judged(path: Path, contract: str, recipe: Recipe, test: Dataset, samples: int) -> dict[str, Any]:
    """Returns what is certified of a file, over the first samples."""
    settings, model = recipe.verify, read_model(path)
    question = Question(
        recipe.property.perturbation,
        CONTRACTS[contract],
        tuple(settings.methods),
        settings.branch_domains,
        settings.attack_steps,
        settings.attack_restarts,
        recipe.train.seed,
    )
    cascade = Cascade(model, question)
    x, labels = test.inputs(slice(0, samples)).reshape(-1, *model.graph.input_shape), test.labels[:samples]
    verdicts: Counter[str] = Counter()
    margins, started = [], process_time()
    for start in range(0, len(labels), BATCH):
        part = slice(start, start + BATCH)
        margins.append(cascade.bound("crown", x[part], labels[part]))
        verdicts.update(cascade.judge(x[part], labels[part], list(range(len(labels)))[part]).verdict)
    counts = {verdict: verdicts[verdict] for verdict in ("certified", "falsified", "unknown")}
    return {**counts, "crown_mean": round(float(np.concatenate(margins).mean()), 4), "cpu_s": round(process_time() - started, 1)}


def forms(graph: Graph, calibration: Any, perturbation: PerturbationSet) -> dict[str, tuple[Graph, float]]:
    """Returns the quantised networks by name, each with the processor seconds that it took."""

    def quantised(one: Graph, shares: Any) -> Graph:
        return quantise(one, calibration, shares=shares)

    found = {}
    for name, make in (
        ("int8, plain scales", lambda: quantised(graph, {})),
        ("int8, chosen scales", lambda: fitted(graph, calibration, perturbation, quantised)),
    ):
        started = process_time()
        found[name] = (make(), round(process_time() - started, 1))
    return found


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for artifact in given.artifacts:
        recipe = load_recipe(str(artifact / "recipe.toml"))
        seed = recipe.train.seed
        splits = load(recipe.data, given.data, seed)
        samples = given.samples or len(splits.test)
        path = artifact / "model" / "model.fp32.onnx"
        graph = read_model(path).graph
        index = np.unique(np.linspace(0, len(splits.train) - 1, min(CALIBRATION, len(splits.train))).round().astype(np.int64))
        calibration = splits.train.inputs(index).reshape(len(index), *graph.input_shape)
        what = {"recipe": recipe.name, "epsilon": str(recipe.property.epsilon), "seed": seed, "samples": samples}
        rows.append({**what, "form": "fp32", **judged(path, "fp32", recipe, splits.test, samples)})
        with tempfile.TemporaryDirectory() as folder:
            for name, (made, seconds) in forms(graph, calibration, recipe.property.perturbation).items():
                file = Path(folder) / "model.int8.onnx"
                write_onnx(made, file, 17, {})
                found = judged(file, "int8", recipe, splits.test, samples)
                rows.append({**what, "form": name, **found, "quantise_cpu_s": seconds})
        for row in rows[-3:]:
            sys.stderr.write(f"{row}\n")
    if given.out is not None:
        write_json(given.out, {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
