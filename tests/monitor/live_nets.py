"""A small network with a live certificate, and an artifact of it: enough for what certifies frames, and nothing more."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vsparse.artifact import write_manifest
from vsparse.artifact.document import write_document
from vsparse.artifact.forms import INT8_C
from vsparse.artifact.live import LIVE
from vsparse.data import Dataset
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.ir import Conv, Gemm, Graph, MaxPool, Relu, Reshape, Sigmoid
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import load_recipe
from vsparse.stages.export import write_onnx
from vsparse.stages.export.c_live import emit_live_int8_c
from vsparse.stages.export.quantise import quantise
from vsparse.stages.verify.live import record_live

SHAPE = (1, 6, 6)
EPSILON = "0.02"


def live_net(seed: int = 0, last: str = "") -> Graph:
    """A convolution, a pool and a linear layer on [1, 6, 6] with 3 classes; `last` may be Sigmoid, which has no interval form in C."""
    rng = np.random.default_rng(seed)
    params = {
        "w": rng.normal(size=(3, 1, 3, 3)).astype(np.float32),
        "b": rng.normal(size=3).astype(np.float32),
        "v": rng.normal(size=(3, 12)).astype(np.float32),
        "c": rng.normal(size=3).astype(np.float32),
    }
    nodes = [
        Conv(name="conv", inputs=("x",), shape=(3, 4, 4), weight="w", bias="b", groups=1),
        Relu(name="relu", inputs=("conv",), shape=(3, 4, 4)),
        MaxPool(name="pool", inputs=("relu",), shape=(3, 2, 2), kernel=(2, 2), stride=(2, 2)),
        Reshape(name="flat", inputs=("pool",), shape=(12,)),
        Gemm(name="fc", inputs=("flat",), shape=(3,), weight="v", bias="c"),
    ]
    if last:
        nodes.append(Sigmoid(name="squash", inputs=("fc",), shape=(3,)))
    return Graph(input="x", input_shape=SHAPE, nodes=tuple(nodes), output=nodes[-1].name, params=params)


def frames(count: int, seed: int = 1) -> np.ndarray:
    """Random frames within the data range."""
    return np.random.default_rng(seed).random((count, *SHAPE)).astype(np.float32)


def live_artifact(folder: Path, count: int = 40, int8: bool = False, budget: int = 0) -> Path:
    """Writes recipe, model, live record and manifest, and returns the directory; with `int8` the quantised network too, as file and C."""
    recipe = load_recipe("digits", [f"property.epsilon='{EPSILON}'", "deploy.live=true", f"deploy.live_budget={budget}"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(recipe.to_toml())
    model = folder / "model" / "model.fp32.onnx"
    write_onnx(live_net(), model, 17, {})
    dataset = Dataset(frames(count), 1.0, np.zeros(count, np.int64), tuple("abc"), None)
    asked = PerturbationSet(epsilon=EPSILON)
    quantised = folder / INT8_C.model if int8 else None
    if quantised is not None:
        write_onnx(quantise(live_net(), frames(64, 3)), quantised, 17, {})
        emit_live_int8_c(from_onnx(quantised), second=budget > 0).write(quantised.parent)
    record = record_live(model, dataset, asked, dataset, range(count), int8=quantised, compiled=False, budget=budget)
    write_document(folder / LIVE, record)
    write_manifest(folder, seed=0, until="report", road_key="0" * 64, lineage=[])
    return folder
