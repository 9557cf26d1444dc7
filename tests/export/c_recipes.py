"""Networks of the shipped recipes with random weights, pruned at random to what the recipe keeps: what the C of a recipe has to compute."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vsparse.graph import Graph, fold_batch_norm, from_onnx, from_torch, to_onnx
from vsparse.networks import make
from vsparse.recipe import Network, load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "models").glob("*.toml"))
SHAPES = {"digits": ((1, 8, 8), 10), "mnist": ((1, 28, 28), 10), "cifar10": ((3, 32, 32), 10), "gtsrb": ((3, 32, 32), 43)}
# Architectures whose loops turn millions of times are narrowed to this share of their width.
NARROWED = {"cnn7": 0.1, "cnn7-plain": 0.1, "vgg16": 0.1}
NO_C = {"cnn4-clip"}  # a clip has no form in C

Key = tuple[str, str, float, str, float, bool]


def architectures() -> dict[str, Key]:
    """Returns what shipped recipes differ in, each under the first recipe that has it.

    A key is the data, the architecture, its width, granularity, sparsity, and whether the recipe may ask for 8-bit integers.
    """
    found: dict[Key, str] = {}
    for name in RECIPES:
        recipe = load_recipe(name)
        integers = bool({"int8", "auto"} & set(recipe.export.precisions))
        key = (
            recipe.data.name,
            recipe.network.architecture,
            recipe.network.width,
            recipe.train.sparse.granularity,
            recipe.train.sparsity,
            integers,
        )
        found.setdefault(key, name)
    return {name: key for key, name in found.items() if key[1] not in NO_C}


def recipe_network(key: Key) -> Graph:
    """Returns the network of a key, narrowed where it is large; channels are pruned by a width with as many weights."""
    data, architecture, width, granularity, sparsity, _ = key
    shape, classes = SHAPES[data]
    kept = 1 - sparsity
    width *= NARROWED.get(architecture, 1.0) * (kept**0.5 if granularity == "channel" else 1.0)
    torch.manual_seed(0)
    net = make(Network(architecture=architecture, width=width), shape, classes).eval()
    graph = from_onnx(to_onnx(fold_batch_norm(from_torch(net, shape))).SerializeToString())
    if granularity == "channel":
        return graph
    rng = np.random.default_rng(0)
    pruned = {
        name: value if value.ndim == 1 else np.where(rng.random(value.shape) < kept, value, 0).astype(np.float32)
        for name, value in graph.params.items()
    }
    return replace(graph, params=pruned)
