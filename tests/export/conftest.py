"""A device folder with one model, and the pretended Jetson that runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_folders import QUICK
from fake_device import FakeJetson
from test_export_runtime_graph import conv_graph

from vsparse.stages.export import write_device_folder, write_onnx
from vsparse.target import load_target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.fp32.onnx"
    write_onnx(conv_graph(), path, 17, {"recipe": "test"})
    return path


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    write_device_folder(tmp_path / "device", {"packed": model}, load_target("jetson-orin-nano"), "c" * 64, timing=QUICK)
    return tmp_path / "device"


@pytest.fixture
def jetson(tmp_path: Path) -> FakeJetson:
    (tmp_path / "jetson").mkdir()
    return FakeJetson(tmp_path / "jetson")
