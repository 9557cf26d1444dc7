"""Small artifacts that record live verdicts, as a build with deploy.live writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from check_artifacts import build, graph_of, samples, sign

from vsparse.artifact.document import write_document
from vsparse.artifact.live import LIVE
from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.export import write_onnx
from vsparse.stages.export.c_live import emit_live_int8_c
from vsparse.stages.export.quantise import quantise
from vsparse.stages.verify import certify, write_certificate
from vsparse.stages.verify.live import record_live


def live_artifact(folder: Path, kind: str = "plain", epsilon: str = "0.01", count: int = 24, int8: bool = False, budget: int = 0) -> Path:
    """Writes an artifact of random samples with its live record (by the simulation: the bits of the C), and returns its directory.

    With `int8` it has a quantised network beside, its certificates and a record of it; with a `budget` a recipe that gives it.
    """
    build(folder, kind, epsilon=epsilon, count=count)
    x, labels = samples(graph_of(kind), count)
    dataset = Dataset(x, 1.0, labels, tuple("abcd"), None)
    held = np.load(folder / "certificate" / "inputs.npz")["ids"].tolist()
    asked, quantised = PerturbationSet(epsilon=epsilon), folder / "model" / "model.int8.onnx" if int8 else None
    if quantised is not None:
        _write_int8(folder, quantised, kind, dataset, asked)
    model = folder / "model" / "model.fp32.onnx"
    write_document(folder / LIVE, record_live(model, dataset, asked, dataset, held, int8=quantised, compiled=False, budget=budget))
    if budget:
        (folder / "recipe.toml").write_text(f"[deploy]\nlive = true\nlive_budget = {budget}\n")
    return sign(folder)


def _write_int8(folder: Path, path: Path, kind: str, dataset: Dataset, asked: PerturbationSet) -> None:
    """Writes the quantised network as a file and as C, and the certificates of both."""
    graph = quantise(graph_of(kind), samples(graph_of(kind), 64, 1)[0])
    write_onnx(graph, path, 17, {})
    emit_live_int8_c(graph).write(path.parent)
    settings = Verify(contract="int8", methods=("interval", "crown-ibp"), attack_steps=2, attack_restarts=1)
    made = certify(path, dataset, asked, contract("int8"), settings, file="model/model.int8.onnx", data_name="random")
    ids = np.array([claim.id for claim in made.claims if claim.verdict != "falsified"])
    for name in ("int8", "int8/c"):
        write_certificate(folder / "certificate" / name / "certificate.json", made)
        np.savez(folder / "certificate" / name / "inputs.npz", ids=ids, inputs=dataset.pixels[ids])


def changed(folder: Path, **values: object) -> Path:
    """Replaces values of the record, and signs; a key `frames.NAME` is of the first certified verdict."""
    content = json.loads((folder / LIVE).read_text())
    first = next(frame for frame in content["frames"] if frame["certified"])
    for key, value in values.items():
        (first if key in first else content)[key] = value
    (folder / LIVE).write_text(json.dumps(content))
    return sign(folder)
