"""The stage `measure`: what a trained and packed network reaches on the validation split. Runs in a worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vsparse.artifact.document import Count, Document, Fraction01, write_document
from vsparse.bounds import crown, interval, last_layer_folding, lowest_margin, margin_rows, region, samples_of
from vsparse.data import Dataset
from vsparse.data.packed import splits_of
from vsparse.graph import Graph, run
from vsparse.graph.from_onnx import from_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.progress import Emit
from vsparse.recipe import Recipe

MEASURED = "measured.json"
METHOD = "interval bounds with the last layer folded, else CROWN on interval bounds, in float64 without rounding terms"


class MeasuredAccuracies(Document):
    """What the stage hands on: clean and certified accuracy on the validation split, by `method`."""

    split: Literal["validation"] = "validation"
    samples: Count
    method: str
    clean_accuracy: Fraction01
    certified_accuracy: Fraction01


def measure_task(payload: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Measures the packed network of `payload["model"]` on the validation split, never on the test split, and writes its accuracies."""
    recipe = Recipe.model_validate(payload["recipe"])
    splits = splits_of(payload, recipe)
    graph = from_onnx(Path(payload["model"]))
    clean, certified = accuracies(graph, splits.validation, recipe.property.perturbation, recipe.verify.batch_size)
    samples = len(splits.validation)
    measured = MeasuredAccuracies(samples=samples, method=METHOD, clean_accuracy=clean, certified_accuracy=certified)
    write_document(Path(payload["output"]) / MEASURED, measured)
    return {}


def accuracies(graph: Graph, data: Dataset, perturbation: PerturbationSet, batch: int) -> tuple[float, float]:
    """Returns the fractions of samples classified correctly, and certified by plain float64 bounds: a guide, no verdict.

    One measure for every objective, where training's own history has the one that suits its objective. Looser bounds are tried first: most
    samples of a network trained with interval bounds need no others; one trained on smaller boxes would be ranked too low with them alone.
    """
    params = {name: torch.from_numpy(value.astype("float64")) for name, value in graph.params.items()}
    right = sure = 0
    with torch.no_grad():
        for start in range(0, len(data), batch):
            part = slice(start, start + batch)
            x, labels = torch.from_numpy(data.inputs(part)).double(), torch.from_numpy(data.labels[part])
            correct = run(graph, params, x).argmax(1) == labels
            right += int(correct.sum())
            if correct.any():
                sure += _certified(graph, params, x[correct], margin_rows(labels[correct], len(data.classes)), perturbation)
    return right / max(1, len(data)), sure / max(1, len(data))


def _certified(graph: Graph, params: dict[str, Tensor], x: Tensor, rows: Tensor, perturbation: PerturbationSet) -> int:
    """Returns how many of the samples have only positive margins by one of the bounds."""
    around = region(x, perturbation)
    boxes = interval(graph, params, around)
    open_ = lowest_margin(last_layer_folding(graph, params, rows, boxes)) <= 0
    if not open_.any():
        return len(x)
    left = {name: (lower[open_], upper[open_]) for name, (lower, upper) in boxes.items()}
    lower = crown(graph, params, samples_of(around, open_), rows[open_], left)
    return int((~open_).sum() + (lowest_margin(lower) > 0).sum())
