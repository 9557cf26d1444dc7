"""Trains, packs and measures one recipe through the stage cache, so that nothing is done twice and an interrupted sweep resumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vsparse.artifact.stage_files import HISTORY, LAYERS, PACKED
from vsparse.files import read_json
from vsparse.pipeline.cache import stage_key
from vsparse.pipeline.plan import Plan, Stage, plan_road
from vsparse.progress import Event, Reporter
from vsparse.recipe import Recipe
from vsparse.sweep.results import Measured
from vsparse.sweep.task import MEASURED
from vsparse.target import Target
from vsparse.worker import Workers

CODE = ("data", "graph", "bounds", "sweep/task")


@dataclass(frozen=True)
class RoadRunner:
    """Runs the road of a recipe as far as the packed network, and measures that; its workers are the sweep's."""

    target: Target
    data: Path | None
    workers: Workers

    def __call__(self, recipe: Recipe, reporter: Reporter) -> Measured:
        """Returns what the recipe's network is worth; raises what its stages raise."""
        plan = plan_road(recipe, self.target, self.data, jobs=1)
        train, packed = plan.stages("compress")
        measure = _measure(plan, packed)
        reused = plan.cache.finished(train.name, train.key) is not None
        for stage in (train, packed, measure):
            self._run(plan, stage, reporter)
        totals = read_json(plan.finished(packed) / LAYERS, "layer table")["totals"]
        found = read_json(plan.finished(measure) / MEASURED, "measurement")
        history = read_json(plan.finished(train) / HISTORY, "history")["sparse"]
        return Measured(
            certified_share=float(found["certified_share"]),
            clean_share=float(found["clean_share"]),
            macs=int(totals["macs_after"]),
            bytes=int(totals["bytes_after"]),
            weights=int(totals["weights_after"]),
            nonzero_weights=int(totals["nonzero"]),
            # The sum over epochs counts those before an interrupt too, which the stage's own time does not.
            train_seconds=float(sum(epoch["seconds"] for epoch in history)),
            epochs_trained=len(history),
            reused=reused,
        )

    def _run(self, plan: Plan, stage: Stage, reporter: Reporter) -> None:
        reporter(Event("progress", stage.title, stage.title.removesuffix(" sparse")))
        plan.cache.run(stage.name, stage.key, lambda scratch, output: stage.work(scratch, output, self.workers, reporter))


def _measure(plan: Plan, packed: Stage) -> Stage:
    """Returns the stage that measures the packed network on the validation split."""
    recipe = plan.recipe
    inputs = {
        "packed": packed.key,
        "data": plan.splits.sha256,
        "property": recipe.property.model_dump(mode="json", include={"norm", "epsilon", "brightness", "contrast"}),
    }
    payload = {"recipe": recipe.model_dump(mode="json"), "data": None if plan.data is None else str(plan.data.absolute())}

    def work(scratch: Path, output: Path, workers: Workers, report: Reporter) -> None:
        model = plan.finished(packed) / PACKED
        workers.run("measure", {**payload, "model": str(model), "output": str(output)}, lambda news: None)

    return Stage("measure", "measure", stage_key("measure", inputs, CODE), "", work)
