"""How good a network is on the validation split: a guide for choosing epochs, never a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from vsparse.bounds import crown, interval, margin_rows
from vsparse.compute_device import reading_back
from vsparse.graph import run
from vsparse.graph.ir import Graph
from vsparse.recipe import Recipe
from vsparse.stages.train.bounds.fast_interval import fast_interval
from vsparse.stages.train.bounds.margins import Margins, Params, training_box
from vsparse.stages.train.determinism import drawn
from vsparse.stages.train.evaluation import attacked
from vsparse.stages.train.folding import Folding
from vsparse.stages.train.objectives import objective_class
from vsparse.stages.train.objectives.loss import ValidationMeasure
from vsparse.stages.train.objectives.regression import worst_error
from vsparse.stages.train.samples import Samples

CROWN_SAMPLES = 1000
# Rows of linear bounds (one a sample and other class) that an evaluation may cost, and the fraction of the samples that is looked at
# before a network can be the result.
CROWN_ROWS = 9000
QUICK_FRACTION = 0.2
ATTACK_STEPS = 20


@dataclass(frozen=True)
class Quality:
    """Fractions of the validation samples: classified correctly, and robust by the `measure` interval, crown or attack.

    By the measure explained, of the targets' variance: explained by the answers, and by the worst ones that interval bounds leave possible.
    """

    clean: float
    robust: float
    measure: str


def validated_by(recipe: Recipe) -> ValidationMeasure:
    """Returns what robustness is measured by while training: what the objective says, or where a device certifies what that does by."""
    if recipe.deploy.live:
        return "crown" if recipe.deploy.live_budget else "interval"
    return objective_class(recipe.train).validated_by


class Validation:
    """Evaluates networks on a split at one radius; `measure` is an objective's `validated_by`.

    The clean accuracy is of all samples, and so is the robust one by intervals; by other measures it is of at most CROWN_SAMPLES, evenly
    spaced, and of fewer where there are many classes. `counted`: attacks start where a counter says (`vsparse.draws`).
    """

    def __init__(self, samples: Samples, radius: float, measure: ValidationMeasure, batch_size: int, counted: bool = False) -> None:
        self.counted = counted
        self.samples, self.radius, self.measure, self.batch_size = samples, radius, measure, batch_size

    def __call__(self, graph: Graph, params: Params, thorough: bool = True) -> Quality:
        """Returns the quality of a network whose parameters are given; not `thorough`, robustness is of a QUICK_FRACTION of its samples."""
        if self.measure == "explained":
            return self._explained(graph, params)
        if self.measure == "crown":  # linear bounds know no batch norm
            folding = Folding(graph)
            graph, params = folding.graph, folding.params(params)
        margins = Margins(graph)
        count = len(self.samples.labels)
        stride = self._stride(graph, count, thorough)
        right = sure = asked = 0
        with torch.no_grad(), reading_back("an evaluation counts between two epochs"):
            for start in range(0, count, self.batch_size):
                part = slice(start, start + self.batch_size)
                x, labels = self.samples.inputs(part), self.samples.labels[part]
                correct = run(graph, params, x).argmax(1) == labels
                right += int(correct.sum())
                chosen = torch.arange(start, start + len(labels), device=x.device) % stride == 0
                asked += int(chosen.sum())
                sure += int(self._robust(graph, params, margins, x[chosen], labels[chosen], correct[chosen]).sum())
        return Quality(right / max(1, count), sure / max(1, asked), self.measure)

    def _explained(self, graph: Graph, params: Params) -> Quality:
        """Returns 1 − mean squared error, and 1 − mean worst one over the box, at least 0: targets have a variance of about 1."""
        clean, worst = self.samples.labels.new_zeros(()), self.samples.labels.new_zeros(())
        count = len(self.samples.labels)
        with torch.no_grad(), reading_back("an evaluation counts between two epochs"):
            for start in range(0, count, self.batch_size):
                part = slice(start, start + self.batch_size)
                x, targets = self.samples.inputs(part), self.samples.labels[part]
                clean += (run(graph, params, x).flatten() - targets).square().sum()
                box = fast_interval(graph, params, training_box(x, self.radius), "output", 1.0)[graph.output]
                worst += worst_error(box, targets).sum()
            explained = [1 - float(total) / max(1, count) for total in (clean, worst)]
        # Also where it is not a number.
        least = [value if value > 0 else 0.0 for value in explained]
        return Quality(least[0], least[1], self.measure)

    def robust_samples(self, graph: Graph) -> int:
        """Returns on how many samples the robustness of a network that may be the result is measured."""
        count = len(self.samples.labels)
        return ceil(count / self._stride(graph, count, thorough=True))

    def _stride(self, graph: Graph, count: int, thorough: bool) -> int:
        if self.measure in ("interval", "explained"):
            return 1
        rows = max(1, graph.shape_of(graph.output)[-1] - 1) if self.measure == "crown" else 1
        wanted = min(CROWN_SAMPLES, CROWN_ROWS // rows) * (1 if thorough else QUICK_FRACTION)
        return max(1, ceil(count / max(1, wanted)))

    def _robust(self, graph: Graph, params: Params, margins: Margins, x: Tensor, labels: Tensor, correct: Tensor) -> Tensor:
        if not len(labels):
            return correct
        if self.measure == "attack":
            return correct & attacked(graph, params, x, labels, self.radius, ATTACK_STEPS, drawn(self.counted, 0, 0, 0))
        box = training_box(x, self.radius)
        lower = margins.lower(params, margins.enclosure(params, box), labels)
        # NaN compares false, so it never counts; the label's own column is 0 by construction.
        sure = correct & ((lower > 0).sum(1) == lower.shape[1] - 1)
        open_ = (correct & ~sure).nonzero().flatten()
        if self.measure == "crown" and len(open_):
            box = (box[0][open_], box[1][open_])
            rows = margin_rows(labels[open_], lower.shape[1]).to(x)
            bounds = crown(graph, params, box, rows, interval(graph, params, box))
            sure[open_] = (bounds > 0).all(1)
        return sure
