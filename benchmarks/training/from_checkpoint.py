"""From a dense network that torch exported to a sparse one: certified accuracy in half of the epochs against training from scratch.

    python benchmarks/training/from_checkpoint.py --data DIR --work DIR [--samples 10000] [--out FILE]

The dense MNIST cnn4 is that of `best-mnist` without sparsity, its weights put into a plain `nn.Sequential` and exported by torch's two
exporters (`dynamo=True` needs the package onnxscript; without it that row is left out). Each file starts `best-mnist` (90 % sparse) with
`train.start`, in half of its epochs and otherwise the recipe's own settings; the last row is a dense network that saw clean samples alone.
From scratch is row element-90 of the table `headline`, the same seed. What is finished in --work is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from measures import certified, clean
from safetensors.numpy import load_file
from torch import nn

from vsparse.data import load
from vsparse.files import write_json
from vsparse.graph import from_onnx
from vsparse.graph.cost import weight_count
from vsparse.recipe import load_recipe

RECIPE, SCRATCH = "best-mnist", "element-90"
# Test samples of the dense network that saw clean samples alone.
CLEAN_SAMPLES = 100
HERE = Path(__file__).resolve().parent


def main() -> None:
    """Trains, exports, trains on and writes what was certified."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "from_checkpoint.json")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    half = load_recipe(RECIPE).train.epochs // 2
    starts = {
        "certified dense": ("train.sparsity=0",),
        "clean dense": ("train.sparsity=0", "train.objective=natural", f"train.epochs={half // 2}"),
    }
    rows = []
    for name, settings in starts.items():
        dense = trained(asked, f"dense {name}", settings)
        module = as_module(dense / "train")
        for exporter in ("legacy", "dynamo") if name == "certified dense" else ("legacy",):
            file = asked.work / f"{name} {exporter}.onnx".replace(" ", "-")
            if not exported(module, file, exporter):
                continue
            sparse = trained(asked, f"{name} {exporter}", (f"train.start={file}", f"train.epochs={half}"))
            # Hardly a sample of the clean one is certified, and each takes a whole search to say so.
            samples = asked.samples if name == "certified dense" else CLEAN_SAMPLES
            begun = measured(dense, asked.data, samples)
            rows.append({"start": name, "exporter": exporter, "dense": begun, "sparse": measured(sparse, asked.data, asked.samples)})
    scratch = json.loads((HERE / "results" / "headline" / f"{SCRATCH}-seed0.json").read_text())
    keys = ("clean", "certified", "unknown", "samples", "epochs", "weights", "train_cpu_s")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, 1 thread"
    write_json(
        asked.out, {"machine": machine, "torch": torch.__version__, "rows": rows, "from_scratch": {key: scratch[key] for key in keys}}
    )
    for row in rows:
        print(f"{row['start']}, {row['exporter']}: {100 * row['sparse']['certified']:.2f} % certified in {row['sparse']['epochs']} epochs")
    print(f"from scratch: {100 * scratch['certified']:.2f} % in {scratch['epochs']} epochs")


def trained(asked: argparse.Namespace, name: str, settings: tuple[str, ...]) -> Path:
    """Returns the artifact of a training, which is made where it is not there."""
    out = Path(asked.work, name.replace(" ", "-"))
    if not (out / "cpu.json").exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        options = [part for one in (*settings, "train.baseline=false") for part in ("--set", one)]
        command = [sys.executable, "-m", "vsparse", "train", RECIPE, "--data", str(asked.data), "--out", str(out), *options]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        write_json(out / "cpu.json", {"cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime})
    return out


def as_module(folder: Path) -> nn.Module:
    """Returns the network as a user of torch writes it, with the weights of a training, once it computes what the training's file does."""
    convolutions = [nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten()]
    module = nn.Sequential(*convolutions, nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))
    values = load_file(folder / "weights.safetensors")
    parts = ("conv1", "conv2", "fc1", "logits")
    layers = [layer for layer in module if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer, part in zip(layers, parts, strict=True):
        layer.load_state_dict({key: torch.from_numpy(values[f"{part}.{key}"]) for key in ("weight", "bias")})
    x = np.random.default_rng(0).random((4, 1, 28, 28), dtype=np.float32)
    session = onnxruntime.InferenceSession(folder / "trained.onnx", providers=["CPUExecutionProvider"])
    wanted = session.run(None, {session.get_inputs()[0].name: x})[0]
    np.testing.assert_allclose(wanted, module(torch.from_numpy(x)).detach().numpy(), atol=1e-3)
    return module.eval()


def exported(module: nn.Module, file: Path, exporter: str) -> bool:
    """Writes a network by one of torch's exporters; whether this is possible here."""
    more = {"dynamo": True, "external_data": False} if exporter == "dynamo" else {"dynamo": False}
    try:
        torch.onnx.export(module, (torch.zeros(1, 1, 28, 28),), str(file), **more)  # type: ignore[arg-type]
    except ModuleNotFoundError as error:
        print(f"{exporter} is left out: {error}", file=sys.stderr)
        return False
    return True


def measured(out: Path, data: Path, samples: int) -> dict[str, Any]:
    """Returns what is certified of the first test samples."""
    recipe = load_recipe(str(out / "recipe.toml"))
    splits, model = load(recipe.data, data, recipe.train.seed), out / "train" / "trained.onnx"
    graph = from_onnx(model)
    found = certified(model, recipe, splits.test, samples, out / "claims")
    history = json.loads((out / "train" / "history.json").read_text())
    return {
        "clean": clean(graph, splits.test),
        **{key: found[key] for key in ("certified", "unknown", "samples", "certify_cpu_s")},
        "epochs": len(history["sparse"]),
        "weights": weight_count(graph, nonzero=True),
        "train_cpu_s": json.loads((out / "cpu.json").read_text())["cpu_s"],
    }


if __name__ == "__main__":
    main()
