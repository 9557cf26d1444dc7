"""Hard queries about generated networks, one kind after the other: each is a model file and a property file, from a seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vsparse.graph import from_torch, run, to_onnx

Made = tuple[nn.Module, Tensor, Tensor, str]


def deep(dice: np.random.Generator) -> Made:
    """A deep ReLU network of 8 to 12 inputs on a large box."""
    inputs, width = int(dice.integers(8, 13)), int(dice.integers(30, 60))
    return _mlp(inputs, [width] * int(dice.integers(5, 8)), 2, nn.ReLU), *_ball(dice, (inputs,), 1.5), "real"


def wide(dice: np.random.Generator) -> Made:
    """A network of 200 inputs and three hidden layers."""
    return _mlp(200, [int(dice.integers(200, 500))] * 3, 4, nn.ReLU), *_ball(dice, (200,), 0.15), "fp32"


def convolution(dice: np.random.Generator) -> Made:
    """A convolutional network of several hundred thousand weights on a ball around an image."""
    channels = int(dice.integers(16, 33))
    net = nn.Sequential(
        nn.Conv2d(3, channels, 3, 2, 1), nn.ReLU(), nn.Conv2d(channels, 2 * channels, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(128 * channels, 100), nn.ReLU(), nn.Linear(100, 5),
    )  # fmt: skip
    return net, *_ball(dice, (3, 32, 32), float(dice.uniform(0.005, 0.05))), "fp32"


class AsImage(nn.Module):
    """Reads a row of numbers as an image of 32 by 32 pixels in three colours."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 3, 32, 32)


def bias_field(dice: np.random.Generator) -> Made:
    """Sixteen inputs that an affine layer spreads over an image, which a convolutional network reads: few inputs, many ReLUs."""
    net = nn.Sequential(
        nn.Linear(16, 3 * 32 * 32), AsImage(), nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1024, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    return net, *_ball(dice, (16,), float(dice.uniform(0.05, 0.3))), "fp32"


def heavy(dice: np.random.Generator) -> Made:
    """Few inputs and large maps: what keeps a row for each unstable ReLU needs gigabytes."""
    net = nn.Sequential(
        nn.Linear(12, 3 * 32 * 32), AsImage(), nn.Conv2d(3, 48, 3, 1, 1), nn.ReLU(), nn.Conv2d(48, 64, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(64, 32, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10),
    )  # fmt: skip
    return net, *_ball(dice, (12,), float(dice.uniform(0.05, 0.3))), "fp32"


def many_boxes(dice: np.random.Generator) -> Made:
    """A network of 5 inputs whose property names hundreds of boxes."""
    return _mlp(5, [50] * 5, 5, nn.ReLU), *_ball(dice, (5,), 1.0), "fp32"


def controller(dice: np.random.Generator) -> Made:
    """A tanh controller."""
    inputs = int(dice.integers(4, 13))
    return _mlp(inputs, [int(dice.integers(20, 80))] * 3, 2, nn.Tanh), *_ball(dice, (inputs,), 1.0), "fp32"


def rounding(dice: np.random.Generator) -> Made:
    """A network for which large terms cancel, so that the order of a sum decides, on a small box."""
    net = _mlp(6, [64, 64], 2, nn.ReLU)
    with torch.no_grad():
        last = net[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(1e5)
    return net, *_ball(dice, (6,), 1e-4), "fp32"


def decimals(dice: np.random.Generator) -> Made:
    """A convolutional network most of whose inputs are fixed at decimals that no float32 number equals."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, 1, 2), nn.ReLU(), nn.Conv2d(16, 16, 5, 1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 400, 30),
        nn.ReLU(), nn.Linear(30, 1),
    )  # fmt: skip
    lower, upper = _ball(dice, (1, 20, 20), 0.1)
    fixed = torch.from_numpy(dice.random(lower.shape) < 0.95)
    return net, torch.where(fixed, (lower + upper) / 2, lower), torch.where(fixed, (lower + upper) / 2, upper), "fp32"


KINDS: dict[str, Callable[[np.random.Generator], Made]] = {
    kind.__name__: kind for kind in (deep, wide, convolution, bias_field, heavy, many_boxes, controller, rounding, decimals)
}
BOXES = 300


def write_query(folder: Path, kind: str, seed: int) -> tuple[Path, Path, str]:
    """Writes model.onnx and property.vnnlib; returns both paths and the contract to ask under.

    The property asks for an output below what sampling attains: by how much is drawn too, so that all verdicts occur.
    """
    dice = np.random.default_rng([seed, *kind.encode()])
    torch.manual_seed(seed)
    net, lower, upper, contract = KINDS[kind](dice)
    graph = from_torch(net, tuple(lower.shape))
    folder.mkdir(parents=True, exist_ok=True)
    model, prop = folder / "model.onnx", folder / "property.vnnlib"
    model.write_bytes(to_onnx(graph).SerializeToString())
    points = lower + torch.rand(500, *lower.shape) * (upper - lower)
    with torch.no_grad():
        outputs = run(graph, graph.tensors(torch.float32), points.float())
    assert isinstance(outputs, Tensor)
    least, middle = float(outputs[:, 0].min()), float(outputs[:, 0].mean())
    least -= float(dice.choice([0.0, 0.3, 1.0, 3.0])) * (middle - least)
    prop.write_text("\n".join(_lines(dice, kind, lower.flatten(), upper.flatten(), outputs.shape[1], least)))
    return model, prop, contract


def _lines(dice: np.random.Generator, kind: str, lower: Tensor, upper: Tensor, outputs: int, least: float) -> list[str]:
    lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))] + [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    if kind != "many_boxes":
        lines += [f"(assert (>= X_{i} {low:.9f}))(assert (<= X_{i} {high:.9f}))" for i, (low, high) in enumerate(_ends(lower, upper))]
        return [*lines, f"(assert (<= Y_0 {least:.9f}))"]
    cases = []
    for _ in range(BOXES):
        shares = torch.from_numpy(np.sort(dice.random((2, len(lower))), 0))
        part = _ends(lower + shares[0] * (upper - lower), lower + shares[1] * (upper - lower))
        box = "".join(f"(>= X_{i} {low:.9f})(<= X_{i} {high:.9f})" for i, (low, high) in enumerate(part))
        cases.append(f"(and {box}(<= Y_0 {least:.9f}))")
    return [*lines, "(assert (or " + "\n".join(cases) + "))"]


def _ends(lower: Tensor, upper: Tensor) -> list[tuple[float, float]]:
    return list(zip(lower.tolist(), upper.tolist(), strict=True))


def _ball(dice: np.random.Generator, shape: tuple[int, ...], radius: float) -> tuple[Tensor, Tensor]:
    centre = torch.from_numpy(dice.uniform(-1, 1, shape))
    return centre - radius, centre + radius


def _mlp(inputs: int, widths: list[int], outputs: int, activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        linear = nn.Linear(inputs, width)
        nn.init.normal_(linear.weight, std=1.5 / inputs**0.5)
        layers += [linear, activation()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
