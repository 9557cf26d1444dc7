"""What certifying the device's arithmetic costs against real arithmetic, and how fast CROWN verdicts are against auto_LiRPA's `CROWN`.

All times are taken in turns within one run, one thread, and compared as ratios of their medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from vsparse.artifact import MODEL, RECIPE
from vsparse.bounds import Box, Rounding, ball, crown, interval, last_layer_folding, lowest_margin, margin_rows, refine
from vsparse.contract import contract
from vsparse.data import Dataset, load
from vsparse.files import write_json
from vsparse.graph import Relu, to_torch
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify, load_recipe
from vsparse.second_opinion import quietly
from vsparse.stages.verify import certify
from vsparse.stages.verify.certify import take_samples
from vsparse.stages.verify.deployed import Deployed, read_model

BATCHES = (25, 100)
Bounder = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the processor time of a call in seconds (other programs on the machine do not count) and its result."""
    started = process_time()
    result = work()
    return process_time() - started, result


def contracts(artifact: Path, data: Dataset, asked: PerturbationSet, samples: int, settings: Verify, repeats: int) -> dict[str, Any]:
    """Certifies the same samples under `real` and `fp32`, in turns, from the file to the certificate."""
    found: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {"real": [], "fp32": []}
    for _ in range(repeats):
        for name, times in seconds.items():
            taken, result = timed(lambda name=name: certify(artifact / MODEL, data, asked, contract(name), settings, samples=samples))  # type: ignore[misc]
            times.append(taken)
            found[name] = result.summary
            print(f"{name}: {result.summary.certified} of {result.summary.samples} certified in {taken:.1f} s", file=sys.stderr)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "samples": found["real"].samples,
        **{f"certified_{name}": summary.certified for name, summary in found.items()},
        "certified_points_lost": 100 * (found["real"].certified_accuracy - found["fp32"].certified_accuracy),
        **{f"seconds_{name}": medians[name] for name in medians},
        "runs": seconds,
        "time_ratio_fp32_to_real": medians["fp32"] / medians["real"],
    }


class SecondOpinion:
    """auto_LiRPA's CROWN in float32 with its module made once, as its users run it; patches mode."""

    def __init__(self, model: Deployed, batch: int) -> None:
        self.module = to_torch(model.graph).eval()
        self.shape = (batch, *model.graph.input_shape)
        with quietly() as lirpa:
            self.bounded = lirpa.BoundedModule(self.module, torch.zeros(self.shape), bound_opts={"conv_mode": "patches"}, device="cpu")

    def __call__(self, lower: torch.Tensor, upper: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        with quietly() as lirpa, torch.no_grad():
            perturbation = lirpa.PerturbationLpNorm(norm=float("inf"), eps=None, x_L=lower, x_U=upper)
            centre = lirpa.BoundedTensor((lower + upper) / 2, perturbation)
            result: torch.Tensor = self.bounded.compute_bounds(x=(centre,), C=rows, method="CROWN", bound_lower=True, bound_upper=False)[0]
            return result


def crown_bounds(rounding: Rounding, box: Box, rows: torch.Tensor) -> torch.Tensor:
    """Returns what decides a verdict of method `crown`: bounds over refined boxes, float64, rounding included."""
    graph, params = rounding.graph, rounding.params
    with torch.no_grad():
        boxes = refine(graph, params, box, interval(graph, params, box, rounding), rounding)
        return torch.fmax(last_layer_folding(graph, params, rows, boxes, rounding), crown(graph, params, box, rows, boxes, rounding))


def verdicts(model: Deployed, data: Dataset, asked: PerturbationSet, samples: int, repeats: int) -> dict[str, Any]:
    """Bounds the margins of the same samples by CROWN with refined intermediate bounds, ours and auto_LiRPA's, in turns."""
    inputs, labels = take_samples(data, model, samples)
    x, target = torch.from_numpy(inputs), torch.from_numpy(labels)
    rows = margin_rows(target, model.classes, torch.float32)
    results: dict[str, Any] = {}
    found: dict[str, torch.Tensor] = {}

    def ours(name: str, batch: int) -> torch.Tensor:
        parts = [slice(i, i + batch) for i in range(0, len(inputs), batch)]
        boxes = [ball(x[part], asked.epsilon, asked.clip) for part in parts]
        found = [crown_bounds(roundings[name], box, rows[part].double()) for box, part in zip(boxes, parts, strict=True)]
        return torch.cat([lowest_margin(one) for one in found])

    def theirs(batch: int, opinion: SecondOpinion) -> torch.Tensor:
        lower, upper = ball(x, asked.epsilon, asked.clip)
        parts = []
        for i in range(0, len(inputs), batch):
            part = slice(i, i + batch)
            parts.append(lowest_margin(opinion(lower[part].float(), upper[part].float(), rows[part])))
        return torch.cat(parts)

    roundings = {name: Rounding(model.graph, contract(name)) for name in ("real", "fp32")}
    opinions = {batch: SecondOpinion(model, batch) for batch in BATCHES}
    work: dict[str, Callable[[], torch.Tensor]] = {}
    for batch in BATCHES:
        work[f"ours fp32, batch {batch}"] = lambda batch=batch: ours("fp32", batch)  # type: ignore[misc]
        work[f"ours real, batch {batch}"] = lambda batch=batch: ours("real", batch)  # type: ignore[misc]
        work[f"auto_LiRPA, batch {batch}"] = lambda batch=batch: theirs(batch, opinions[batch])  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, one in work.items():
            taken, found[name] = timed(one)
            seconds[name].append(taken)
            print(f"{name}: {len(inputs) / taken:.1f} verdicts a second", file=sys.stderr)
    rate = {name: len(inputs) / statistics.median(times) for name, times in seconds.items()}
    best = {who: max(value for name, value in rate.items() if name.startswith(who)) for who in ("ours fp32", "ours real", "auto_LiRPA")}
    excess = found[f"auto_LiRPA, batch {BATCHES[0]}"].double() - found[f"ours real, batch {BATCHES[0]}"]
    results.update(
        samples=len(inputs),
        verdicts_per_second=rate,
        ratio_fp32=best["ours fp32"] / best["auto_LiRPA"],
        ratio_real=best["ours real"] / best["auto_LiRPA"],
        certified={name: int((value > 0).sum()) for name, value in found.items() if name.endswith(f"batch {BATCHES[0]}")},
        largest_excess_of_their_bound_over_ours_real=float(excess.max()),
        mean_excess_of_their_bound_over_ours_real=float(excess.mean()),
        samples_where_theirs_is_tighter_by_more_than_float32_rounding=int((excess > 1e-5).sum()),
        certified_by_theirs_alone=int(
            (excess + found[f"ours real, batch {BATCHES[0]}"] > 0)[found[f"ours fp32, batch {BATCHES[0]}"] <= 0].sum()
        ),
    )
    return results


def main() -> None:
    """Reads an artifact and writes results-NAME.json beside this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", type=Path, default=None, help="the folder with the data, where the artifact's is not built in")
    parser.add_argument("--samples", type=int, default=1000, help="for the comparison of contracts")
    parser.add_argument("--crown-samples", type=int, default=200, help="for the comparison with auto_LiRPA")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(options.artifact / RECIPE)
    data = load(recipe.data, options.data, recipe.train.seed).test
    asked = recipe.property.perturbation
    model = read_model(options.artifact / MODEL)
    started = perf_counter()
    result = {
        "schema_version": 1,
        "data": recipe.data.name,
        "epsilon": str(asked.epsilon),
        "relu_units": sum(node.size for node in model.graph.nodes if isinstance(node, Relu)),
        "contracts": contracts(options.artifact, data, asked, options.samples, recipe.verify, options.repeats),
        "crown": verdicts(model, data, asked, options.crown_samples, options.repeats),
        "machine": {"processor": platform.machine(), "torch": torch.__version__, "auto_lirpa": version("auto_LiRPA")},
        "wall_seconds": perf_counter() - started,
    }
    write_json(Path(__file__).with_name(f"results-{recipe.data.name}.json"), result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
