"""Counts what an int8 network certifies in each of the ways that it can be made, and what its float32 network certifies.

Usage: python benchmarks/forms/int8.py ARTIFACT… [--contract NAME…] [--float-layers NAMES…] [--ways WAY…] [--data DIR]
       [--samples N] [--epochs N] [--set KEY=VALUE…] [--out FILE]

The model.fp32.onnx of each finished artifact is quantised here, under each contract (`int8` is that of ONNX Runtime,
`int8-tensorrt` that of TensorRT) and with each choice of layers that stay in float32 (`none`, `last`, `first,last`, …):
with plain scales, with chosen ones, and trained on as it rounds, as `vsparse export` does. `kept` says whether the export
would keep what was trained. `crown_mean` is the mean of the margins that CROWN proves over refined bounds, of all
samples; `certified`, `falsified` and `unknown` are counted after the whole cascade, `by` says by which method. Data are
written after each row, so that a run that is stopped leaves what it has found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from vsparse.contract import CONTRACTS
from vsparse.data import Dataset, Splits, load
from vsparse.files import write_json
from vsparse.graph import Graph
from vsparse.pipeline.steps import resolved
from vsparse.recipe import AUTO, Recipe, load_recipe
from vsparse.stages.export import write_onnx
from vsparse.stages.export.exporters import CALIBRATION
from vsparse.stages.export.fit import Fitted, fitted
from vsparse.stages.export.quantise import layers_in_float, quantise
from vsparse.stages.export.tune import Tuning, better
from vsparse.stages.verify.cascade import Cascade, Question
from vsparse.stages.verify.deployed import read_model

BATCH = 64
WAYS = ("plain scales", "chosen scales", "trained on")


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
    methods: Counter[str] = Counter()
    margins, started = [], process_time()
    for start in range(0, len(labels), BATCH):
        part = slice(start, start + BATCH)
        margins.append(cascade.bound("crown", x[part], labels[part]))
        answers = cascade.judge(x[part], labels[part], list(range(len(labels)))[part])
        verdicts.update(answers.verdict)
        methods.update(how for how, verdict in zip(answers.method, answers.verdict, strict=True) if verdict == "certified")
        sys.stderr.write(f"\r{contract}: {start + len(x[part])} of {len(labels)} samples, {dict(verdicts)} ")
    sys.stderr.write("\n")
    counts = {verdict: verdicts[verdict] for verdict in ("certified", "falsified", "unknown")}
    return {
        **counts,
        "by": dict(sorted(methods.items())),
        "crown_mean": round(float(np.concatenate(margins).mean()), 4),
        "cpu_s": round(process_time() - started, 1),
    }


def forms(graph: Graph, splits: Splits, recipe: Recipe, contract: str, ways: list[str], floats: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Yields the quantised networks, each with its `way`, the processor seconds that it took, and what else is told of it."""
    index = np.unique(np.linspace(0, len(splits.train) - 1, min(CALIBRATION, len(splits.train))).round().astype(np.int64))
    samples = splits.train.inputs(index).reshape(len(index), *graph.input_shape)
    perturbation = recipe.property.perturbation

    def quantised(one: Graph, shares: Mapping[str, float]) -> Graph:
        return quantise(one, samples, contract, shares=shares, floats=floats)

    started = process_time()

    def seconds() -> float:
        return round(process_time() - started, 1)

    if WAYS[0] in ways:
        yield {"way": WAYS[0], "graph": quantised(graph, {}), "quantise_cpu_s": seconds()}
    if not {*WAYS[1:]} & {*ways}:
        return
    started = process_time()
    chosen = fitted(graph, samples, perturbation, quantised)
    if WAYS[1] in ways:
        yield {"way": WAYS[1], "graph": chosen.quantised, "quantise_cpu_s": seconds(), "shares": chosen.shares}
    if WAYS[2] in ways:
        started = process_time()
        tuning = Tuning(recipe, splits.validation, lambda done, total: print(f"epoch {done} of {total}", file=sys.stderr))
        again: Fitted = fitted(tuning.trained(chosen, splits.train, contract, floats), samples, perturbation, quantised)
        kept = better(graph, [chosen, again], splits.validation, perturbation) is again
        yield {"way": WAYS[2], "graph": again.quantised, "quantise_cpu_s": seconds(), "epochs": tuning.epochs, "kept": kept}


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--contract", nargs="+", default=["int8"], choices=["int8", "int8-tensorrt"])
    parser.add_argument("--float-layers", nargs="+", default=["none"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--epochs", type=int, default=-1, help="export.int8_epochs")
    parser.add_argument("--set", dest="settings", nargs="+", default=[], help="of the recipe, such as verify.branch_domains=64")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--samples", type=int, help="the first so many; default: all of the test split")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if any(AUTO in names.split(",") for names in given.float_layers):
        parser.error(f"--float-layers {AUTO}: only a build finds layers; name them here")
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        sys.stderr.write(f"{row}\n")
        if given.out is not None:
            write_json(given.out, {"rows": rows})

    for artifact in given.artifacts:
        settings = ['export.precisions=["int8"]', f"export.int8_epochs={given.epochs}", *given.settings]
        recipe = load_recipe(str(artifact / "recipe.toml"), settings)
        seed = recipe.train.seed
        splits = load(recipe.data, given.data, seed)
        recipe = resolved(recipe, len(splits.train))
        samples = given.samples or len(splits.test)
        path = artifact / "model" / "model.fp32.onnx"
        graph = read_model(path).graph
        what = {"recipe": recipe.name, "epsilon": str(recipe.property.epsilon), "seed": seed, "samples": samples}
        add({**what, "form": "fp32", **judged(path, "fp32", recipe, splits.test, samples)})
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.int8.onnx"
            for contract in given.contract:
                for names in given.float_layers:
                    layers = [] if names == "none" else names.split(",")
                    for made in forms(graph, splits, recipe, contract, given.ways, layers_in_float(graph, layers)):
                        write_onnx(made.pop("graph"), file, 17, {})
                        form = {"form": f"int8, {made['way']}", "contract": contract, "float_layers": layers}
                        add({**what, **form, **judged(file, contract, recipe, splits.test, samples), **made})
    return 0


if __name__ == "__main__":
    sys.exit(main())
