"""The fast interval bounds of training are those of `bounds.interval`: values and gradients, on every architecture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vsparse.bounds import interval
from vsparse.bounds.ball import Box
from vsparse.graph import from_torch, run
from vsparse.graph.ir import Affine, BatchNorm, Graph, Relu
from vsparse.networks import ARCHITECTURES, make
from vsparse.recipe import Network
from vsparse.stages.train.bounds import fast_interval as module
from vsparse.stages.train.bounds.fast_interval import blocks, fast_interval
from vsparse.stages.train.bounds.margins import Margins, training_box

Boxes = dict[str, Box]
LARGE = ("resnet18", "vgg16", "wrn", "mobile")


def net(name: str, channels: int = 2) -> Graph:
    side = ARCHITECTURES[name].least_side if name.startswith(LARGE) else 9
    shape = (channels, max(side, 8), max(side, 8))
    graph = from_torch(
        make(Network(architecture=name, width=0.03 if name.startswith(LARGE) else 0.1), shape, 4, mean=(0.4,), std=(0.3,), seed=3), shape
    )
    draws = torch.Generator().manual_seed(1)
    for node in graph.nodes:
        if isinstance(node, BatchNorm):  # statistics and scales, negative ones too, as after training
            count = graph.params[node.mean].shape[0]
            graph.params[node.mean] = (torch.rand(count, generator=draws) - 0.5).numpy()
            graph.params[node.variance] = (torch.rand(count, generator=draws) + 0.5).numpy()
            graph.params[node.scale] = (torch.rand(count, generator=draws) - 0.4).numpy()
    return graph


def bounded(graph: Graph, of: Callable[[Graph, dict[str, Tensor], Box], Boxes]) -> tuple[Boxes, dict[str, Tensor], Box]:
    """Returns the boxes with leaves that require gradients: params and both ends of the input."""
    draws = torch.Generator().manual_seed(2)
    params = {name: value.double().requires_grad_(True) for name, value in graph.tensors().items()}
    x = torch.rand(3, *graph.input_shape, generator=draws, dtype=torch.float64)
    lower, upper = (end.requires_grad_(True) for end in training_box(x, 0.03))
    return of(graph, params, (lower, upper)), params, (lower, upper)


def sum_of(boxes: Boxes, names: list[str]) -> Tensor:
    """Returns a scalar in which every end of every box counts differently; each box by its own scale, as bounds of deep nets explode."""
    draws = torch.Generator().manual_seed(4)
    total = torch.zeros((), dtype=torch.float64)
    for name in names:
        scale = boxes[name][1].detach().abs().max() + 1e-9
        for end in boxes[name]:
            total = total + (end / scale * torch.rand(end.shape, generator=draws, dtype=torch.float64)).mean()
    return total


@pytest.mark.parametrize("wanted", ["relu", "output"])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_values_and_gradients_are_those_of_the_one_definition(name: str, wanted: module.Wanted) -> None:
    graph = net(name)
    slow, slow_params, slow_box = bounded(graph, interval)
    fast, fast_params, fast_box = bounded(graph, lambda *arguments: fast_interval(*arguments, wanted))
    assert set(fast) <= set(slow)
    assert {graph.input, graph.output} <= set(fast)
    if wanted == "relu":
        first = next(node for node in graph.nodes if isinstance(node, Affine))
        assert {first.inputs[0], *(node.inputs[0] for node in graph.nodes if isinstance(node, Relu))} <= set(fast)
    for key in fast:
        torch.testing.assert_close(fast[key], slow[key], rtol=1e-9, atol=1e-9)
    for boxes in (slow, fast):
        sum_of(boxes, sorted(fast)).backward()
    for key, value in slow_params.items():
        expected, found = value.grad, fast_params[key].grad
        assert (expected is None) == (found is None), key
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 + 1e-9 * float(expected.abs().max()), msg=key)
    for a, b in zip(fast_box, slow_box, strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


def test_all_is_every_activation() -> None:
    graph = net("cnn5")
    params = graph.tensors()
    box = training_box(torch.rand(2, *graph.input_shape), 0.1)
    assert set(fast_interval(graph, params, box, "all")) == {graph.input, *(node.name for node in graph.nodes)}


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = net("cnn4")
    found = []
    for size in (1, 2**30):
        monkeypatch.setattr(module, "PIECE", size)
        boxes, params, _ = bounded(graph, lambda *arguments: fast_interval(*arguments, "relu"))
        sum_of(boxes, sorted(boxes)).backward()
        found.append([params[name].grad for name in sorted(params) if params[name].requires_grad])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_the_order_of_large_columns_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = net("cnn5")
    found = []
    for size in (0, 2**30):  # the maps are put in the columns' order, or the columns in theirs
        monkeypatch.setattr(module, "CACHED", size)
        boxes, params, _ = bounded(graph, lambda *arguments: fast_interval(*arguments, "relu"))
        sum_of(boxes, sorted(set(boxes) & {graph.output})).backward()
        found.append([params[name].grad for name in sorted(params) if params[name].grad is not None])
    assert len(found[0]) > 4
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    assert any(bool((a != b).any()) for a, b in zip(*found, strict=True))


def test_an_activation_that_two_nodes_read_is_not_taken_into_a_block() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.relu, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Linear(48, 2)

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x)
            result: Tensor = self.last((z + self.relu(z)).flatten(1))
            return result

    graph = from_torch(Twice(), (1, 4, 4))
    conv = next(node for node in graph.nodes if isinstance(node, Affine))
    assert blocks(graph)[conv.name] == (None, None)
    params, box = graph.tensors(), training_box(torch.rand(2, 1, 4, 4), 0.1)
    slow, fast = interval(graph, params, box), fast_interval(graph, params, box, "output")
    torch.testing.assert_close(fast[graph.output], slow[graph.output])


def test_bounds_hold_at_random_points_and_corners_in_float32() -> None:
    graph = net("resnet-small")
    params = graph.tensors()
    lower, upper = training_box(torch.rand(3, *graph.input_shape), 0.05)
    boxes = fast_interval(graph, params, (lower, upper), "relu")
    for attempt in range(50):
        share = torch.rand_like(lower) if attempt % 2 else torch.randint(0, 2, lower.shape).float()
        values = run(graph, params, lower + share * (upper - lower), keep=True)
        for name, (low, high) in boxes.items():
            slack = 1e-5 * (1 + float(high.abs().max()))
            assert bool((values[name] >= low - slack).all()), name
            assert bool((values[name] <= high + slack).all()), name


@pytest.mark.parametrize("samples", [3, 40])  # few: the rows of each sample; many: all pairs of rows
def test_margins_from_both_sides_are_the_folded_last_layer(samples: int) -> None:
    graph = net("mlp")
    params = {name: value.double().requires_grad_(True) for name, value in graph.tensors().items()}
    x = torch.rand(samples, *graph.input_shape, dtype=torch.float64)
    labels = torch.arange(samples) % 4
    margins = Margins(graph)
    enclosure = margins.enclosure(params, training_box(x, 0.05))
    lower, upper = margins.both(params, enclosure, labels)
    assert margins.last is not None
    low, high = enclosure[margins.trunk.output]
    weight, bias = params[margins.last.weight], params[str(margins.last.bias)]
    rows, offset = weight[labels][:, None] - weight, bias[labels][:, None] - bias
    expected_lower = (rows.clamp(min=0) * low[:, None] + rows.clamp(max=0) * high[:, None]).sum(2) + offset
    expected_upper = (rows.clamp(min=0) * high[:, None] + rows.clamp(max=0) * low[:, None]).sum(2) + offset
    torch.testing.assert_close(lower, expected_lower)
    torch.testing.assert_close(upper, expected_upper)
    found = torch.autograd.grad((lower.sin() + upper.cos()).sum(), (weight, bias), retain_graph=True)
    expected = torch.autograd.grad((expected_lower.sin() + expected_upper.cos()).sum(), (weight, bias))
    torch.testing.assert_close(found, expected)
    assert bool((lower.gather(1, labels[:, None]) == 0).all())
