"""What the host's bounds in float64 say of frames, and what the scripts that compare live verdicts with them have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.bounds import Rounding, ball, crown, interval, last_layer_folding, margin_rows
from vsparse.data import load
from vsparse.files import write_bytes
from vsparse.graph import Graph, from_onnx
from vsparse.recipe import Recipe, load_recipe

FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0)
NATIVE = ("-O3", "-march=native", "-std=c99", "-ffp-contract=off")
BATCH = 50


def host_margins(
    graph: Graph,
    rounding: Rounding,
    x: NDArray[Any],
    epsilon: float,
    labels: NDArray[np.int64],
    clip: tuple[float, float] = (0.0, 1.0),
    linear: bool = False,
) -> NDArray[np.float64]:
    """Returns the least margins [n] of labels by float64 interval bounds under a contract, with the last layers folded or without.

    With `linear`, of each margin the larger one of that and of a backward pass over these bounds (CROWN-IBP).
    """
    found = []
    for start in range(0, len(x), BATCH):
        part = slice(start, start + BATCH)
        found.append(_batch(graph, rounding, x[part], epsilon, labels[part], clip, linear))
    return np.concatenate(found)


def _batch(
    graph: Graph,
    rounding: Rounding,
    x: NDArray[Any],
    epsilon: float,
    labels: NDArray[np.int64],
    clip: tuple[float, float],
    linear: bool,
) -> NDArray[np.float64]:
    with torch.no_grad():
        box = ball(torch.from_numpy(x), Fraction(float(epsilon)), clip)
        boxes = interval(graph, rounding.params, box, rounding)
        rows = margin_rows(torch.from_numpy(labels), int(np.prod(graph.shape_of(graph.output))))
        each = last_layer_folding(graph, rounding.params, rows, boxes, rounding)
        if linear:
            each = torch.maximum(each, crown(graph, rounding.params, box, rows, boxes, rounding))
        folded = each.min(1).values.numpy()
    lower, upper = (end.reshape(len(x), -1).numpy() for end in boxes[graph.output])
    index, others = np.arange(len(labels)), upper.copy()
    others[index, labels] = -np.inf
    return np.asarray(np.fmax(folded, lower[index, labels] - others.max(axis=1)), np.float64)


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """Returns a parser of RECIPE MODEL.onnx [--data DIR] [--frames N] [--out RESULTS.json]."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("recipe")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--frames", type=int, default=0, help="evenly spaced; 0: the whole test split")
    parser.add_argument("--out", type=Path)
    return parser


def frames_of(chosen: argparse.Namespace) -> tuple[Recipe, Graph, NDArray[np.float32]]:
    """Returns the recipe, the network and the frames [n, *input_shape] that a command line chooses."""
    recipe, graph = load_recipe(chosen.recipe), from_onnx(chosen.model)
    test = load(recipe.data, chosen.data, 0).test
    step = max(1, len(test) // chosen.frames) if chosen.frames else 1
    return recipe, graph, np.ascontiguousarray(test.inputs(slice(None, None, step)), np.float32).reshape(-1, *graph.input_shape)


def radii_of(recipe: Recipe) -> Iterator[tuple[float, np.float32]]:
    """Returns the factors and the radii, in those of the recipe, that are asked."""
    for factor in FACTORS:
        yield factor, np.float32(float(Fraction(str(recipe.property.epsilon))) * factor)


def finish(out: Path | None, content: dict[str, Any], *wrong: str) -> None:
    """Writes a result; exits with 1 where a row counts something under one of the names that must be zero."""
    if out is not None:
        write_bytes(out, (json.dumps(content, indent=1) + "\n").encode())
    if any(row[name] for row in content["rows"] for name in wrong):
        raise SystemExit(1)
