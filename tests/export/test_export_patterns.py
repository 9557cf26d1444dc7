"""What zeros form in a file, and who leaves them out: small networks with weights made by hand, for each runtime and form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from vsparse.artifact.choice import WeightPattern
from vsparse.artifact.forms import BY_NAME
from vsparse.graph import from_torch, to_onnx
from vsparse.graph.from_onnx import from_onnx
from vsparse.recipe import Sparse
from vsparse.stages.export.patterns import float_layers, weight_pattern
from vsparse.stages.export.quantise import layers_in_float, quantise
from vsparse.target import load_target

HALVED = np.tile(np.array([[1.0, 0.0, 0.0, 1.0]], np.float32), (8, 4))
# 2:4 too, but two rows in turn have their weights where the other has none.
ALTERNATING = np.where(np.arange(8)[:, None] % 2, 1 - HALVED, HALVED)
DENSE = np.ones((8, 16), np.float32)
TENTH = (np.arange(128).reshape(8, 16) < 13).astype(np.float32)  # side by side, so that some four in a row hold more than two


def written(path: Path, first: NDArray[np.float32]) -> Path:
    """A network of two layers, the first with these weights [8, 16] and the second dense."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        network[1].weight.copy_(torch.from_numpy(first))
    path.write_bytes(to_onnx(from_torch(network, (1, 4, 4))).SerializeToString())
    return path


def of(path: Path, form: str, contract: str, granularity: str, target: str) -> WeightPattern:
    sparse = Sparse.model_validate({"granularity": granularity}) if granularity else None
    return weight_pattern(path, BY_NAME[form], contract, sparse, load_target(target))


@pytest.mark.parametrize(
    ("first", "granularity", "pattern", "density"),
    [
        (HALVED, "2:4", "2:4 in 1 of 2 layers", 1 - 64 / 152),
        (TENTH, "element", "single weights", (13 + 24) / 152),
        (TENTH, "block", "blocks of 8×1", (13 + 24) / 152),
        (DENSE, "element", "dense", 1.0),
        (DENSE, "channel", "whole channels, which are absent", 1.0),
        (DENSE, "", "dense", 1.0),
        (np.zeros_like(DENSE), "element", "single weights", 24 / 152),  # no weights at all have no pattern that a kernel could use
    ],
)
def test_the_pattern_is_that_of_the_file(
    tmp_path: Path, first: NDArray[np.float32], granularity: str, pattern: str, density: float
) -> None:
    found = of(written(tmp_path / "m.onnx", first), "sparse", "fp32", granularity, "local")
    assert found.pattern == pattern
    assert found.density == pytest.approx(density, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "form", "contract", "target", "used", "by"),
    [
        (HALVED, "fp16", "fp16-accumulate", "jetson-orin-nano", True, "TensorRT may use its 2:4 kernels (--sparsity=enable)"),
        (HALVED, "int8", "int8-tensorrt", "jetson-orin-nano", True, "TensorRT may use its 2:4 kernels (--sparsity=enable)"),
        (HALVED, "sparse", "fp32", "jetson-orin-nano", False, "2:4 kernels multiply no float32 numbers, and TF32 is off"),
        (HALVED, "fp16", "fp16-accumulate", "jetson-xavier-nx", False, "the GPU of jetson-xavier-nx has no 2:4 kernels"),
        (HALVED, "fp16", "fp16", "local", False, "ONNX Runtime multiplies zeros too"),
        (TENTH, "int8", "int8-tensorrt", "jetson-orin-nano", False, "TensorRT multiplies zeros too"),
        (TENTH, "sequential", "sequential", "local", True, "its kernels skip zeros in 1 of 2 layers"),
        (HALVED, "sequential", "sequential", "local", True, "its kernels skip zeros in 1 of 2 layers"),
        (ALTERNATING, "sequential", "sequential", "local", False, "too few zeros to skip"),
        (DENSE, "sequential", "sequential", "local", False, "nothing to skip"),
        (DENSE, "sparse", "fp32", "local", False, "nothing to skip"),
    ],
)
def test_who_leaves_zeros_out(
    tmp_path: Path, first: NDArray[np.float32], form: str, contract: str, target: str, used: bool, by: str
) -> None:
    found = of(written(tmp_path / "m.onnx", first), form, contract, "2:4", target)
    assert (found.used, found.by) == (used, by)


@pytest.mark.parametrize("floats", [(), ("first",), ("last",)])
def test_layers_of_an_int8_file_in_float32_are_named(tmp_path: Path, floats: tuple[str, ...]) -> None:
    graph = from_onnx(written(tmp_path / "m.onnx", DENSE))
    stay = layers_in_float(graph, floats)
    made = quantise(graph, np.random.default_rng(0).random((16, 1, 4, 4), np.float32), floats=stay)
    (tmp_path / "m.onnx").write_bytes(to_onnx(made).SerializeToString())
    found = of(tmp_path / "m.onnx", "int8", "int8", "element", "local")
    assert found.float_layers == ()
    assert found.told == found.by
    # Without such layers the table has the bytes that it had before there were any.
    assert "float_layers" not in found.model_dump(mode="json")
    named = found.model_copy(update={"float_layers": float_layers(tmp_path / "m.onnx")})
    assert set(named.float_layers) == stay
    assert named.told == (f"{found.by}; in float32: {', '.join(stay)}" if stay else found.by)
    assert WeightPattern.model_validate_json(named.model_dump_json()) == named
