"""A synthetic artifact directory: every file that a build writes, small, with numbers chosen by the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vsparse.files import canonical_json, sha256_bytes, sha256_file

CONTRACT = {
    "name": "fp32",
    "storage": "fp32",
    "operand": "fp32",
    "accumulate": "fp32",
    "order": "any",
    "convolution": "direct",
    "subnormals": "flush",
}


def claims(per_class: list[int], seed: int) -> list[dict[str, Any]]:
    """Claims for classes of the given sizes: of ten, about nine certified by three methods, the rest falsified, unknown or wrong."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for label, size in enumerate(per_class):
        for _ in range(size):
            kind = random.choice(["interval", "crown-ibp", "crown", "attack", "none", "clean"], p=[0.6, 0.2, 0.08, 0.05, 0.04, 0.03])
            verdict = {"attack": "falsified", "clean": "falsified", "none": "unknown"}.get(kind, "certified")
            rows.append(
                {
                    "id": len(rows),
                    "input_sha256": "0" * 64,
                    "label": label,
                    "predicted": (label + 1) % max(2, len(per_class)) if kind == "clean" else label,
                    "verdict": verdict,
                    "margin_lower": round(float(random.uniform(0.1, 4.0)), 4) if verdict == "certified" else None,
                    "method": str(kind),
                    "time_ms": round(float(random.exponential(3.0)), 3),
                    "proof": "counterexamples.npz" if verdict == "falsified" else None if verdict == "unknown" else "derivable",
                }
            )
    return rows


def certificate(
    rows: list[dict[str, Any]], names: list[str], epsilon: str = "0.05", contract: dict[str, str] | None = None
) -> dict[str, Any]:
    """A certificate about the claims, with the hash over its content."""
    content: dict[str, Any] = {
        "schema_version": 1,
        "model": {"file": "model/model.fp32.onnx", "sha256": "ab" * 32},
        "property": {"norm": "linf", "epsilon": epsilon, "clip": [0.0, 1.0]},
        "contract": contract or CONTRACT,
        "data": {"name": "digits", "split": "test", "samples": len(rows), "inputs_sha256": "cd" * 32, "classes": names},
        "void": "",
        "claims": rows,
    }
    hashed = {**content, "claims": [{key: value for key, value in row.items() if key != "time_ms"} for row in rows]}
    return {"certificate_sha256": sha256_bytes(canonical_json(hashed)), **content}


def write(path: Path, content: Any) -> None:
    """Writes JSON, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def latency(seed: int, middle: float) -> dict[str, Any]:
    """One latency file: a peak, a shoulder and a few slow runs."""
    random = np.random.default_rng(seed)
    samples = middle * (1 + np.abs(random.normal(0, 0.04, 400)))
    samples[::17] *= 1.25
    samples[::97] *= 2.2
    return {
        "schema_version": 1,
        "model": "x.onnx",
        "runtime": "onnxruntime",
        "runtime_version": "1.31.0",
        "threads_intra_op": 1,
        "batch": 1,
        "warmup_runs": 50,
        "runs": 400,
        "machine": {"processor": "a processor", "cores_usable": 2, "memory_bytes": 8 * 2**30},
        "samples_ms": [round(float(s), 5) for s in samples],
    }


def layer(name: str, kind: str, before: list[int], after: list[int] | None, positions: int) -> dict[str, Any]:
    """One row of the layer table."""
    one, two = int(np.prod(before)), int(np.prod(after)) if after else 0
    return {
        "name": name,
        "type": kind,
        "shape_before": before,
        "shape_after": after,
        "weights_before": one,
        "weights_after": two,
        "nonzero_after": two,
        "macs_before": one * positions,
        "macs_after": two * positions,
        "bytes_before": 4 * one,
        "bytes_after": 4 * two,
    }


def history(seed: int, final: float, density: float) -> list[dict[str, Any]]:
    """Thirty epochs that get better, with a growing epsilon."""
    random = np.random.default_rng(seed)
    return [
        {
            "epoch": e,
            "loss": round(2.3 * 0.9**e + 0.2, 4),
            "clean": round(min(1.0, 0.4 + final * e / 50 + float(random.uniform(0, 0.02))), 4),
            "certified": round(final * min(1.0, 0.3 + e / 30), 4),
            "density": density,
            "epsilon": round(0.05 * min(1.0, e / 10), 4),
            "seconds": 0.4,
        }
        for e in range(30)
    ]


def make_artifact(directory: Path, per_class: list[int] | None = None, names: list[str] | None = None, **options: Any) -> Path:
    """Writes a whole artifact and returns its directory; `epsilon`, `contract`, `counterexamples` (how many) and `channels` can be set."""
    per_class = [36] * 10 if per_class is None else per_class
    names = [str(i) for i in range(len(per_class))] if names is None else names
    epsilon = options.get("epsilon", "0.05")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "recipe.toml").write_text(
        'name = "digits"\ndescription = "8x8 handwritten digits"\n[data]\nname = "digits"\n[train]\nobjective = "ibp"\n'
    )
    (directory / "target.toml").write_text('name = "local"\ndescription = "this machine, ONNX Runtime on the CPU"\n')
    sparse, dense = claims(per_class, 1), claims(per_class, 2)
    write(directory / "certificate" / "certificate.json", certificate(sparse, names, epsilon, options.get("contract")))
    write(directory / "certificate" / "dense" / "certificate.json", certificate(dense, names, epsilon, options.get("contract")))
    radii = [0.01 * i for i in range(11)]
    write(
        directory / "certificate" / "curve.json",
        {
            kind: [
                {
                    "epsilon": f"{e:.2f}",
                    "epsilon_value": e,
                    "clean_accuracy": 0.97,
                    "attacked_accuracy": round(0.97 - drop / 2 * e**1.3, 4),
                    "certified_accuracy": round(0.97 - drop * e**1.3, 4),
                }
                for e in radii
            ]
            for kind, drop in (("sparse", 7.0), ("dense", 5.0))
        }
        | {"samples": 360},
    )
    amount, channels = options.get("counterexamples", 14), options.get("channels", 1)
    random = np.random.default_rng(3)
    originals = random.uniform(0, 1, (amount, channels, 8, 8)).astype(np.float32)
    perturbed = np.clip(originals + 0.05 * random.choice([-1.0, 1.0], originals.shape), 0, 1).astype(np.float32)
    labels = np.arange(amount, dtype=np.int64) % len(per_class)
    arrays = {
        "ids": np.arange(amount, dtype=np.int64),
        "inputs": perturbed,
        "originals": originals,
        "labels": labels,
        "predictions": (labels + 1) % len(per_class),
    }
    np.savez(directory / "certificate" / "counterexamples.npz", **(arrays if amount else {}))  # type: ignore[arg-type]  # numpy's stub
    write(
        directory / "certificate" / "cross_check.json",
        {"samples": 16, "max_excess": 1.2e-9, "tolerance": 1e-4, "violations": 0, "passed": True},
    )
    write(
        directory / "certificate" / "audit.json",
        {"points": 5000, "violations": 0, "passed": True, "largest_error": 3.4e-7, "bound": 1.1e-5},
    )
    layers = [
        layer("conv1", "Conv", [16, 1, 3, 3], [6, 1, 3, 3], 64),
        layer("conv2", "Conv", [16, 16, 3, 3], [7, 6, 3, 3], 64),
        layer("fc1", "Gemm", [128, 1024], [40, 448], 1),
        layer("fc2", "Gemm", [10, 128], [10, 40], 1),
        layer("gone", "Gemm", [10, 10], None, 1),
    ]
    before, after = (sum(row[f"weights_{when}"] for row in layers) for when in ("before", "after"))
    write(
        directory / "compress" / "layers.json",
        {
            "rows": layers,
            "removed_share": 1 - after / before,
            "reductions": [{"layer": "fc1", "kind": "dead_unit", "count": 12, "exactness": "exact"}],
            "equality": {"rational_inputs": 2, "rational_equal": True, "max_difference": 0.0, "within_bound": True},
            "proof": "equal: only terms that are exactly zero were removed",
        },
    )
    write(directory / "train" / "history.json", {"sparse": history(1, 0.9, 0.2)})
    write(directory / "train" / "dense" / "history.json", {"dense": history(2, 0.93, 1.0)})
    write(
        directory / "profile" / "onnxruntime-fp32.json",
        {"schema_version": 1, "method": "alternating blocks", "dense": latency(1, 0.110), "packed": latency(2, 0.041)},
    )
    write(
        directory / "gates.json",
        [
            {"name": "certified_accuracy", "wanted": "at least 80 %", "got": "88.3 %", "passed": True},
            {"name": "latency_ratio", "wanted": 0.5, "got": 0.37, "passed": True},
        ],
    )
    write_manifest(directory)
    return directory


def write_manifest(directory: Path) -> None:
    """Writes manifest.json with the hashes of all files that are there."""
    files = {
        str(path.relative_to(directory)): sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "report.html", "report.json")
    }
    write(
        directory / "manifest.json",
        {
            "schema_version": 1,
            "vsparse_version": "0.1.0",
            "created_utc": "2026-01-02T03:04:05Z",
            "tools": {"torch": "2.13.0", "onnxruntime": "1.31.0"},
            "seed": 0,
            "lineage": [
                {"stage": "train", "key": "12" * 32, "seconds": 31.2, "reused": False},
                {"stage": "verify", "key": "34" * 32, "seconds": 4.5, "reused": True},
            ],
            "files": files,
        },
    )
