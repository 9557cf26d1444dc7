"""Writes the tables of README.md between their markers, and the plots, from results/. What has not run says so.

Usage: python benchmarks/training/tables.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from results import (
    NOT_RUN,
    Result,
    average,
    best_settled,
    column,
    first,
    minutes,
    named,
    number,
    over_tracks,
    percentages,
    read,
    seconds_to,
    settled,
    share,
)
from rows import DECLARED, EQUAL_COMPUTE, METHODS, METHODS_DENSITIES, METHODS_SAMPLES, SHORT_SPARSE, SMALL_DENSE, percent

from vsparse.proportion import clopper_pearson

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
Cells = Sequence[str]


def markdown(head: Cells, rows: Sequence[Cells]) -> str:
    """Returns a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def epochs(results: Sequence[Result]) -> str:
    """Returns the epochs of a row."""
    value = average(results, lambda result: result["epochs"])
    return NOT_RUN if value is None else f"{value:.0f}"


def figures(results: Sequence[Result]) -> list[str]:
    """Returns the cells that most tables share: clean, certified, unknown, weights, multiply-adds, epochs, minutes."""
    return [
        percentages(results, share("clean")),
        percentages(results, share("certified")),
        percentages(results, share("unknown")),
        number(results, "weights"),
        number(results, "macs_nonzero"),
        epochs(results),
        minutes(results),
    ]


FIGURES = ["clean %", "certified %", "unknown %", "weights", "MACs (nonzero)", "epochs", "CPU min"]

WANTED = {
    "dense": "≥ 97.0",
    "element-90": "within 0.5 of dense",
    "element-95": "within 1.5",
    "element-99": "within 6",
    "channel-half-macs": "within 0.5",
    "dense-0.3": "≥ 90",
    "element-90-0.3": "within 0.5",
}


def headline() -> str:
    dense = [row for row in DECLARED["headline"] if row.method == "dense"]
    parents = {(row.recipe, result["seed"]): result["certified"] for row in dense for result in read("headline", row)}
    cells = []
    for row in DECLARED["headline"]:
        results = read("headline", row)
        # Each network against the dense one of its own recipe and seed.
        known = [(result["certified"], parents.get((row.recipe, result["seed"]))) for result in results]
        gaps = [certified - parent for certified, parent in known if parent is not None]
        gap = "–" if not gaps or row.method == "dense" else f"{100 * mean(gaps):+.2f}"
        cells.append([row.name, f"{len(results)} of {len(row.seeds)}", *figures(results), gap, WANTED[row.name]])
    return markdown(["network", "seeds", *FIGURES, "against dense", "wanted"], cells)


def baselines() -> str:
    cells = []
    for name in SMALL_DENSE:
        budget = f"{name.partition('-')[0]} %" + (", ε 0.3" if name.endswith("-0.3") else "")
        cells += _beside(f"element-{name}", [f"small-weights-{name}", f"small-macs-{name}", f"magnitude-{name}"], budget)
    cells += _beside("channel-half-macs", ["small-macs-half", "magnitude-half-macs"], "half the MACs")
    return markdown(["budget", "network", "width", *FIGURES, "winner"], cells)


def _beside(sparse: str, others: Sequence[str], budget: str) -> list[Cells]:
    own, results = named("headline", sparse)
    parent = next(row for row in DECLARED["headline"] if (row.method, row.recipe) == ("dense", own.recipe))
    candidates = [("ours, sparse", "–", results)]
    for name in others:
        row, results = named("baselines", name)
        width = next((setting.partition("=")[2] for setting in row.settings if setting.startswith("network.width")), "–")
        candidates.append((row.method, width, results))
    known = {label: average(results, share("certified")) for label, _, results in candidates}
    best = max((value for value in known.values() if value is not None), default=None)
    complete = None not in known.values()
    cells: list[Cells] = [
        [budget, label, width, *figures(results), "●" if complete and known[label] == best else ""] for label, width, results in candidates
    ]
    return [*cells, [budget, "dense parent", "1", *figures(read("headline", parent)), ""]]


def compute() -> str:
    """Returns pairs of a sparse and a small dense network that were trained for about as long."""
    cells: list[Cells] = []
    for name, longer in EQUAL_COMPUTE.items():
        short = named("time", f"scratch-{SHORT_SPARSE}") if name == "90" else named("compute", f"element-{name}-{SHORT_SPARSE}")
        pairs = (
            (short, named("baselines", f"small-macs-{name}")),
            # One seed of each, as the small dense networks have.
            (named("headline", f"element-{name}"), named("compute", f"small-macs-{name}-{longer}")),
        )
        for sparse, small in pairs:
            for label, (_, results) in (("ours, sparse", sparse), ("small dense, same macs", small)):
                seconds = f"{results[0]['train_cpu_s']:.0f}" if results else NOT_RUN
                cells.append([f"{name} %", label, *figures(results[:1])[:-1], seconds])
    return markdown(["budget", "network", *FIGURES[:-1], "CPU s"], cells)


# Weights left in percent: clean and attacked accuracy of Cosentino et al. (arXiv 1912.02386), rewound to the initial weights.
PUBLISHED = {
    "fgsm": {100: "98.25/94.30", 51.3: "98.13/97.09", 16.9: "97.90/97.46", 8.7: "97.54/97.02", 3.6: "97.00/95.23", 1.8: "95.49/90.15"},
    "pgd": {100: "98.38/45.32", 51.3: "98.07/60.14", 16.9: "97.73/59.91", 8.7: "97.20/57.60", 3.6: "95.58/48.81", 1.8: "92.67/38.23"},
}


def lottery() -> str:
    blocks = []
    for attack, published in PUBLISHED.items():
        arms = {arm: named("lottery", f"{attack}-{arm}")[1] for arm in ("initial", "random", "continue")}
        done = next((results[0] for results in arms.values() if results), None)
        count = len(done["rounds"]) if done else 0
        cells = []
        for index in range(count):
            left = 100 * done["rounds"][index]["density"]  # type: ignore[index]
            near = min(published, key=lambda value: abs(value - left))
            cells.append(
                [
                    f"{left:.1f}",
                    *(_round(results, index, attack) for results in arms.values()),
                    published[near] if abs(near - left) <= 0.05 * near else "",
                ]
            )
        head = ["weights left %", "initial weights", "drawn anew", "continued", "published, initial"]
        blocks.append(f"**{attack.upper()}**, clean/{attack.upper()} accuracy:\n\n" + markdown(head, cells or [[NOT_RUN] * len(head)]))
    return "\n\n".join(blocks)


def _round(results: Sequence[Result], index: int, attack: str) -> str:
    if not results:
        return NOT_RUN
    found = results[0]["rounds"][index]
    return f"{100 * found['clean']:.2f}/{100 * found[attack]:.2f}"


METRICS: dict[str, tuple[str, Callable[[Result], float | None]]] = {
    "certified": ("certified %", share("certified")),
    "attack": ("under PGD %", share("attacked")),
    "smoothing": ("certified % at l2 radius 0.25", lambda result: result["smoothed"]["0.25"]),
}


def hydra() -> str:
    cells = []
    for row in DECLARED["hydra"]:
        results = read("hydra", row)
        what, of = METRICS[row.metric]
        cells.append(
            [
                row.recipe.removeprefix("hydra-").removesuffix("-mnist"),
                row.method,
                f"{percent(row.sparsity)} %" if row.sparsity else "–",
                what.removesuffix(" %").replace(" % ", " "),
                percentages(results, of),
                percentages(results, share("clean")),
                number(results, "samples"),
                epochs(results),
                minutes(results),
            ]
        )
    return markdown(["objective", "network", "removed", "measure", "%", "clean %", "samples", "epochs", "CPU min"], cells)


def vericompress() -> str:
    cells: list[Cells] = []
    for row in DECLARED["vericompress"]:
        results = read("vericompress", row)
        cells.append(
            [
                f"{row.method}, {row.recipe}",
                percentages(results, share("clean")),
                percentages(results, share("interval_certified")),
                percentages(results, share("certified")),
                number(results, "weights"),
                number(results, "macs_nonzero"),
                epochs(results),
                minutes(results),
            ]
        )
    head = ["network", "clean %", "IBP-certified %", "certified, search included %", "weights", "MACs (nonzero)", "epochs", "CPU min"]
    return markdown(head, cells)


def methods() -> str:
    dense = named("headline", "dense")[1][:1]  # the same seed, in the recipe's own epochs
    cells = [
        ["dense, of the headline", *[percentages(dense, first(METHODS_SAMPLES))] * len(METHODS_DENSITIES), epochs(dense), minutes(dense)]
    ]
    for method in METHODS:
        rows = [read("methods", named("methods", f"{method}-{percent(sparsity)}")[0]) for sparsity in METHODS_DENSITIES]
        cells.append(
            [
                method,
                *(percentages(results, share("certified")) for results in rows),
                " / ".join(dict.fromkeys(map(epochs, rows))),  # the phases round alike at every sparsity
                minutes(rows[METHODS_DENSITIES.index(0.95)]),
            ]
        )
    return markdown(["method", *(f"certified at {percent(s)} %" for s in METHODS_DENSITIES), "epochs", "CPU min at 95 %"], cells)


def objectives() -> str:
    cells = []
    for row in DECLARED["objectives"]:
        results = read("objectives", row)
        ends = figures(results)
        cells.append([row.name, *ends[:3], percentages(results, share("interval_certified")), ends[-2], ends[-1]])
    return markdown(["objective", "clean %", "certified %", "unknown %", "by intervals alone %", "epochs", "CPU min"], cells)


def time() -> str:
    rows = {row.name: (row, read("time", row)) for row in DECLARED["time"] if row.name != "channel-quarter"}
    runs = {name: results[0] for name, (_, results) in rows.items() if results}
    cells = []
    for row, results in rows.values():
        cells.append([row.method, epochs(results), *figures(results)[:3], minutes(results)])
    parts = [markdown(["training", "epochs", *FIGURES[:3], "CPU min"], cells)]
    # How long a training takes that ends with no less certified: whole trainings, measured on the test split with the search.
    for name, long in runs.items():
        if not name.startswith("hydra"):
            continue
        able = [run for other, run in runs.items() if other.startswith("scratch") and run["certified"] >= long["certified"]]
        if able:
            short = min(able, key=lambda run: float(run["train_cpu_s"]))
            told = f"{short['epochs']} epochs from scratch certify no less ({100 * short['certified']:.2f} %)"
            told += f" in {short['train_cpu_s'] / long['train_cpu_s']:.2f} of the time (wanted: at most 0.33)."
        else:
            told = "no training from scratch certifies as much."
        parts.append(f"HYDRA in {long['epochs']} epochs, {100 * long['certified']:.2f} %: {told}")
    if {"scratch", "hydra"} <= runs.keys():
        level = min(best_settled(runs["scratch"]), best_settled(runs["hydra"]))
        first, second = (seconds_to(runs[name], level) or 0.0 for name in ("scratch", "hydra"))
        parts.append(
            f"Within the two longest trainings, by CROWN alone on 1,000 validation images: to {100 * level:.1f} % from scratch in "
            f"{first / 60:.1f} CPU min, by HYDRA in {second / 60:.1f}, {first / second:.2f} of the time."
        )
    return "\n\n".join([*parts, shrinking()])


def shrinking() -> str:
    """Returns how much shorter the last epochs of a training are that drops channels than the full-radius epochs before it drops them."""
    _, results = named("time", "channel-quarter")
    if not results:
        return f"An epoch with a quarter of the channels against one with all of them, in one training: {NOT_RUN}."
    spent, density, epsilon = (column(results[0], name) for name in ("cpu", "density", "epsilon"))
    # The epochs before the channels are gone that train at the full radius, and as many of those after it at the end.
    dense = [s for s, e, ready in zip(spent, epsilon, settled(results[0]), strict=True) if e == epsilon[-1] and not ready]
    packed = spent[-len(dense) :]
    return (
        f"A training that ends with a quarter of the channels ({100 * density[-1]:.1f} % of the weights): {mean(dense):.1f} CPU s an epoch "
        f"at full radius before they are dropped, {mean(packed):.1f} at its end, {mean(dense) / mean(packed):.2f} times as fast "
        "(wanted: at least 2)."
    )


def gtsrb() -> str:
    cells = []
    for row in DECLARED["gtsrb"]:
        results = read("gtsrb", row)
        ends = over_tracks(results[0]) if results else None
        bar = NOT_RUN if ends is None else f"{100 * ends[0]:.2f} … {100 * ends[1]:.2f}"
        tracks = str(len(results[0]["tracks"]["samples"].split())) if ends else NOT_RUN
        cells.append([row.name, *figures(results)[:2], bar, tracks, *figures(results)[2:]])
    return markdown(["network", *FIGURES[:2], "95 % over tracks", "tracks", *FIGURES[2:]], cells)


def cifar() -> str:
    cells = []
    for row in DECLARED["cifar"]:
        results = read("cifar", row)
        ends = NOT_RUN
        if results:
            low, high = clopper_pearson(round(results[0]["certified"] * results[0]["samples"]), results[0]["samples"])
            ends = f"{100 * low:.1f} … {100 * high:.1f}"
        cells.append([row.name, *figures(results)[:2], ends, number(results, "samples"), *figures(results)[2:]])
    return markdown(["network", *FIGURES[:2], "95 % of all images", "samples", *FIGURES[2:]], cells)


def mnist() -> str:
    return markdown(["network", *FIGURES], [[row.name, *figures(read("mnist", row))] for row in DECLARED["mnist"]])


def cost() -> str:
    cells = []
    total = 0.0
    for table, rows in DECLARED.items():
        found = [result for row in rows for result in read(table, row)]
        spent = sum(result["train_cpu_s"] + result.get("certify_cpu_s", 0) for result in found) / 3600
        total += spent
        cells.append([table, f"{len(found)} of {sum(len(row.seeds) for row in rows)}", f"{spent:.2f}"])
    return markdown(["table", "networks", "CPU hours"], [*cells, ["all", "", f"{total:.2f} of 20 (10 hours of 2 cores)"]])


PLOTS = {
    "density": "certified accuracy against the weights left",
    "lottery": "accuracy after each round",
    "time": "certified validation accuracy against processor time",
}
MAKERS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "baselines": baselines,
    "compute": compute,
    "vericompress": vericompress,
    "hydra": hydra,
    "lottery": lottery,
    "methods": methods,
    "objectives": objectives,
    "time": time,
    "gtsrb": gtsrb,
    "cifar": cifar,
    "mnist": mnist,
    "cost": cost,
}


def put(text: str, place: str, content: str) -> str:
    """Returns the text with the content between the markers of a place; ends the program where there are none."""
    pattern = re.compile(rf"(<!-- {place} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no place for {place}: write <!-- {place} --> and, on a line of its own, <!-- end -->")
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def main() -> None:
    """Writes all tables and plots."""
    from plots import plot_all

    text = README.read_text(encoding="utf-8")
    for name, make in MAKERS.items():
        text = put(text, f"table {name}", make())
    drawn = plot_all(HERE / "plots")
    for name, description in PLOTS.items():
        text = put(text, f"plot {name}", f"![{description}](plots/{name}.svg)" if name in drawn else f"Plot: {NOT_RUN}.")
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
