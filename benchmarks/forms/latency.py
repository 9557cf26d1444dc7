"""Times the deployed forms of networks against their float32 files in ONNX Runtime: one thread, batch 1, in alternation.

Usage: python benchmarks/forms/latency.py [ARTIFACT…] [--untrained] [--rounds N] [--out FILE]

Every model/model.FORM.onnx of each finished ARTIFACT is timed. `--untrained` adds the architecture cnn7 at width 0.4 on 28×28 with
random weights, 18.5 million multiply-accumulates, whose forms are made here: latency does not depend on the weights' values. In each
round every file is run for 0.2 s, in turn and in an order that moves on by one, so that a disturbance of the machine meets all of
them. `p50_us` is the median over the rounds of their medians; `ratio` the median over the rounds of (form's median / float32's).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from vsparse.artifact.forms import PRECISIONS, SPARSE
from vsparse.files import write_json
from vsparse.graph import fold_batch_norm, from_onnx, from_torch, macs
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.stages.export import write_onnx
from vsparse.stages.export.half import half
from vsparse.stages.export.quantise import quantise
from vsparse.stages.profile.machine import describe_machine
from vsparse.stages.profile.session import open_model

SECONDS = 0.2
UNTRAINED = ("cnn7", 0.4, (1, 28, 28))


def artifact_files(artifact: Path) -> dict[str, Path]:
    """Returns the model files of a finished build by the name of the form; float32 comes first."""
    found = {"fp32": artifact / SPARSE.model} | {form.name: artifact / form.model for form in PRECISIONS}
    return {name: path for name, path in found.items() if path.is_file()}


def untrained_files(folder: Path) -> dict[str, Path]:
    """Writes the forms of a network that nobody trained and returns their files by the name of the form."""
    architecture, width, shape = UNTRAINED
    torch.manual_seed(0)
    network = make(Network(architecture=architecture, width=width), shape, 10).eval()
    graph = fold_batch_norm(from_torch(network, shape))
    samples = np.random.default_rng(0).random((64, *shape), dtype=np.float32)
    forms = {"fp32": graph, "fp16": half(graph), "int8": quantise(graph, samples)}
    for name, form in forms.items():
        write_onnx(form, folder / f"model.{name}.onnx", 17, {})
    return {name: folder / f"model.{name}.onnx" for name in forms}


def alternated(files: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Returns the medians in microseconds of each file, its ratio to fp32 and the least and largest ratio of a round."""
    models = {name: open_model(path, 1, 1) for name, path in files.items()}
    medians: dict[str, list[float]] = {name: [] for name in models}
    for each in range(rounds + 1):  # the first round warms up and is not counted
        order = list(models)[each % len(models) :] + list(models)[: each % len(models)]
        for name in order:
            times, end = [], time.perf_counter() + SECONDS
            while time.perf_counter() < end:
                times.append(models[name].run_ms())
            if each:
                medians[name].append(statistics.median(times))
    found = {}
    for name, values in medians.items():
        ratios = [mine / theirs for mine, theirs in zip(values, medians["fp32"], strict=True)]
        found[name] = {
            "bytes": files[name].stat().st_size,
            "p50_us": round(1e3 * statistics.median(values), 2),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_least": round(min(ratios), 3),
            "ratio_largest": round(max(ratios), 3),
        }
    return found


def networks(artifacts: list[Path], untrained: bool, folder: Path) -> Iterator[tuple[str, dict[str, Path]]]:
    """Yields the title of each network and its files."""
    for artifact in artifacts:
        yield artifact.name, artifact_files(artifact)
    if untrained:
        yield "{} at width {}, untrained".format(*UNTRAINED[:2]), untrained_files(folder)


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifacts", nargs="*", type=Path)
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for title, files in networks(given.artifacts, given.untrained, Path(folder)):
            row = {"network": title, "macs": macs(from_onnx(files["fp32"])), "forms": alternated(files, given.rounds)}
            sys.stderr.write(f"{row}\n")
            rows.append(row)
    if given.out is not None:
        about = {"machine": describe_machine(), "onnxruntime": onnxruntime.__version__, "rounds": given.rounds, "seconds": SECONDS}
        write_json(given.out, {**about, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
