"""What the pieces share: the recipe that is trained, on what it runs, and JSON that is whole at any moment."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsparse.compute_device import choose_device
from vsparse.recipe import Recipe, load_recipe

RECIPE, ARCHITECTURE = "best-cifar10", "cnn5"
# Every runtime of a target reads it.
OPSET = "export.opset=17"
# The part of a piece's 8 minutes that training may count on.
TRAINING_S = 420.0
STEPS_PER_EPOCH = 282  # 36,000 training samples of the 40,000 that are carried, in batches of 128


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON in one step, so that a piece that is ended leaves the last whole state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def describe(device: str) -> dict[str, Any]:
    """Returns the device and the versions that results hang on."""
    chosen = choose_device(device, "--device")
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(chosen),
        "name": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def epochs_that_fit(steps: Path) -> int:
    """Returns how many epochs of MTL-IBP fit into a piece by the measured milliseconds of a step; 40 where nothing was measured."""
    try:
        step_ms = json.loads(steps.read_text())["milliseconds_per_step"]["ours-mtl-ibp"]["wall_ms"]
    except (OSError, ValueError, KeyError):
        return 40
    return max(10, min(160, int(TRAINING_S / (STEPS_PER_EPOCH * step_ms / 1000))))


def recipe(variant: str, device: str, epochs: int, tiny: bool) -> Recipe:
    """Returns what is trained: MTL-IBP on cnn5 at 2/255, dense or 90 % sparse; tiny: two epochs of a small network on the digits."""
    sparsity = 0.9 if variant == "sparse" else 0.0
    changes = [f"train.device={device}", f"verify.device={device}", f"train.sparsity={sparsity}", "train.baseline=false", OPSET]
    if tiny:
        return load_recipe("digits", [*changes, "network.architecture=cnn4", "network.width=0.5", "train.epochs=3"])
    # The gates of the shipped recipe are about its own length of training.
    return load_recipe(RECIPE, [*changes, f"network.architecture={ARCHITECTURE}", f"train.epochs={epochs}"])


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """Returns the arguments that training and certification share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=("dense", "sparse"))
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    return parser
