"""What is measured of an exported file: certified accuracy, accuracy under attack, or certified l2 accuracy when smoothed."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.graph import run
from vsparse.graph.ir import Graph
from vsparse.recipe import Recipe
from vsparse.stages.train.determinism import generator
from vsparse.stages.train.evaluation import attacked
from vsparse.stages.verify import certify
from vsparse.stages.verify.smoothing import Sampling, smooth

BATCH = 500
ATTACK_STEPS, ATTACK_RESTARTS = 40, 5
# HYDRA (arXiv 2002.10509) certifies with σ = 0.25, 100 draws for the class and α = 0.001, but with 10,000 draws for the count.
SAMPLING = Sampling(sigma=0.25, n0=100, n=1000, alpha=0.001)
RADII = (0.0, 0.1, 0.25, 0.43, 0.5)


def clean(graph: Graph, split: Dataset) -> float:
    """Returns the share of a split that is classified correctly, in float32."""
    params = {name: torch.from_numpy(value.copy()) for name, value in graph.params.items()}
    with torch.no_grad():
        inputs = torch.from_numpy(split.inputs())
        right = [run(graph, params, part).argmax(1).numpy() for part in inputs.split(BATCH)]
    return float(np.mean(np.concatenate(right) == split.labels))


def certified(model: Path, recipe: Recipe, split: Dataset, samples: int, state: Path, name: str = "") -> dict[str, Any]:
    """Returns verdicts under the fp32 contract, branch and bound included, and the share that interval bounds alone certify.

    Finished batches are kept in `state`, so that an interrupted run goes on; its time is then that of all batches by the clock. Where
    samples come in tracks, also how many of each track were certified, out of how many. `name` is the file as a certificate calls it
    (default: its own), and has to be that of the batches.
    """
    began = time.process_time()
    resumed = state.is_dir() and any(state.iterdir())
    state.mkdir(parents=True, exist_ok=True)
    certificate = certify(
        model,
        split,
        recipe.property.perturbation,
        CONTRACTS["fp32"],
        recipe.verify,
        samples=samples,
        state_directory=state,
        data_name=recipe.data.name,
        file=name or model.name,
    )
    claims = certificate.claims
    spent = sum(claim.time_ms for claim in claims) / 1000 if resumed else time.process_time() - began
    verdicts = Counter(claim.verdict for claim in claims)
    methods = Counter(claim.method for claim in claims if claim.verdict == "certified")
    found: dict[str, Any] = {
        "samples": len(claims),
        "certified": verdicts.get("certified", 0) / len(claims),
        "interval_certified": methods.get("interval", 0) / len(claims),
        "unknown": verdicts.get("unknown", 0) / len(claims),
        "verdicts": dict(verdicts),
        "methods": dict(methods),
        "certify_cpu_s": round(spent, 1),
    }
    sure = np.array([claim.verdict == "certified" for claim in claims])
    # One bit a sample, in hexadecimal digits: for comparisons of two networks on the same samples, or on some of them.
    found["certified_samples"] = np.packbits(sure).tobytes().hex()
    if split.groups is not None:
        tracks, which = np.unique(split.groups[: len(claims)], return_inverse=True)
        found["tracks"] = {
            "name": " ".join(map(str, tracks.tolist())),
            "samples": " ".join(map(str, np.bincount(which).tolist())),
            "certified": " ".join(map(str, np.bincount(which, weights=sure).astype(int).tolist())),
        }
    return found


def attack(graph: Graph, recipe: Recipe, split: Dataset, samples: int) -> dict[str, Any]:
    """Returns the share of samples that stand PGD at the property's radius: 40 steps on the margin, the worst of 5 random starts."""
    params = {name: torch.from_numpy(value.copy()) for name, value in graph.params.items()}
    count = min(samples or len(split), len(split))
    standing = 0
    for start in range(0, count, BATCH):
        part = slice(start, min(start + BATCH, count))
        x, labels = torch.from_numpy(split.inputs(part)), torch.from_numpy(split.labels[part])
        held = torch.ones(len(labels), dtype=torch.bool)
        for restart in range(ATTACK_RESTARTS):
            draws = generator(0, restart, start)
            held &= attacked(graph, params, x, labels, float(recipe.property.perturbation.epsilon), ATTACK_STEPS, draws)
        standing += int(held.sum())
    return {"samples": count, "attacked": standing / count}


def smoothed(model: Path, recipe: Recipe, split: Dataset, samples: int) -> dict[str, Any]:
    """Returns the certified l2 accuracy of the smoothed classifier at some radii."""
    began = time.process_time()
    found = smooth(model, split, SAMPLING, samples=samples, data_name=recipe.data.name)
    return {
        "samples": len(found.claims),
        "abstained": found.abstained / len(found.claims),
        "smoothed": {f"{radius:g}": found.accuracy(radius) for radius in RADII},
        "sigma": SAMPLING.sigma,
        "draws": SAMPLING.n,
        "certify_cpu_s": round(time.process_time() - began, 1),
    }
