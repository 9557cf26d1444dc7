"""Small artifacts that record live verdicts, as a build with deploy.live writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from check_artifacts import build, graph_of, samples, sign

from vsparse.artifact.document import write_document
from vsparse.artifact.live import LIVE
from vsparse.data import Dataset
from vsparse.perturbation import PerturbationSet
from vsparse.stages.verify.live import record_live


def live_artifact(folder: Path, kind: str = "plain", epsilon: str = "0.01", count: int = 24) -> Path:
    """Writes an artifact of random samples with its live record (by the simulation: the bits of the C), and returns its directory."""
    build(folder, kind, epsilon=epsilon, count=count)
    x, labels = samples(graph_of(kind), count)
    dataset = Dataset(x, 1.0, labels, tuple("abcd"), None)
    held = np.load(folder / "certificate" / "inputs.npz")["ids"].tolist()
    record = record_live(folder / "model" / "model.fp32.onnx", dataset, PerturbationSet(epsilon=epsilon), dataset, held, compiled=False)
    write_document(folder / LIVE, record)
    return sign(folder)


def changed(folder: Path, **values: object) -> Path:
    """Replaces values of the record, and signs; a key `frames.NAME` is of the first certified verdict."""
    content = json.loads((folder / LIVE).read_text())
    first = next(frame for frame in content["frames"] if frame["certified"])
    for key, value in values.items():
        (first if key in first else content)[key] = value
    (folder / LIVE).write_text(json.dumps(content))
    return sign(folder)
