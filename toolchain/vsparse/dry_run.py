"""What a build would do, without doing it: its stages, what is cached, about how long the rest takes, what is missing here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vsparse.environment import Finding, examine
from vsparse.graph.fold import fold_batch_norm
from vsparse.pipeline.build import artifact_key, default_out, finished_artifact, names_forms, require_replaceable, resolve, seconds_before
from vsparse.pipeline.estimate import stage_bytes, stage_seconds
from vsparse.pipeline.gates import require_parent
from vsparse.pipeline.keys import keeping_nothing
from vsparse.pipeline.plan import Plan, make_plan
from vsparse.pipeline.stage import Stage
from vsparse.pipeline.steps import steps_in_words
from vsparse.recipe_network import source_of

Basis = Literal["cache", "last build", "arithmetic"]


@dataclass(frozen=True)
class PlannedStage:
    """A stage: whether it is cached; seconds and bytes, and where each number comes from (`arithmetic` is an estimate)."""

    stage: str
    title: str
    cached: bool
    seconds: float
    seconds_from: Basis
    bytes: int
    bytes_from: Basis


@dataclass(frozen=True)
class DryRun:
    """A build that was planned: `seconds` is about how long what is not cached takes with `jobs` processes, `bytes` what it writes.

    `missing` are the parts of this machine without which this build fails or leaves something out; `needed` names those of them without
    which it fails.
    """

    recipe: str
    target: str
    out: Path
    up_to_date: bool
    jobs: int
    training: str
    samples: dict[str, int]
    forms: dict[str, str]
    stages: tuple[PlannedStage, ...]
    seconds: float
    bytes: int
    free_bytes: int
    missing: tuple[Finding, ...]
    needed: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing that this build needs is missing."""
        return not self.needed

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {
            "schema_version": 1,
            "recipe": self.recipe,
            "target": self.target,
            "out": str(self.out),
            "up_to_date": self.up_to_date,
            "jobs": self.jobs,
            "training": self.training,
            "samples": self.samples,
            "forms": self.forms,
            "stages": [asdict(one) for one in self.stages],
            "estimated_seconds": round(self.seconds, 1),
            "estimated_bytes": self.bytes,
            "free_bytes": self.free_bytes,
            "missing": [one.as_dict() for one in self.missing],
            "needed": list(self.needed),
            "ready": self.ready,
            "notes": list(self.notes),
        }


def plan_build(
    recipe: str = "digits",
    *,
    target: str = "local",
    out: Path | str | None = None,
    data: Path | str | None = None,
    settings: list[str] | None = None,
    contract: str | None = None,
    seed: int | None = None,
    jobs: int | None = None,
) -> DryRun:
    """Plans a build and writes nothing; options are those of `vsparse.build`, and what it refuses is refused here, by InputError.

    Data are loaded and the untrained network is built, since keys follow from both. Seconds and bytes of a cached stage are its own; of
    another one the seconds are those of the artifact that would be replaced, or follow by arithmetic (`vsparse.pipeline.estimate`).
    """
    with keeping_nothing():
        return _plan(recipe, target, out, data, settings, contract, seed, jobs or os.cpu_count() or 1)


def _plan(
    recipe: str,
    target: str,
    out: Path | str | None,
    data: Path | str | None,
    settings: list[str] | None,
    contract: str | None,
    seed: int | None,
    jobs: int,
) -> DryRun:
    own, data, settings = source_of(recipe, data, settings)
    wanted, device = resolve(recipe, target, settings, contract, seed)
    require_parent(wanted)
    directory = Path(out) if out is not None else default_out(wanted, device)
    require_replaceable(directory)
    plan = make_plan(wanted, device, None if data is None else Path(data), jobs, own and not names_forms(settings))
    before, splits = seconds_before(directory), plan.splits
    samples = {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)}
    groups = [[_planned(plan, stage, before, samples) for stage in group] for group in plan.groups("report")]
    stages = tuple(stage for group in groups for stage in group)
    lacking = [one for one in examine() if one.status != "ok" and (one.required or _used(one.name, plan))]
    kept = sum(stage.bytes for stage in stages if not stage.cached)
    notes = [*splits.notes, *plan.left_out]
    free = shutil.disk_usage(_existing(directory)).free
    whole = kept + sum(stage.bytes for stage in stages)  # the artifact is a copy of what the cache holds
    if whole > free:
        notes.append(f"about {whole / 2**20:,.0f} MiB are needed for cache and artifact, and {free / 2**20:,.0f} MiB are free")
    up_to_date = finished_artifact(directory, artifact_key(plan, plan.recipe, "report")) is not None
    return DryRun(
        recipe=plan.recipe.name,
        target=device.name,
        out=directory,
        up_to_date=up_to_date,
        jobs=jobs,
        training=steps_in_words(plan.recipe, samples["train"]),
        samples=samples,
        forms={form.name: kept_by for form, kept_by in plan.forms.items()},
        stages=stages,
        seconds=sum(_group_seconds(group, jobs) for group in groups),
        bytes=0 if up_to_date else whole,
        free_bytes=free,
        missing=tuple(lacking),
        needed=tuple(one.name for one in lacking if one.required or _fails_without(one.name, plan)),
        notes=tuple(notes),
    )


def _planned(plan: Plan, stage: Stage, before: dict[str, float], samples: dict[str, int]) -> PlannedStage:
    there = plan.cache.look(stage.name, stage.key)
    if there is not None:
        return PlannedStage(stage.name, stage.title, True, there.seconds, "cache", there.bytes, "cache")
    network = fold_batch_norm(plan.untrained)
    size = stage_bytes(stage.name, plan.recipe, network, samples)
    if stage.name in before:
        return PlannedStage(stage.name, stage.title, False, before[stage.name], "last build", size, "arithmetic")
    seconds = stage_seconds(stage.name, plan.recipe, network, samples, len(plan.forms))
    return PlannedStage(stage.name, stage.title, False, round(seconds, 1), "arithmetic", size, "arithmetic")


def _group_seconds(group: Sequence[PlannedStage], jobs: int) -> float:
    """Returns the seconds of stages that run side by side in so many processes."""
    open_ones = [stage.seconds for stage in group if not stage.cached]
    return max([sum(open_ones) / max(1, jobs), *open_ones], default=0.0)


def _used(name: str, plan: Plan) -> bool:
    """Whether a part that not every build needs is used by this one."""
    recipe, target = plan.recipe, plan.target
    small = target.device.kind == "microcontroller"
    return {
        "auto_LiRPA": recipe.verify.cross_check > 0 or recipe.train.engine == "auto_lirpa",
        "c compiler": target.c_source,
        "arm-none-eabi-gcc": small,
        "qemu-system-arm": small,
        "frama-c": recipe.export.c_analysis_seconds > 0,
        "cuda": recipe.train.device.startswith("cuda") or recipe.verify.device.startswith("cuda"),
        "int8 kernels": recipe.verify.contract == "int8-exact",
    }.get(name, False)


def _fails_without(name: str, plan: Plan) -> bool:
    """Whether this build, unlike others, fails without a part; without the rest of what it uses it leaves something out, and says so."""
    recipe = plan.recipe
    fails = {
        "auto_LiRPA": recipe.train.engine == "auto_lirpa",
        "cuda": recipe.train.device.startswith("cuda") or recipe.verify.device.startswith("cuda"),
        "int8 kernels": recipe.verify.contract == "int8-exact",
    }
    return fails.get(name, False)


def _existing(directory: Path) -> Path:
    """Returns the nearest folder above a path that is there."""
    place = directory.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place
