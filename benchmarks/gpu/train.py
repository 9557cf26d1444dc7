"""Trains the dense or the sparse network of common.py, with a checkpoint after each epoch, and writes its history as it goes.

Usage: python benchmarks/gpu/train.py dense|sparse --state DIR --out FILE [--device cuda] [--data DIR] [--epochs 0] [--tiny]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from common import arguments_of, describe, epochs_that_fit, recipe, write

from vsparse.stages.train.task import train_task


def main() -> None:
    """Trains, from where an earlier run stopped."""
    parser = arguments_of(__doc__)
    arguments = parser.parse_args()
    scratch, output = arguments.state / "scratch", arguments.state / "trained"
    for folder in (scratch, output):
        folder.mkdir(parents=True, exist_ok=True)
    # The length is part of what is trained: an interrupted training goes on with the one that it began with.
    length = arguments.state / "epochs"
    if not length.is_file():
        length.write_text(str(arguments.epochs or epochs_that_fit(arguments.out.parent / "steps-cnn5.json")))
    spec = recipe(arguments.variant, arguments.device, int(length.read_text()), arguments.tiny)
    content: dict[str, Any] = {
        "finished": False,
        "variant": arguments.variant,
        "on": describe(arguments.device),
        "recipe": spec.model_dump(mode="json", include={"name", "network", "property", "train"}),
        "history": [],
    }
    began = time.perf_counter()

    def told(message: dict[str, Any]) -> None:
        if "epoch" in message and "loss" in message:
            content["history"].append(message)
            content["seconds_of_this_run"] = round(time.perf_counter() - began, 1)
            if torch.cuda.is_available():
                content["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
            write(arguments.out, content)
            print(f"{arguments.variant}: epoch {message['epoch']}, loss {message['loss']:.3f}", file=sys.stderr)

    data = None if arguments.data is None else str(arguments.data)
    payload = {"recipe": spec.model_dump(mode="json"), "data": data, "sparse": arguments.variant == "sparse"}
    train_task({**payload, "scratch": str(scratch), "output": str(output)}, told)
    write(arguments.out, {**content, "finished": True})


if __name__ == "__main__":
    main()
