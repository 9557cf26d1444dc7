"""Writes the results of a row from what a `vsparse build` of its recipe left in the cache, in place of training it once more.

    python benchmarks/training/from_cache.py cifar element-90 --cache DIR --data DIR --samples N [--cpu SECONDS]
    python benchmarks/training/from_cache.py mnist cnn5 --artifact DIR --data DIR --samples N [--claims DIR]

The build may have been stopped once its samples were certified. The cache must be of this build alone (VSPARSE_CACHE). The row with
sparsity 0 is the dense parent. Claims are taken up as a resumed build does, which compares them with model, samples and settings.
Processor seconds of training are not kept: --cpu says them, or they are the clock's. With --artifact it is what `vsparse train` wrote,
whose samples are certified here; finished batches of these are kept in --claims.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path

from measures import certified, clean
from rows import DECLARED
from run import curve, nonzero_macs, ready_epochs, result_file

from vsparse.artifact.forms import DENSE, SPARSE
from vsparse.data import load
from vsparse.files import write_json
from vsparse.graph import from_onnx
from vsparse.graph.cost import layer_table, macs, parameter_bytes, weight_count
from vsparse.recipe import load_recipe


def only(folder: Path, pattern: str) -> Path:
    """Returns the one path below a folder that a pattern matches; ends the program where there is another number of them."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder} has {len(found)} of {pattern}; give the cache of one build alone")
    return found[0]


def taken_up(cache: Path, variant: str, state: Path) -> Path:
    """Returns a copy of the claims that a build left in its cache."""
    kept = [path for path in cache.glob(f"work/verify-{variant}-*/claims-{variant}") if any(path.glob("batch-*.npz"))]
    if len(kept) != 1:
        raise SystemExit(f"{cache} holds claims of {len(kept)} builds; give that of one build alone")
    shutil.copytree(kept[0], state)
    return state


def main() -> None:
    """Reads the cache and writes the file that tables.py reads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("row")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--cache", type=Path)
    given.add_argument("--artifact", type=Path)
    parser.add_argument("--claims", type=Path, default=None, help="with --artifact: where finished batches are kept")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, required=True, help="property.samples of the build")
    parser.add_argument("--cpu", type=float, default=None, help="processor seconds of the training")
    asked = parser.parse_args()
    row = next(row for row in DECLARED[asked.table] if row.name == asked.row)
    variant, form = ("sparse", SPARSE) if row.sparsity else ("dense", DENSE)
    # Both networks are of the recipe as the sparse row has it.
    settings = [one for one in row.settings if not one.startswith("train.sparsity")]
    recipe = load_recipe(row.recipe, [*settings, f"property.samples={asked.samples}"])
    if asked.artifact is not None:
        model, history = asked.artifact / "train" / "trained.onnx", json.loads((asked.artifact / "train" / "history.json").read_text())
        epochs = history["sparse"]
    else:
        model = only(asked.cache, f"stages/export-*/{Path(form.model).name}")
        history = json.loads(only(asked.cache, f"stages/train-{variant}-*/history.json").read_text())
        epochs = history[variant] if isinstance(history, dict) else history
    graph, splits = from_onnx(model), load(recipe.data, asked.data, recipe.train.seed)
    with tempfile.TemporaryDirectory() as folder:
        state = asked.claims or Path(folder, "claims")
        if asked.artifact is not None:
            found = certified(model, recipe, splits.test, asked.samples, state)
        else:
            found = certified(model, recipe, splits.test, asked.samples, taken_up(asked.cache, variant, state), form.model)
    wall = sum(epoch["seconds"] for epoch in epochs)
    ready = [epoch for epoch in epochs if epoch["epsilon"] > 0]
    result = {
        "row": row.name,
        "recipe": row.recipe,
        "settings": list(row.settings),
        "seed": recipe.train.seed,
        "metric": row.metric,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread for each network, beside other programs",
        "epsilon": recipe.property.epsilon,
        "train_epsilon": recipe.train.epsilon,
        "clean": clean(graph, splits.test),
        **found,
        "validation": max(epoch["certified"] for epoch in ready[-max(1, len(ready) // 2) :]),
        "measure": epochs[-1]["measure"],
        "epochs": len(epochs),
        "batch_size": recipe.train.batch_size,
        "train_wall_s": round(wall, 1),
        "train_cpu_s": round(asked.cpu or wall, 1),
        "weights": weight_count(graph, nonzero=True),
        "weights_stored": weight_count(graph),
        "macs": macs(graph),
        "macs_nonzero": nonzero_macs(graph),
        "bytes": parameter_bytes(graph),
        "layers": [f"{cost.name}: {cost.weights} weights, {cost.macs} macs" for cost in layer_table(graph)],
        "curve": curve(epochs, {}, ready_epochs(recipe, splits)),
    }
    file = result_file(asked.table, row.name, recipe.train.seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result)
    print(f"{file}: clean {result['clean']:.4f}, certified {result['certified']:.4f} of {result['samples']}")


if __name__ == "__main__":
    main()
