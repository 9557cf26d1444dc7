"""Architectures: shapes, widths, normalisation, and functions of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vsparse.errors import InputError
from vsparse.graph import from_torch, parameter_count, run, weight_count
from vsparse.graph.ir import AveragePool, BatchNorm, Conv, MaxPool
from vsparse.networks import ARCHITECTURES, descriptions, make
from vsparse.recipe import Network

WIDTH = {"vgg16": 0.03, "resnet18": 0.06, "wrn-28-4": 0.06}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 4, 5)])
def test_every_architecture_maps_images_to_logits_and_its_graph_computes_the_same(name: str, shape: tuple[int, int, int]) -> None:
    module = make(Network(architecture=name, width=WIDTH.get(name, 0.125)), shape, 7, seed=3).eval()
    x = torch.rand(3, *shape)
    with torch.no_grad():
        logits = module(x)
        graph = from_torch(module, shape)
        assert logits.shape == (3, 7)
        torch.testing.assert_close(run(graph, graph.tensors(), x), logits, rtol=1e-4, atol=1e-5)


def test_cnn4_on_mnist_has_the_published_weight_count() -> None:
    graph = from_torch(make(Network(), (1, 28, 28), 10), (1, 28, 28))
    assert weight_count(graph) == 16 * 16 + 32 * 16 * 16 + 32 * 49 * 100 + 100 * 10


PUBLISHED = {
    # Parameters with biases, scales and shifts of batch norms, ten classes.
    ("lenet-300-100", (1, 28, 28)): 266_610,  # Frankle and Carbin, arXiv 1803.03635, figure 2: 266K
    ("cnn7", (3, 32, 32)): 17_191_114,  # Shi et al., NeurIPS 2021: 17.2 M
    ("resnet18", (3, 32, 32)): 11_173_962,  # 11.17 M
    ("vgg16", (3, 32, 32)): 14_724_042,  # 14.7 M; without the biases that a batch norm takes away again
    ("wrn-28-4", (3, 32, 32)): 5_849_050,  # Zagoruyko and Komodakis, arXiv 1605.07146: 5.8 M
}


@pytest.mark.parametrize(("name", "shape"), PUBLISHED)
def test_parameter_counts_at_full_width_are_the_published_ones(name: str, shape: tuple[int, int, int]) -> None:
    module = make(Network(architecture=name), shape, 10)
    assert sum(value.numel() for value in module.parameters()) == PUBLISHED[name, shape]
    graph = from_torch(module, shape)
    statistics = sum(2 * node.shape[0] for node in graph.nodes if isinstance(node, BatchNorm))
    assert parameter_count(graph) - statistics == PUBLISHED[name, shape]


@pytest.mark.parametrize(("plain", "normed"), [("cnn4", "cnn4-bn"), ("cnn5-plain", "cnn5"), ("cnn7-plain", "cnn7")])
def test_the_variants_differ_in_batch_norm_alone(plain: str, normed: str) -> None:
    kinds = []
    for name in (plain, normed):
        graph = from_torch(make(Network(architecture=name, width=0.1), (1, 8, 8), 10), (1, 8, 8))
        kinds.append([(type(node).__name__, node.shape) for node in graph.nodes if not isinstance(node, BatchNorm)])
        convolutions = sum(isinstance(node, Conv) for node in graph.nodes)
        assert sum(isinstance(node, BatchNorm) for node in graph.nodes) == (convolutions if name == normed else 0)
    assert kinds[0] == kinds[1]


def test_shapes_inside_the_larger_ones() -> None:
    def sides(name: str, shape: tuple[int, int, int]) -> list[int]:
        graph = from_torch(make(Network(architecture=name, width=0.02), shape, 10), shape)
        maps = [node.shape[1] for node in graph.nodes if isinstance(node, Conv | MaxPool | AveragePool)]
        return sorted(set(maps), reverse=True)

    assert sides("resnet18", (3, 32, 32)) == [32, 16, 8, 4, 1]
    assert sides("wrn-28-4", (3, 32, 32)) == sides("mobile", (3, 32, 32)) == [32, 16, 8, 1]
    assert sides("vgg16", (3, 32, 32)) == [32, 16, 8, 4, 2, 1]
    assert sides("vgg16", (1, 28, 28)) == [28, 14, 7, 3, 1]
    assert sides("mobile", (1, 28, 28)) == [28, 14, 7, 1]


def test_width_multiplies_every_hidden_count_and_never_reaches_zero() -> None:
    wide = make(Network(width=2.0), (1, 8, 8), 10)
    assert [wide.get_submodule(name).weight.shape[0] for name in ("conv1", "conv2", "fc1", "logits")] == [32, 64, 200, 10]
    thin = make(Network(width=0.001), (1, 8, 8), 10)
    assert [thin.get_submodule(name).weight.shape[0] for name in ("conv1", "conv2", "fc1", "logits")] == [1, 1, 1, 10]


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (make(Network(architecture="mlp"), (1, 4, 4), 3, seed=seed) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert torch.equal(first.get_submodule("fc1").weight, again.get_submodule("fc1").weight)
    assert not torch.equal(first.get_submodule("fc1").weight, other.get_submodule("fc1").weight)


def test_normalisation_comes_first_and_is_the_textbook_one() -> None:
    module = make(Network(architecture="mlp", width=0.05), (3, 2, 2), 2, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    x = torch.rand(4, 3, 2, 2)
    mean, std = torch.tensor([0.5, 0.25, 0.0]).view(3, 1, 1), torch.tensor([0.5, 0.25, 2.0]).view(3, 1, 1)
    torch.testing.assert_close(module.get_submodule("normalise")(x), (x - mean) / std)
    graph = from_torch(module, (3, 2, 2))
    assert [type(node).__name__ for node in graph.nodes[:2]] == ["AddConstant", "MulConstant"]
    assert all(value.dtype == np.float32 for value in graph.params.values())


def test_normalisation_with_the_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(InputError, match="one value per channel"):
        make(Network(), (3, 32, 32), 10, mean=(0.5, 0.5), std=(1.0, 1.0))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match='did you mean "cnn4"'):
        make(Network(architecture="cmn4"), (1, 8, 8), 10)


def test_an_input_too_small_is_refused() -> None:
    with pytest.raises(InputError, match="at least 4 pixels"):
        make(Network(), (1, 2, 2), 10)


def test_descriptions_are_one_line_each() -> None:
    assert set(descriptions()) == set(ARCHITECTURES)
    assert all(text and "\n" not in text and len(text) < 120 for text in descriptions().values())


def test_the_reference_lists_every_name() -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "reference-cli.md"
    if not page.exists():
        pytest.skip("the documents are not beside the tests")
    text = page.read_text(encoding="utf-8")
    assert [name for name in ARCHITECTURES if f"`{name}`" not in text] == []


OWN = """
from torch import nn
def good(input_shape, classes, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], classes))
def wrong_shape(input_shape, classes, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes + 1))
def no_module(input_shape, classes, width):
    return 5
def raises(input_shape, classes, width):
    raise RuntimeError("out of ideas")
def two_arguments(input_shape, classes):
    return good(input_shape, classes, 1.0)
def calls_badly(input_shape, classes, width):
    return two_arguments(input_shape, classes, width)
class Wrong(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(7, classes)
    def forward(self, x):
        x = x.flatten(1)
        return self.head(x)
def wrong_forward(input_shape, classes, width):
    return Wrong(classes)
value = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_network.py").write_text(OWN)
    (tmp_path / "broken_network.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    for name in ("own_network", "broken_network"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("own")
def test_a_function_of_the_users_own_is_called() -> None:
    before = list(sys.path)
    module = make(Network(architecture="own_network:good"), (1, 4, 4), 3)
    assert module(torch.zeros(2, 1, 4, 4)).shape == (2, 3)
    assert sys.path == before


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own_network:absent", "absent"),
        ("no_such_module_here:make", "no_such_module_here"),
        ("broken_network:make", "a_package_that_is_not_there"),
        ("own_network:value", "not a function"),
        ("own_network:wrong_shape", "not to"),
        ("own_network:no_module", "torch.nn.Module"),
        ("own_network:raises", r"failed for the input shape .* RuntimeError: out of ideas, at own_network.py, line 10"),
        ("own_network:two_arguments", r"cannot be called .* must take \(input_shape, classes, width\)"),
        ("own_network:calls_badly", r"failed .*: TypeError: two_arguments\(\) takes 2 .*, at own_network.py, line 14$"),
        (
            "own_network:wrong_forward",
            r"the forward of Wrong fails .*\[2, 1, 4, 4\]: RuntimeError: mat1 and mat2 .*own_network.py, line 21$",
        ),
        (":", "cannot be imported"),
    ],
)
def test_a_function_that_cannot_be_used_is_one_sentence(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        make(Network(architecture=name), (1, 4, 4), 3)
    assert "\n" not in str(caught.value)
    # An error inside the user's code is not told as a wrong signature.
    assert ("it must take" in str(caught.value)) == name.endswith("two_arguments")
