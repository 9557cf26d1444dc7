"""The plots beside the tables, as SVG: certified accuracy against density, lottery tickets, and certified accuracy against time."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from results import average, column, named, read, settled, share
from rows import DECLARED, DENSITIES, METHODS, METHODS_DENSITIES, percent

matplotlib.use("svg")
# The same results give the same file.
matplotlib.rcParams["svg.hashsalt"] = "vsparse"

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

STYLES = ("o-", "o--", "s-", "^-", "v-", "D-", "P-", "X-", "<-", ">-", "p-")


def plot_all(folder: Path) -> set[str]:
    """Writes every plot for which there are results; returns their names."""
    drawn = set()
    for name, make in (("density", density), ("lottery", lottery), ("time", time)):
        figure = make()
        if figure is not None:
            drawn.add(name)
            folder.mkdir(exist_ok=True)
            figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
    return drawn


def density() -> Figure | None:
    """Certified accuracy against the weights that are left: every method, ours, and small dense networks."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    anything = False
    for method, style in zip(METHODS, STYLES, strict=True):
        found = [named("methods", f"{method}-{percent(sparsity)}")[1] for sparsity in METHODS_DENSITIES]
        points = [(results[0]["weights"], 100 * results[0]["certified"]) for results in found if results]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=method, linewidth=1, markersize=4)
            anything = True
    for label, style, table, names in (
        ("ours", "k*-", "headline", ["dense", *(f"element-{percent(sparsity)}" for sparsity in DENSITIES)]),
        ("small dense", "k.--", "baselines", [f"small-weights-{percent(sparsity)}" for sparsity in DENSITIES]),
    ):
        points = []
        for name in names:
            results = named(table, name)[1]
            weights, sure = average(results, share("weights")), average(results, share("certified"))
            if weights is not None and sure is not None:
                points.append((weights, 100 * sure))
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=2)
            anything = True
    axes.set_xscale("log")
    axes.set_xlabel("weights left")
    axes.set_ylabel("certified accuracy, MNIST ε 0.1, %")
    axes.grid(alpha=0.3)
    if anything:
        axes.legend(fontsize=7, ncols=2)
    return figure if anything else None


def lottery() -> Figure | None:
    """Accuracy under the attack trained against, after each round, for the three arms."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8))
    anything = False
    for axes, attack in zip(panels, ("fgsm", "pgd"), strict=True):
        for arm, style in (("initial", "o-"), ("random", "s--"), ("continue", "^:")):
            results = named("lottery", f"{attack}-{arm}")[1]
            if results:
                rounds = results[0]["rounds"]
                left = [100 * end["density"] for end in rounds]
                attacked = [100 * end[attack] for end in rounds]
                (line,) = axes.plot(left, attacked, style, label=f"{arm}, {attack.upper()}", markersize=3)
                clean = [100 * end["clean"] for end in rounds]
                axes.plot(left, clean, style, color=line.get_color(), label=f"{arm}, clean", markersize=3, alpha=0.35)
                anything = True
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xlabel("weights left, %")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(f"lottery tickets under {attack.upper()}")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    return figure if anything else None


def time() -> Figure | None:
    """Certified validation accuracy against processor minutes; thick where the network could be the result."""
    figure, axes = plt.subplots(figsize=(7, 4))
    anything = False
    for row in DECLARED["time"]:
        for result in read("time", row)[:1]:
            spent, minutes = 0.0, []
            for seconds in column(result, "cpu"):
                spent += seconds / 60
                minutes.append(spent)
            certified = [100 * value for value in column(result, "certified")]
            (line,) = axes.plot(minutes, certified, linewidth=1, alpha=0.5)
            ready = [value if fine else float("nan") for value, fine in zip(certified, settled(result), strict=True)]
            axes.plot(minutes, ready, linewidth=3, color=line.get_color(), label=f"{row.method}, {result['epochs']} epochs")
            anything = True
    axes.set_xlabel("processor minutes")
    axes.set_ylabel("certified validation accuracy, %")
    axes.grid(alpha=0.3)
    if anything:
        axes.legend(fontsize=8)
    return figure if anything else None
