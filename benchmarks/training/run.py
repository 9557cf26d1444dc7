"""Trains, compresses, exports and certifies the rows of the training tables, as many as fit in the given time; finished rows are kept.

Usage: python benchmarks/training/run.py [TABLE …] [--rows PATTERN] [--data DIR] [--work DIR] [--jobs 2] [--minutes 30]

Every row and seed is a one-thread process of its own. What it found lies in results/TABLE/ROW-seedN.json; an interrupted row
goes on from its last epoch. `python benchmarks/training/tables.py` writes the tables of the README from these files.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rows import TABLES, Row

HERE = Path(__file__).resolve().parent


def measure(row: Row, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """Trains one row and certifies the file that is exported from it, on all test samples (or on as many as the row says)."""
    import numpy as np

    from vsparse.artifact import MODEL
    from vsparse.contract import CONTRACTS
    from vsparse.data import load
    from vsparse.graph import from_onnx, run
    from vsparse.graph.cost import layer_table, macs, parameter_bytes, weight_count
    from vsparse.recipe import load_recipe
    from vsparse.stages.compress.task import compress_trained
    from vsparse.stages.export.task import export_models
    from vsparse.stages.train.task import train_task
    from vsparse.stages.verify import certify

    recipe = load_recipe(row.recipe, [*row.settings, f"train.seed={seed}", "export.opset=17"])
    splits = load(recipe.data, data, recipe.train.seed)
    folders = {name: work / name for name in ("scratch", "trained", "packed", "exported")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    payload = {"recipe": recipe.model_dump(mode="json"), "data": str(data), "sparse": recipe.train.is_sparse}
    resumed = any(folders["scratch"].iterdir())
    train_task({**payload, "scratch": str(folders["scratch"]), "output": str(folders["trained"])}, lambda news: None)
    cpu = time.process_time() - began
    history = json.loads((folders["trained"] / "history.json").read_text())
    epochs = history["sparse" if recipe.train.is_sparse else "dense"]
    compress_trained(folders["trained"], folders["packed"], recipe, splits)
    export_models(folders["packed"], None, folders["exported"], recipe, splits.train, False)
    model = folders["exported"] / Path(MODEL).name
    began = time.process_time()
    asked = recipe.property.model_copy(update={"samples": row.samples})
    certificate = certify(model, splits.test, asked, CONTRACTS["fp32"], recipe.verify, data_name=recipe.data.name, file=model.name)
    verdicts = Counter(claim.verdict for claim in certificate.claims)
    methods = Counter(claim.method for claim in certificate.claims if claim.verdict == "certified")
    graph = from_onnx(model)
    import torch

    params = {name: torch.from_numpy(value.copy()) for name, value in graph.params.items()}
    with torch.no_grad():
        inputs = torch.from_numpy(splits.test.inputs())
        right = [run(graph, params, part).argmax(1).numpy() for part in inputs.split(500)]
    samples = len(certificate.claims)
    ready = [epoch for epoch in epochs if epoch["epsilon"] > 0]
    return {
        "row": row.name,
        "recipe": row.recipe,
        "settings": list(row.settings),
        "seed": seed,
        "epsilon": recipe.property.epsilon,
        "clean": float(np.mean(np.concatenate(right) == splits.test.labels)),
        "certified": verdicts.get("certified", 0) / samples,
        "unknown": verdicts.get("unknown", 0) / samples,
        "samples": samples,
        "verdicts": dict(verdicts),
        "methods": dict(methods),
        "validation": max((epoch["certified"] for epoch in ready[-max(1, len(ready) // 2) :]), default=None),
        "measure": epochs[-1]["measure"],
        "epochs": len(epochs),
        "train_wall_s": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "train_cpu_s": None if resumed else round(cpu, 1),
        "certify_cpu_s": round(time.process_time() - began, 1),
        "weights": weight_count(graph, nonzero=True),
        "weights_stored": weight_count(graph),
        "macs": macs(graph),
        "bytes": parameter_bytes(graph),
        "layers": [{"name": cost.name, "weights": cost.weights, "macs": cost.macs} for cost in layer_table(graph)],
        "curve": [[epoch["epoch"], epoch["clean"], epoch["certified"], round(epoch["seconds"], 2), epoch["phase"]] for epoch in epochs],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread",
    }


def one(table: str, name: str, seed: int, data: Path, work: Path) -> None:
    """Measures one row in this process and writes its file."""
    from vsparse.files import write_json

    row = next(row for row in TABLES[table] if row.name == name)
    result = measure(row, seed, data, work / table / f"{name}-seed{seed}")
    out = HERE / "results" / table
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}-seed{seed}.json", result)


def main() -> int:
    """Runs what is not done yet, until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help="default: all")
    parser.add_argument("--rows", default="*")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VSPARSE_DATA", "data")))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vsparse-training")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--one", nargs=3, metavar=("TABLE", "ROW", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one[0], options.one[1], int(options.one[2]), options.data, options.work)
        return 0
    waiting = [
        (table, row.name, seed)
        for table in options.tables or TABLES
        for row in TABLES[table]
        for seed in row.seeds
        if fnmatch.fnmatch(row.name, options.rows) and not (HERE / "results" / table / f"{row.name}-seed{seed}.json").exists()
    ]
    end = time.monotonic() + 60 * options.minutes
    running: dict[tuple[str, str, int], subprocess.Popen[bytes]] = {}
    failed = 0
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < options.jobs:
                what = waiting.pop(0)
                command = [sys.executable, __file__, "--data", str(options.data), "--work", str(options.work), "--one", *map(str, what)]
                running[what] = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
                print(f"{time.strftime('%H:%M:%S')} start {what}", file=sys.stderr, flush=True)
            time.sleep(0.5)
            for what, process in list(running.items()):
                if process.poll() is not None:
                    failed += process.returncode != 0
                    print(f"{time.strftime('%H:%M:%S')} done  {what} {process.returncode}", file=sys.stderr, flush=True)
                    del running[what]
    finally:
        for process in running.values():
            process.terminate()
    left = len(waiting) + len(running)
    print(f"{left} rows left, {failed} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
