"""Trains, packs and measures one recipe through the stage cache, so that nothing is done twice and an interrupted sweep resumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vsparse.artifact.document import read_document
from vsparse.artifact.history import History
from vsparse.artifact.layers import LayerTable
from vsparse.artifact.stage_files import HISTORY, LAYERS, PACKED
from vsparse.pipeline.collapse import reasons_of_training, too_few_to_tell, ways_out
from vsparse.pipeline.keys import stage_key
from vsparse.pipeline.plan import Plan, make_plan
from vsparse.pipeline.stage import Stage
from vsparse.progress import Event, Reporter
from vsparse.recipe import Recipe
from vsparse.sweep.results import Measured
from vsparse.sweep.task import MEASURED, MeasuredAccuracies
from vsparse.target import Target
from vsparse.worker import Workers

CODE = ("data", "graph", "perturbation", "bounds", "sweep/task")


@dataclass(frozen=True)
class PipelineRunner:
    """Runs the pipeline of a recipe as far as the packed network, and measures that; its workers are the sweep's."""

    target: Target
    data: Path | None
    workers: Workers

    def __call__(self, recipe: Recipe, reporter: Reporter) -> Measured:
        """Returns what the recipe's network is worth; raises what its stages raise."""
        plan = make_plan(recipe, self.target, self.data, jobs=1)
        train, packed = plan.stages("compress")
        measure = _measure(plan, packed)
        reused = plan.cache.finished(train.name, train.key) is not None
        for stage in (train, packed, measure):
            self._run(plan, stage, reporter)
        totals = read_document(LayerTable, plan.finished(packed) / LAYERS).totals
        found = read_document(MeasuredAccuracies, plan.finished(measure) / MEASURED)
        history = read_document(History, plan.finished(train) / HISTORY)
        epochs = history.epochs
        classes = len(plan.splits.train.classes)
        collapse = reasons_of_training(plan.recipe, history, classes)
        if collapse:
            few = too_few_to_tell(plan.recipe, [history], classes)
            collapse.append(ways_out(plan.recipe, history, len(plan.splits.train), few))
        return Measured(
            certified_accuracy=found.certified_accuracy,
            clean_accuracy=found.clean_accuracy,
            macs=totals.macs_after,
            bytes=totals.bytes_after,
            weights=totals.weights_after,
            nonzero_weights=totals.nonzero,
            # The sum over epochs counts those before an interrupt too, which the stage's own time does not.
            train_seconds=sum(epoch.seconds for epoch in epochs),
            epochs_trained=len(epochs),
            reused=reused,
            collapse="; ".join(collapse),
        )

    def _run(self, plan: Plan, stage: Stage, reporter: Reporter) -> None:
        reporter(Event("progress", stage.title, stage.title.removesuffix(" sparse")))
        plan.cache.run(stage.name, stage.key, lambda scratch, output: stage.work(scratch, output, self.workers, reporter, 1))


def _measure(plan: Plan, packed: Stage) -> Stage:
    """Returns the stage that measures the packed network on the validation split."""
    recipe = plan.recipe
    inputs = {
        "packed": packed.key,
        "data": plan.splits.sha256,
        "property": recipe.property.perturbation.model_dump(mode="json"),
    }
    payload = {"recipe": recipe.model_dump(mode="json"), "data": None if plan.data is None else str(plan.data.absolute())}

    def work(scratch: Path, output: Path, workers: Workers, report: Reporter, jobs: int) -> None:
        model = plan.finished(packed) / PACKED
        workers.run("measure", {**payload, "model": str(model), "output": str(output)}, lambda message: None)

    return Stage("measure", "measure", stage_key("measure", inputs, CODE), "", work)
