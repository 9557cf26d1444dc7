"""Trains a recipe and certifies its exported file on the validation split, search and rounding included.

Usage: python benchmarks/builds/validation.py RECIPE --data DIR [--set section.key=value] [--samples 6000] --out FILE

What a sweep measures leaves out the search, and so ranks recipes wrongly that count on it (a small share of the interval loss). This is
how such recipes are compared before the test split is looked at. A result is added to FILE.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from vsparse.artifact.forms import SPARSE
from vsparse.contract import CONTRACTS
from vsparse.data import load
from vsparse.files import write_json
from vsparse.graph import from_onnx
from vsparse.graph.cost import macs, weight_count
from vsparse.recipe import Recipe, load_recipe
from vsparse.stages.compress.task import compress_trained
from vsparse.stages.export.task import export_models
from vsparse.stages.train.task import train_task
from vsparse.stages.verify import certify
from vsparse.stages.verify.task import spread

OPSET = 17


def measured(recipe: Recipe, data: Path, samples: int, work: Path) -> dict[str, Any]:
    """Trains, packs, exports and certifies `samples` validation images, spread evenly over the split."""
    folders = {name: work / name for name in ("scratch", "trained", "packed", "exported")}
    for folder in folders.values():
        folder.mkdir()
    started = time.process_time()
    task = {"recipe": recipe.model_dump(mode="json"), "data": str(data), "sparse": recipe.train.is_sparse}
    train_task(
        {**task, "scratch": str(folders["scratch"]), "output": str(folders["trained"])},
        lambda note: print(note["epoch"], file=sys.stderr) if "epoch" in note else None,
    )
    trained = time.process_time()
    splits = load(recipe.data, data, recipe.train.seed)
    compress_trained(folders["trained"], folders["packed"], recipe, splits)
    export_models(folders["packed"], None, folders["exported"], recipe, splits.train, {SPARSE: recipe.verify.contract})
    model = folders["exported"] / Path(SPARSE.model).name
    exported = time.process_time()
    claims = certify(model, spread(splits.validation, samples), recipe.property.perturbation, CONTRACTS["fp32"], recipe.verify).claims
    graph = from_onnx(model)
    return {
        "verdicts": dict(Counter(claim.verdict for claim in claims)),
        "methods": dict(Counter(claim.method for claim in claims if claim.verdict == "certified")),
        "weights": weight_count(graph, nonzero=True),
        "macs": macs(graph),
        "train_cpu_s": round(trained - started),
        "certify_cpu_s": round(time.process_time() - exported),
    }


def main() -> int:
    """Runs one training and adds its result to the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], help="section.key=value, as for vsparse build")
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Without a target, nothing else says which opset to write.
    recipe = load_recipe(options.recipe, [*options.set, f"export.opset={OPSET}"])
    with tempfile.TemporaryDirectory() as work:
        found = measured(recipe, options.data, options.samples, Path(work))
    rows = json.loads(options.out.read_text("utf-8"))["rows"] if options.out.exists() else []
    rows.append({"recipe": options.recipe, "settings": options.set, "seed": recipe.train.seed, **found})
    write_json(options.out, {"schema_version": 1, "samples": options.samples, "split": "validation", "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
