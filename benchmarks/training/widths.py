"""The widths at which a dense network has as many weights, or multiply-adds, as the sparse ones of the headline: the numbers in rows.py.

Usage: python benchmarks/training/widths.py
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import mean

from results import read
from rows import DECLARED

from vsparse.recipe import load_recipe


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


def width_for(architecture: str, measure: str, target: float, at_least: bool = False, most: float = 1.0) -> float:
    """Returns the width, to four places, at which `measure` (weights or macs) comes nearest to a target; the cost grows with the width.

    Bisection ends between two widths whose costs lie on both sides of the target; `at_least` takes the upper one, whatever is nearer.
    """

    def cost(width: float) -> int:
        return int(getattr(dense_cost(architecture, width), measure))

    low, high = 1e-4, most
    if not cost(low) <= target <= cost(high):
        raise ValueError(f"{measure} of {architecture} go from {cost(low)} to {cost(high)}, so {target:.0f} cannot be met")
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < target else (low, middle)
    below, above = round(low - 5e-5, 4), round(high + 5e-5, 4)
    return above if at_least else min((below, above), key=lambda width: abs(cost(width) - target))


def main() -> None:
    """Prints the widths for every sparse network of the headline, the mean over its seeds: as many weights, and no fewer multiply-adds."""
    for row in DECLARED["headline"]:
        results = read("headline", row)
        if not row.sparsity or not results:
            continue
        architecture = load_recipe(row.recipe).network.architecture
        for measure, key in (("weights", "weights"), ("macs", "macs_nonzero")):
            target = mean(result[key] for result in results)
            width = width_for(architecture, measure, target, at_least=measure == "macs")
            found = dense_cost(architecture, width)
            print(f"{row.name}: {target:.0f} {measure} -> width {width} ({found.weights} weights, {found.macs} multiply-adds)")


if __name__ == "__main__":
    main()
