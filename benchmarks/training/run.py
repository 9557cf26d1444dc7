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
from pathlib import Path
from typing import Any

from rows import TABLES, Row

HERE = Path(__file__).resolve().parent


def measure(row: Row, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """Trains one row and measures the file that is exported from it, on all test samples (or on as many as the row says)."""
    from measures import attack, certified, clean, smoothed

    from vsparse.artifact.forms import SPARSE
    from vsparse.data import load
    from vsparse.graph import from_onnx
    from vsparse.graph.cost import layer_table, macs, parameter_bytes, weight_count
    from vsparse.recipe import load_recipe
    from vsparse.stages.compress.task import compress_trained
    from vsparse.stages.export.task import export_models

    recipe = load_recipe(row.recipe, [*row.settings, f"train.seed={seed}", "export.opset=17"])
    splits = load(recipe.data, data, recipe.train.seed)
    about = {
        "row": row.name,
        "recipe": row.recipe,
        "settings": list(row.settings),
        "seed": seed,
        "metric": row.metric,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread",
    }
    if row.metric == "rounds":
        from lottery import measure_rounds

        return about | measure_rounds(row, recipe, splits, work, work.parent / f"{row.masks_of}-seed{seed}" if row.masks_of else None)
    trained, packed, exported = work / "trained", work / "packed", work / "exported"
    for folder in (trained, packed, exported):
        folder.mkdir(parents=True, exist_ok=True)
    seconds = train(recipe, data, work / "scratch", trained)
    history = json.loads((trained / "history.json").read_text())
    epochs = history["sparse" if recipe.train.is_sparse else "dense"]
    compress_trained(trained, packed, recipe, splits)
    export_models(packed, None, exported, recipe, splits.train, {SPARSE: recipe.verify.contract})
    model = exported / Path(SPARSE.model).name
    graph = from_onnx(model)
    match row.metric:
        case "certified":
            found = certified(model, recipe, splits.test, row.samples, work / "certify")
        case "attack":
            found = attack(graph, recipe, splits.test, row.samples)
        case _:
            found = smoothed(model, recipe, splits.test, row.samples)
    ready = [epoch for epoch in epochs if epoch["epsilon"] > 0]
    return {
        **about,
        "epsilon": recipe.property.epsilon,
        "train_epsilon": recipe.train.epsilon,
        "clean": clean(graph, splits.test),
        **found,
        "validation": max((epoch["certified"] for epoch in ready[-max(1, len(ready) // 2) :]), default=None),
        "measure": epochs[-1]["measure"],
        "epochs": len(epochs),
        "batch_size": recipe.train.batch_size,
        "train_wall_s": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "train_cpu_s": round(sum(seconds.get(epoch["epoch"], epoch["seconds"]) for epoch in epochs), 1),
        "weights": weight_count(graph, nonzero=True),
        "weights_stored": weight_count(graph),
        "macs": macs(graph),
        "macs_nonzero": nonzero_macs(graph),
        "bytes": parameter_bytes(graph),
        "layers": [f"{cost.name}: {cost.weights} weights, {cost.macs} macs" for cost in layer_table(graph)],
        "curve": curve(epochs, seconds, ready_epochs(recipe, splits)),
    }


def train(recipe: Any, data: Path, scratch: Path, output: Path) -> dict[int, float]:
    """Trains to `output`, going on from `scratch`; returns the processor seconds of each epoch by its number, from 1.

    They are kept in a file beside the checkpoint, so that those of an interrupted training count. Validation is in them, reading
    data is not.
    """
    from vsparse.files import write_json
    from vsparse.stages.train.task import train_task

    scratch.mkdir(parents=True, exist_ok=True)
    kept = scratch.parent / "cpu.json"
    seconds = {int(key): value for key, value in json.loads(kept.read_text()).items()} if kept.is_file() else {}
    before = time.process_time()

    def note(news: dict[str, Any]) -> None:
        nonlocal before
        if "seconds" not in news:  # from inside an epoch, or about its steps
            return
        now = time.process_time()
        # One thread computes no longer than the clock runs; the reading of the data, before the first epoch, is left out so.
        seconds[news["epoch"]] = round(min(now - before, news["seconds"]), 3)
        write_json(kept, seconds)
        before = time.process_time()

    payload = {"recipe": recipe.model_dump(mode="json"), "data": str(data), "sparse": recipe.train.is_sparse}
    train_task({**payload, "scratch": str(scratch), "output": str(output)}, note)
    return seconds


def nonzero_macs(graph: Any) -> int:
    """Returns the multiply-adds of one sample that a runtime could not skip: those of weights that are not zero."""
    from vsparse.stages.train.measures import weights_of

    return sum(int((graph.params[name] != 0).sum()) * weight.positions for name, weight in weights_of(graph).items())


def ready_epochs(recipe: Any, splits: Any) -> set[int]:
    """Returns the epochs, from 1, whose networks could be the result: last phase, full radius, final masks (`Trainer.ready`)."""
    from vsparse.stages.train.phases import epoch_position, total_epochs
    from vsparse.stages.train.schedule import Schedule
    from vsparse.stages.train.sparsifiers import make_sparsifier
    from vsparse.stages.train.task import untrained

    sparsifier = make_sparsifier(recipe.train, untrained(recipe, splits)[0], recipe.train.is_sparse)
    phases = sparsifier.phases()
    moments = [epoch_position(phases, epoch) for epoch in range(total_epochs(phases))]
    return {
        at.epoch + 1
        for at in moments
        if at is moments[-1] or (at.last and at.inside >= Schedule(recipe.train, at.phase).full_from and sparsifier.settled(at))
    }


def curve(epochs: list[dict[str, Any]], seconds: dict[int, float], ready: set[int]) -> dict[str, str]:
    """Returns the columns of the training's history, each as one line of numbers; `ready` is 1 where a network could be the result."""
    columns: dict[str, list[Any]] = {
        name: [epoch[name] for epoch in epochs] for name in ("epoch", "phase", "clean", "certified", "density", "epsilon", "seconds")
    }
    columns["phase"] = [phase.replace(" ", "-") for phase in columns["phase"]]
    columns["ready"] = [int(epoch["epoch"] in ready) for epoch in epochs]
    columns["cpu"] = [seconds.get(epoch["epoch"], epoch["seconds"]) for epoch in epochs]
    return {name: " ".join(f"{v:.5g}" if isinstance(v, float) else str(v) for v in values) for name, values in columns.items()}


def one(table: str, name: str, seed: int, data: Path, work: Path) -> None:
    """Measures one row in this process and writes its file."""
    from vsparse.files import write_json

    row = next(row for row in TABLES[table] if row.name == name)
    result = measure(row, seed, data, work / table / f"{name}-seed{seed}")
    out = result_file(table, name, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)


def result_file(table: str, name: str, seed: int) -> Path:
    """Returns where the result of a row lies."""
    return HERE / "results" / table / f"{name}-seed{seed}.json"


def startable(what: tuple[str, str, int]) -> bool:
    """Whether the row that lends this one its masks is done."""
    table, name, seed = what
    row = next(row for row in TABLES[table] if row.name == name)
    return not row.masks_of or result_file(table, row.masks_of, seed).exists()


def main() -> int:
    """Runs what is not done yet, until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help="default: all but smoke")
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
    unknown = [table for table in options.tables if table not in TABLES]
    if unknown:
        parser.error(f"there is no table {unknown[0]}; tables: {', '.join(TABLES)}")
    waiting = [
        (table, row.name, seed)
        for table in options.tables or [name for name in TABLES if name != "smoke"]
        for rank in range(max(len(row.seeds) for row in TABLES[table]))  # the first seed of every row comes first
        for row in TABLES[table]
        for seed in row.seeds[rank : rank + 1]
        if fnmatch.fnmatch(row.name, options.rows) and not result_file(table, row.name, seed).exists()
    ]
    end = time.monotonic() + 60 * options.minutes
    running: dict[tuple[str, str, int], subprocess.Popen[bytes]] = {}
    failed = 0
    try:
        while (waiting or running) and time.monotonic() < end:
            while len(running) < options.jobs and (ready := [what for what in waiting if startable(what)]):
                what = ready[0]
                waiting.remove(what)
                command = [sys.executable, __file__, "--data", str(options.data), "--work", str(options.work), "--one", *map(str, what)]
                running[what] = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
                print(f"{time.strftime('%H:%M:%S')} start {what}", file=sys.stderr, flush=True)
            if not running:
                print(f"{waiting[0]} waits for the masks of a row that failed or was not asked for", file=sys.stderr)
                break
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
