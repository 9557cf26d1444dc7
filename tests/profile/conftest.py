"""A device folder of one small network in ONNX and in C, and a device on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from loopback import Loopback

from vsparse.artifact.device_folder import DeviceTiming
from vsparse.graph import Gemm, Graph, Relu
from vsparse.stages.export import DeployedSource, Probe, write_device_folder, write_onnx
from vsparse.stages.export.c_source.stage import write_c
from vsparse.target import load_target

QUICK = DeviceTiming(runs=20, seconds=0.05, warmup_ms=10)


def small_graph(hidden: int) -> Graph:
    rng = np.random.default_rng(3)
    shapes = {"w1": (hidden, 4), "b1": (hidden,), "w2": (3, hidden), "b2": (3,)}
    nodes = (
        Gemm(name="h", inputs=("input",), shape=(hidden,), weight="w1", bias="b1"),
        Relu(name="a", inputs=("h",), shape=(hidden,)),
        Gemm(name="y", inputs=("a",), shape=(3,), weight="w2", bias="b2"),
    )
    return Graph("input", (4,), nodes, "y", {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


@pytest.fixture(scope="session")
def device_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished device folder: packed and dense in ONNX, and packed in C, each with one probe."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("model", "dense"):
        write_onnx(small_graph(8 if name == "model" else 64), folder / f"{name}.fp32.onnx", 17, {})
    assert write_c(folder / "model.fp32.onnx", "t")
    x = np.random.default_rng(1).random(4, dtype=np.float32)
    session = onnxruntime.InferenceSession(str(folder / "model.fp32.onnx"), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"input": x[None]})[0][0].astype(float)
    probe = Probe(x, logits - 1e-4, logits + 1e-4)
    write_device_folder(
        folder / "device",
        {"packed": folder / "model.fp32.onnx", "dense": folder / "dense.fp32.onnx"},
        load_target("local"),
        "c" * 64,
        timing=QUICK,
        probes={"packed": [probe]},
        sources=[DeployedSource("sequential", folder / "model.c", folder / "model.fp32.onnx", "vsparse", probes=[probe])],
    )
    return folder / "device"


@pytest.fixture
def folder(device_folder: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(device_folder, tmp_path / "artifact" / "device"))


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    (tmp_path / "there").mkdir()
    device = Loopback(tmp_path / "there")
    monkeypatch.setenv("VSPARSE_SSH", device.command)
    yield device
    device.close()
