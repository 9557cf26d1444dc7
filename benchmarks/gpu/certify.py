"""Certifies what train.py has trained: compressed, exported and verified from its file on the device, answers kept batch by batch.

Usage: python benchmarks/gpu/certify.py dense|sparse --state DIR --out FILE [--device cuda] [--data DIR] [--samples 1000] [--tiny]
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import arguments_of, describe, recipe, write

from vsparse.artifact.certificate import write_certificate
from vsparse.artifact.forms import SPARSE
from vsparse.contract import CONTRACTS
from vsparse.data import load
from vsparse.graph import from_onnx
from vsparse.graph.cost import macs, weight_count
from vsparse.stages.compress.task import compress_trained
from vsparse.stages.export.task import export_models
from vsparse.stages.verify import certify


def main() -> None:
    """Certifies, from where an earlier run stopped."""
    parser = arguments_of(__doc__)
    parser.add_argument("--samples", type=int, default=1000)
    arguments = parser.parse_args()
    state, length = arguments.state, arguments.state / "epochs"
    if not (state / "trained" / "history.json").is_file():
        raise SystemExit(f"{state} holds no finished training; run the piece train first")
    spec = recipe(arguments.variant, arguments.device, int(length.read_text()), arguments.tiny)
    splits = load(spec.data, arguments.data, spec.train.seed)
    packed, exported = state / "packed", state / "exported"
    model = exported / Path(SPARSE.model).name
    if not model.is_file():
        for folder in (packed, exported):
            folder.mkdir(exist_ok=True)
        compress_trained(state / "trained", packed, spec, splits)
        export_models(packed, None, exported, spec, splits.train, {SPARSE: "fp32"})
    content: dict[str, Any] = {"finished": False, "variant": arguments.variant, "on": describe(arguments.device), "done": 0}
    graph = from_onnx(model)
    content |= {"weights": weight_count(graph, nonzero=True), "macs": macs(graph), "property": spec.property.model_dump(mode="json")}
    began = time.perf_counter()

    def told(done: int, total: int) -> None:
        content.update(done=done, total=total, seconds_of_this_run=round(time.perf_counter() - began, 1))
        if torch.cuda.is_available():
            content["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        write(arguments.out, content)
        print(f"{arguments.variant}: {done} of {total}", file=sys.stderr)

    samples = 32 if arguments.tiny else arguments.samples
    certificate = certify(
        model,
        splits.test,
        spec.property.perturbation,
        CONTRACTS["fp32"],
        spec.verify,
        samples=samples,
        progress=told,
        state_directory=state / "answers",
        data_name=spec.data.name,
    )
    folder = state / "certificate"
    folder.mkdir(exist_ok=True)
    write_certificate(folder / "certificate.json", certificate)
    claims = certificate.claims
    right = [claim for claim in claims if claim.predicted == claim.label]
    content |= {
        "finished": True,
        "samples": len(claims),
        "clean_accuracy": len(right) / len(claims),
        "certified_accuracy": sum(claim.verdict == "certified" for claim in right) / len(claims),
        "verdicts": dict(Counter(claim.verdict for claim in claims)),
        "methods": dict(Counter(claim.method for claim in claims if claim.verdict == "certified")),
        "ms_per_sample": round(sum(claim.time_ms for claim in claims) / len(claims), 2),
    }
    write(arguments.out, content)


if __name__ == "__main__":
    main()
