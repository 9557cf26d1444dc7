"""The stage's files: the weights by name are those of the graph that is packed, or nothing is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vsparse.artifact.stage_files import LAYERS, MASKS, PACKED, TRAINED, WEIGHTS, read_tensors, write_graph, write_tensors
from vsparse.data import Dataset, Splits
from vsparse.errors import InputError
from vsparse.graph import from_torch
from vsparse.networks import make
from vsparse.recipe import Network, load_recipe
from vsparse.stages.compress.task import compress_trained


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    graph = from_torch(make(Network(architecture="mlp", width=0.1), (1, 4, 4), 3), (1, 4, 4))
    folder = tmp_path / "trained"
    folder.mkdir()
    write_graph(graph, folder / TRAINED)
    write_tensors(folder / WEIGHTS, graph.params)
    write_tensors(folder / MASKS, {name: np.ones(value.shape, np.uint8) for name, value in graph.params.items() if value.ndim > 1})
    return folder


def packed(trained: Path, output: Path) -> Path:
    rng = np.random.default_rng(0)
    data = Dataset(rng.integers(0, 255, (20, 1, 4, 4)).astype(np.uint8), 255.0, np.zeros(20, np.int64), ("a", "b", "c"), None)
    compress_trained(trained, output, load_recipe("digits"), Splits(data, data, data, "t", "0" * 64))
    return output


def test_what_training_wrote_is_packed(trained: Path, tmp_path: Path) -> None:
    folder = packed(trained, tmp_path)
    assert (folder / PACKED).is_file()
    assert (folder / LAYERS).is_file()


def test_weights_that_differ_in_a_bit_or_a_name_are_refused(trained: Path, tmp_path: Path) -> None:
    weights = read_tensors(trained / WEIGHTS)
    name = next(iter(weights))
    moved = {**weights, name: np.nextafter(weights[name], np.float32(np.inf))}
    for other in (moved, {**weights, "more": weights[name]}, {key: value for key, value in weights.items() if key != name}):
        write_tensors(trained / WEIGHTS, other)
        with pytest.raises(InputError, match=r"weights\.safetensors holds other weights than trained\.onnx beside it; train again"):
            packed(trained, tmp_path)
    assert not (tmp_path / PACKED).exists()


@pytest.mark.parametrize("name", [WEIGHTS, MASKS])
def test_a_damaged_file_is_one_sentence(trained: Path, tmp_path: Path, name: str) -> None:
    (trained / name).write_bytes((trained / name).read_bytes()[:20])
    with pytest.raises(InputError, match=rf"{name.partition('.')[0]} .*{name} cannot be read: .*train again") as error:
        packed(trained, tmp_path)
    assert "\n" not in str(error.value)
