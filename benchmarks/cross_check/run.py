"""Two ways to catch an unsound certificate: another verifier's bounds, and many restarts of an attack on every certified sample."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from vsparse.artifact import CERTIFICATE, MODEL, RECIPE
from vsparse.bounds import inner_ball_float32
from vsparse.contract import contract
from vsparse.data import Dataset, load
from vsparse.errors import VsparseError
from vsparse.files import write_json
from vsparse.recipe import load_recipe
from vsparse.stages.verify import Certificate, read_certificate
from vsparse.stages.verify.attack import pgd
from vsparse.stages.verify.cross_check import cross_check
from vsparse.stages.verify.deployed import Runtime, predictions, read_model

BATCH = 100


def attack_certified(model_path: Path, data: Dataset, certificate: Certificate, samples: int, steps: int, restarts: int) -> dict[str, Any]:
    """Attacks every certified sample among the first ones; counts those whose prediction changes in torch or in ONNX Runtime."""
    certified = [claim for claim in certificate.claims if claim.verdict == "certified" and claim.id < samples]
    model = read_model(model_path)
    params, runtime = model.graph.tensors(torch.float32), Runtime(model.data)
    broken, below, least = [], [], float("inf")
    for start in range(0, len(certified), BATCH):
        claims = certified[start : start + BATCH]
        ids = np.array([claim.id for claim in claims], dtype=np.int64)
        x, labels = data.inputs(ids), data.labels[ids]
        box = inner_ball_float32(torch.from_numpy(x), certificate.property.epsilon, certificate.property.clip)
        # Seeds of its own, so that these are not the starts that the certificate's attack has tried already.
        found = pgd(model.graph, params, x, box, labels, [(1, i) for i in ids.tolist()], steps=steps, restarts=restarts)
        logits = runtime.logits(found.inputs.numpy())
        own = logits[np.arange(len(ids)), labels].astype(np.float64)
        others = logits.astype(np.float64)
        others[np.arange(len(ids)), labels] = -np.inf
        margins = own - others.max(axis=1)
        broken += ids[predictions(logits) != labels].tolist()
        # A margin below its proved bound breaks the proof even where the label still holds.
        below += [claim.id for claim, margin in zip(claims, margins, strict=True) if not margin >= (claim.margin_lower or 0)]
        least = min(least, float(margins.min()))
        print(f"attacked {min(start + BATCH, len(certified))} of {len(certified)}", file=sys.stderr)
    return {
        "samples_attacked": len(certified),
        "restarts": restarts,
        "steps": steps,
        "broken": broken,
        "margin_below_its_proved_bound": below,
        "least_margin_found": least if certified else None,
    }


def main() -> int:
    """Runs both checks on an artifact and writes results.json; exit code 1 where one of them finds something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path, help="directory that `vsparse build` wrote")
    parser.add_argument("--data", type=Path, default=None, help="root of the dataset's files, as given to `vsparse build`")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=None, help="default: results-<recipe>.json beside this script")
    arguments = parser.parse_args()
    recipe = load_recipe(str(arguments.artifact / RECIPE))
    data = load(recipe.data, arguments.data, recipe.train.seed).test
    certificate = read_certificate(arguments.artifact / CERTIFICATE)
    path = arguments.artifact / MODEL
    samples = min(arguments.samples, len(data))
    started = perf_counter()
    bounds = cross_check(
        path,
        data,
        certificate.property,
        contract(certificate.contract["name"]),
        samples,
        progress=lambda done, total: print(f"compared {done} of {total}", file=sys.stderr) if done % 100 == 0 else None,
    )
    compared = perf_counter()
    attacked = attack_certified(path, data, certificate, samples, arguments.steps, arguments.restarts)
    passed = bounds.passed and not attacked["broken"] and not attacked["margin_below_its_proved_bound"]
    result = {
        "schema_version": 1,
        "passed": passed,
        "recipe": recipe.name,
        "certificate_sha256": certificate.digest(),
        "model_sha256": certificate.model.sha256,
        "epsilon": str(certificate.property.epsilon),
        "cross_check": bounds.record().model_dump(mode="json"),
        "attack": attacked,
        "cross_check_s": round(compared - started, 1),
        "attack_s": round(perf_counter() - compared, 1),
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "auto_LiRPA", "numpy")},
        "machine": platform.machine(),
    }
    out = arguments.out or Path(__file__).with_name(f"results-{recipe.name}.json")
    write_json(out, result)
    print(json.dumps(result, indent=2))
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VsparseError as error:
        print(f"cross_check: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
