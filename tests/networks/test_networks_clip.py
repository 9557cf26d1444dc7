"""Learned thresholds: what they compute, how they begin, and why they are two ReLUs inside one another."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vsparse.graph import from_torch
from vsparse.graph.ir import Conv
from vsparse.networks import make
from vsparse.networks.layers import LearnedThresholds
from vsparse.recipe import Network
from vsparse.stages.train.initialisation import initialise


def test_it_begins_as_clips_about_spread_centres() -> None:
    values = torch.tensor([0.0, 0.24, 0.25, 0.49, 0.51, 1.0])
    images = LearnedThresholds(1, 3)(values.view(1, 1, 1, 6)).detach()[0, :, 0]
    for image, centre in zip(images, (0.25, 0.5, 0.75), strict=True):
        torch.testing.assert_close(image, (20 * (values - centre) + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_images_of_one_channel_know_nothing_of_another() -> None:
    x = torch.rand(2, 3, 4, 4)
    clip = LearnedThresholds(3, 2)
    first = clip(x)
    assert first.shape == (2, 6, 4, 4)
    x[:, 1] = 0
    changed = (clip(x) != first).any(0).any(-1).any(-1)
    assert changed.tolist() == [False, False, True, True, False, False]


def test_intervals_through_a_steep_one_are_points_where_pixels_are_black_or_white() -> None:
    clip = LearnedThresholds(1, 1)
    with torch.no_grad():
        clip.rise.weight.fill_(-2.5)
        clip.rise.bias.fill_(1.75)  # type: ignore[union-attr]  # it has a bias

    @torch.no_grad()
    def interval(lower: float, upper: float) -> tuple[float, float]:
        centre, radius = torch.full((1, 1, 1, 1), (lower + upper) / 2), torch.full((1, 1, 1, 1), (upper - lower) / 2)
        for layer in (clip.rise, clip.fall):
            centre, radius = layer(centre), nn.functional.conv2d(radius, layer.weight.abs())
            low, high = torch.relu(centre - radius), torch.relu(centre + radius)
            centre, radius = (low + high) / 2, (high - low) / 2
        return low.item(), high.item()

    assert interval(0.0, 0.3) == pytest.approx((0, 0), abs=1e-6)
    assert interval(0.7, 1.0) == pytest.approx((1, 1), abs=1e-6)
    assert interval(0.2, 0.8) == pytest.approx((0, 1), abs=1e-6)


def test_the_initial_weights_of_training_leave_it_as_it_is_and_draw_all_else() -> None:
    graph = from_torch(make(Network(architecture="cnn4-clip", width=0.125), (1, 8, 8), 10), (1, 8, 8))
    params = graph.tensors()
    before = {name: value.clone() for name, value in params.items()}
    initialise(graph, params, torch.Generator().manual_seed(0), "interval")
    convolutions = [node for node in graph.nodes if isinstance(node, Conv)]
    assert [node.shape[0] for node in convolutions] == [2, 2, 2, 4]
    for node in convolutions[:2]:
        for name in node.params:
            assert torch.equal(params[name], before[name])
    for node in convolutions[2:]:
        assert not torch.equal(params[node.weight], before[node.weight])
