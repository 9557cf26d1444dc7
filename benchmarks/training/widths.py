"""The widths at which a dense network has as many weights, or multiply-adds, as a sparse one: the numbers in rows.py.

Usage: python benchmarks/training/widths.py [ARCHITECTURE] [--shape 1 28 28] [--classes 10]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod


@dataclass(frozen=True)
class Cost:
    """Weights and multiply-adds of Conv and Gemm nodes, biases and norms left out."""

    weights: int
    macs: int


@lru_cache(maxsize=4096)
def dense_cost(architecture: str, width: float, shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> Cost:
    """Returns what a dense network of this width costs."""
    from vsparse.graph import from_torch
    from vsparse.graph.cost import macs, weight_count
    from vsparse.networks import make
    from vsparse.recipe import Network

    graph = from_torch(make(Network(architecture=architecture, width=width), shape, classes), shape)
    return Cost(weight_count(graph), macs(graph))


def sparse_cost(architecture: str, settings: Sequence[str], shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> Cost:
    """Returns what a network costs of which only some entries are kept, as the recipe with these settings spreads them."""
    from vsparse.graph import from_torch
    from vsparse.networks import make
    from vsparse.recipe import Network, load_recipe
    from vsparse.stages.train.granularity import make_pattern
    from vsparse.stages.train.measures import weights_of

    recipe = load_recipe("vericompress-mnist-small", list(settings))
    graph = from_torch(make(Network(architecture=architecture), shape, classes), shape)
    counts = make_pattern(recipe.train, graph).counts()
    cells = weights_of(graph)
    return Cost(sum(counts.values()), sum(count * cells[name].positions for name, count in counts.items()))


def width_for(
    architecture: str, measure: str, target: float, shape: tuple[int, ...] = (1, 28, 28), classes: int = 10, most: float = 1.0
) -> float:
    """Returns the width, to four places, at which `measure` (weights or macs) comes nearest to a target; the cost grows with the width.

    Bisection ends between two widths whose costs lie on both sides of the target, and the nearer one is taken.
    """

    def cost(width: float) -> int:
        return int(getattr(dense_cost(architecture, width, shape, classes), measure))

    low, high = 1e-4, most
    if not cost(low) <= target <= cost(high):
        raise ValueError(f"{measure} of {architecture} go from {cost(low)} to {cost(high)}, so {target:.0f} cannot be met")
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
    return min((round(low, 4), round(high, 4)), key=lambda width: abs(cost(width) - target))


def main() -> None:
    """Prints the widths for 90, 95 and 99 % and for half of the multiply-adds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture", nargs="?", default="cnn4")
    parser.add_argument("--shape", type=int, nargs="+", default=[1, 28, 28])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument(
        "--set", action="append", default=[], help="settings of the sparse network, such as train.sparse.allocation=uniform"
    )
    options = parser.parse_args()
    shape = tuple(options.shape)
    whole = dense_cost(options.architecture, 1.0, shape, options.classes)
    print(f"{options.architecture} on {prod(shape)} inputs: {whole.weights} weights, {whole.macs} multiply-adds")
    wanted = []
    for sparsity in (0.9, 0.95, 0.99):
        settings = ["train.sparse.granularity=element", *options.set, f"train.sparsity={sparsity}"]
        wanted.append((f"{sparsity:.0%}", sparse_cost(options.architecture, settings, shape, options.classes)))
    for name, cost in [*wanted, ("half the multiply-adds", Cost(0, whole.macs // 2))]:
        for measure in ("weights", "macs"):
            target = getattr(cost, measure)
            if target:
                width = width_for(options.architecture, measure, target, shape, options.classes)
                found = dense_cost(options.architecture, width, shape, options.classes)
                print(f"{name}: {target} {measure} -> width {width} ({found.weights} weights, {found.macs} multiply-adds)")


if __name__ == "__main__":
    main()
