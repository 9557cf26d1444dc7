"""From a recipe and a target to an artifact: stages in order, each taken from the cache where nothing that goes in has changed."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vsparse import artifact
from vsparse.artifact.checks import NOT_RUN, Gate
from vsparse.artifact.choice import FormChoice
from vsparse.artifact.document import write_document, write_list
from vsparse.artifact.elsewhere import with_directory
from vsparse.artifact.facts import gather
from vsparse.artifact.features import FEATURES, features_of
from vsparse.artifact.forms import INT8_C, PRECISIONS, SEQUENTIAL
from vsparse.artifact.requirements import JudgedRequirement
from vsparse.artifact.samples import DataRecord, record_of
from vsparse.cluster.opened import opened, require_openable
from vsparse.contract import contract as contract_named
from vsparse.data.bundled import BUNDLED
from vsparse.data.load import DRAWN
from vsparse.errors import InputError, VsparseError
from vsparse.files import canonical_json, copy_tree, new_directory, remove_stale, sha256_bytes, write_bytes
from vsparse.graph.fold import fold_batch_norm
from vsparse.notebook import table
from vsparse.notebook_progress import in_notebook
from vsparse.pipeline.cache import SEAL, StageCache
from vsparse.pipeline.deploy import finish_models, write_columns
from vsparse.pipeline.gates import judge_training, require_judged, require_parent
from vsparse.pipeline.judged import carry_results, judge_artifact
from vsparse.pipeline.keys import code_hash
from vsparse.pipeline.plan import Plan, make_plan
from vsparse.pipeline.stage import Stage, run_stages
from vsparse.pipeline.steps import steps_in_words
from vsparse.pipeline.time_left import TimeLeft
from vsparse.pipeline.wanted import wants_int8_c, with_precisions
from vsparse.progress import Event, Reporter
from vsparse.recipe import Recipe, load_recipe, parse_setting
from vsparse.recipe_network import source_of
from vsparse.target import Target, load_target

Until = Literal["train", "compress", "export", "report"]
ORDER: tuple[Until, ...] = ("train", "compress", "export", "report")
EXPORTED: tuple[Until, ...] = ("export", "report")


@dataclass(frozen=True)
class BuildResult:
    """The result of a build: its directory, the outcome of its gates, its key figures, and the stages it went through.

    `advice` is the command that measures on the target, where nothing of it is on record yet; `device` says whose results the artifact
    holds, and `uncertified` what shows that it is not certified there.
    """

    directory: Path
    until: Until
    gates: tuple[Gate, ...]
    figures: dict[str, Any]
    lineage: tuple[artifact.StageRecord, ...]
    data: DataRecord | None = None
    not_measured: tuple[str, ...] = ()
    choice: FormChoice | None = None
    advice: str = ""
    uncertified: tuple[str, ...] = ()
    device: str = ""
    requirements: tuple[JudgedRequirement, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no gate failed; those that could not be measured here are in `not_measured`."""
        return all(gate.passed is not False for gate in self.gates)

    def _repr_html_(self) -> str:
        words = {True: "passed", False: "FAILED", None: "open"}
        columns = [name for name in ("sparse", "dense") if name in self.figures]
        names = dict.fromkeys(name for column in columns for name in self.figures[column] if not name.endswith("_interval"))
        figures = [(name.replace("_", " "), *(self.figures[column].get(name) for column in columns)) for name in names]
        gates = table("gates", ("gate", "wanted", "got", ""), [(one.name, one.wanted, one.got, words[one.passed]) for one in self.gates])
        rows = [(one.id, one.text, one.gate, one.status) for one in self.requirements]
        required = table("requirements", ("id", "requirement", "gate", "status"), rows) if rows else ""
        title = f"{self.figures.get('title', self.directory.name)}: {'passed' if self.passed else 'FAILED'}"
        return table(title, ("", *columns), figures, f"in {self.directory}") + gates + required


def resolve(
    recipe: str, target: str, settings: list[str] | None = None, contract: str | None = None, seed: int | None = None
) -> tuple[Recipe, Target]:
    """Loads recipe and target and settles what one leaves to the other: contract, opset and precisions.

    Raises InputError where they do not go together.
    """
    extra = list(settings or [])
    if seed is not None:
        extra.append(f"train.seed={seed}")
    device = load_target(target)
    wanted = with_precisions(load_recipe(recipe, extra), device)
    chosen = contract or wanted.verify.contract or device.default_contract
    contract_named(chosen)
    of_own_files = {form.name for form in PRECISIONS}
    offered = [precision.contract for name, precision in device.precisions.items() if name not in of_own_files]
    further = next((name for name, one in device.precisions.items() if name in of_own_files and one.contract == chosen), "")
    if further and chosen not in offered:
        raise InputError(
            f'the contract "{chosen}" is about a model file of its own, which a build adds; ask for it with --set export.precisions'
            f""" '["{further}"]' and leave --contract out"""
        )
    if chosen != "real" and chosen not in offered:
        raise InputError(
            f'target {device.name} does not honour the contract "{chosen}"; it honours {", ".join(offered)}, and `real` is always possible'
        )
    if SEQUENTIAL.label in wanted.choose.forms and not device.c_source:
        raise InputError(
            f"choose.forms names the C source, and target {device.name} asks for none; leave it out, or set c_source = true in the target"
        )
    if INT8_C.label in wanted.choose.forms and not wants_int8_c(wanted, device):
        raise InputError(
            f"choose.forms names {INT8_C.label}, which needs int8 in export.precisions, and of target {device.name} c_source = true and "
            "the contract int8 for int8; leave it out"
        )
    update = {
        "verify": wanted.verify.model_copy(update={"contract": chosen}),
        "export": wanted.export.model_copy(update={"opset": wanted.export.opset or device.runtime.opset}),
    }
    return wanted.model_copy(update=update), device


def default_out(recipe: Recipe, target: Target) -> Path:
    """Returns build/RECIPE-TARGET under the current directory."""
    return Path("build") / f"{recipe.name}-{target.name}"


def build(
    recipe: str = "digits",
    *,
    target: str = "local",
    out: Path | str | None = None,
    data: Path | str | None = None,
    settings: list[str] | None = None,
    contract: str | None = None,
    seed: int | None = None,
    jobs: int | None = None,
    until: Until = "report",
    adopt: Path | None = None,
    cluster: str | None = None,
    reporter: Reporter = in_notebook,
) -> BuildResult:
    """Builds an artifact, or finds that it is built; resumes where an interrupted build stopped.

    The path of an ONNX file in place of a recipe builds an artifact of that network as it is; with train.epochs above 0 it is trained on.
    `data` may then be the name of a built-in dataset.
    Failed gates do not raise: they are in the result, and the artifact is kept for inspection. Raises InputError for
    what the user can fix, GateError when training diverges, UnavailableError when a tool is absent. With `adopt`, the
    trained networks of that artifact are used, and training them again is refused. With `cluster`, its workers
    verify (`vsparse.cluster.opened`).
    """
    require_openable(cluster)
    own, data, settings = source_of(recipe, data, settings)
    wanted, device = resolve(recipe, target, settings, contract, seed)
    if until == "report":
        require_parent(wanted)
        require_judged(wanted, device)
    directory = Path(out) if out is not None else default_out(wanted, device)
    require_replaceable(directory)
    cache = StageCache()
    plan = make_plan(wanted, device, None if data is None else Path(data), jobs or os.cpu_count() or 1, own and not names_forms(settings))
    wanted = plan.recipe
    if until not in EXPORTED:  # another target's forms may follow
        asked = load_recipe(recipe, settings).export
        kept = {"precisions": asked.precisions, "float_layers": asked.float_layers}
        wanted = wanted.model_copy(update={"export": wanted.export.model_copy(update=kept)})
    if adopt is not None:
        _adopt(adopt, plan)
    road_key = artifact_key(plan, wanted, until)
    with cache.lock("out-" + sha256_bytes(str(directory.absolute()).encode())[:16]):
        remove_stale(directory)
        finished = finished_artifact(directory, road_key)
        if finished is not None:
            reporter(Event("note", "build", f"{directory} is up to date"))
            return _result(directory, finished)
        for note in plan.splits.notes:
            reporter(Event("warning", "data", note))
        if wanted.train.start and wanted.data.name not in BUNDLED and plan.splits.origins["test"].startswith(DRAWN):
            seen = (
                f"test samples: {plan.splits.origins['test']}; train.start may have been trained on them, which a split of yours rules out"
            )
            reporter(Event("warning", "data", seen))
        for note in plan.left_out:
            reporter(Event("warning", "export", note))
        reporter(Event("note", "build", steps_in_words(wanted, len(plan.splits.train))))
        if wanted.train.start and wanted.train.epochs:
            reporter(Event("note", "build", f"training starts from {wanted.train.start} (sha256 {wanted.train.start_sha256[:12]}…)"))
        _foresee(plan, until, reporter)
        timed = TimeLeft(plan.groups(until), seconds_before(directory), plan.jobs, reporter)
        with opened(cluster) as address:
            groups = replace(plan, cluster=address).groups(until)
            lineage = [record for group in groups for record in _walk(cache, group, plan.jobs, timed)]
        with new_directory(directory) as new:
            _assemble(new, directory, plan, wanted, device, until, cache, lineage)
            manifest = artifact.write_manifest(new, seed=wanted.train.seed, until=until, road_key=road_key, lineage=lineage)
    return _result(directory, manifest)


def names_forms(settings: list[str] | None) -> bool:
    """Returns whether settings say which precisions are exported."""
    return any(parse_setting(text)[0] == ["export", "precisions"] for text in settings or [])


def artifact_key(plan: Plan, recipe: Recipe, until: Until) -> str:
    """Returns the hash of all that an artifact is made of: an artifact of this key is up to date."""
    content = {
        "until": until,
        "stages": [stage.key for stage in plan.stages(until)],
        "recipe": recipe.model_dump(mode="json"),
        "target": plan.target.model_dump(mode="json"),
        "code": code_hash("stages/report", "stages/export", "artifact", "pipeline", "majority"),
    }
    return sha256_bytes(canonical_json(content))


def _foresee(plan: Plan, until: Until, reporter: Reporter) -> None:
    """Says before anything is trained that there will be no second opinion on the network, where one is asked for and trying it fails."""
    recipe = plan.recipe
    judged = next((stage for stage in plan.stages(until) if stage.name == "verify-sparse"), None)
    about = recipe.property.perturbation
    asked = recipe.verify.cross_check and about.is_box and not about.regression
    if judged is None or not asked or plan.cache.finished(judged.name, judged.key) is not None:
        return
    from vsparse.stages.verify.cross_check import no_comparison

    reason = no_comparison(fold_batch_norm(plan.untrained), plan.no_second_verifier)
    if reason.startswith(NOT_RUN):
        reporter(Event("warning", "build", f"the cross-check will not be run: {reason.removeprefix(NOT_RUN)}; everything else is"))
    elif reason:
        reporter(Event("note", "build", f"there will be no second opinion on this network: {reason}"))


def require_replaceable(directory: Path) -> None:
    """An artifact may be replaced by a newer one; anything else that stands at --out is not ours to remove."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise InputError(f"--out {directory} is there and is no directory; choose another")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / artifact.MANIFEST).is_file():
        raise InputError(f"--out {directory} holds something that is no artifact; choose an empty or new directory")


def seconds_before(directory: Path) -> dict[str, float]:
    """Returns how long each stage of the artifact that is to be replaced took, by its name; nothing where there is none."""
    try:
        return {record.stage: record.seconds for record in artifact.read_manifest(directory).lineage}
    except VsparseError:
        return {}


def finished_artifact(directory: Path, road_key: str) -> artifact.Manifest | None:
    """Returns the manifest of an artifact that is what would be built now, unchanged since; None otherwise."""
    try:
        manifest = artifact.require_intact(directory)
    except VsparseError:
        return None
    return manifest if manifest.road_key == road_key else None


def _walk(cache: StageCache, group: list[Stage], jobs: int, reporter: Reporter) -> list[artifact.StageRecord]:
    """Runs the stages of a group side by side where they have workers, and returns their records."""
    found = {stage.name: cache.finished(stage.name, stage.key) for stage in group}
    pending = [stage for stage in group if found[stage.name] is None]
    for stage in group:
        if stage not in pending:
            reporter(Event("done", stage.title, reused=True))
    run_stages(cache, pending, jobs, reporter)
    return [
        artifact.StageRecord(
            stage=stage.name,
            key=stage.key,
            seconds=cache.seconds(_kept(cache, stage)),
            reused=stage not in pending,
            folder=stage.folder,
            start_sha256=stage.start_sha256,
        )
        for stage in group
    ]


def _kept(cache: StageCache, stage: Stage) -> Path:
    directory = cache.finished(stage.name, stage.key)
    if directory is None:
        raise InputError(f"the cache {cache.root} lost {stage.title} while it was in use; run the same command again")
    return directory


def _adopt(directory: Path, plan: Plan) -> None:
    """Puts the trained networks of an artifact into the cache; InputError when they come from other data or another vsparse."""
    recorded = {record.stage: record for record in artifact.require_intact(directory).lineage}
    for stage in plan.stages("train"):
        record = recorded.get(stage.name)
        if record is None or record.key != stage.key:
            raise InputError(
                f"artifact {directory} was trained from other data, another recipe or another version of vsparse or torch; "
                "give the same --data, or run `vsparse build` again"
            )
        if plan.cache.finished(stage.name, stage.key) is None:
            plan.cache.store(stage.name, stage.key, partial(_copy_files, directory / record.folder), record.seconds)


def _copy_files(source: Path, destination: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file():
            shutil.copyfile(path, destination / path.name)


def rewrite_report(directory: Path) -> Path:
    """Writes the report of an intact artifact again, in a new copy of it that takes its place in one step; returns the report's path."""
    from vsparse.stages.report import write_report

    manifest = artifact.require_intact(directory)
    with new_directory(directory) as new:
        copy_tree(directory, new)
        write_report(new)
        lineage = list(manifest.lineage)
        artifact.write_manifest(
            new, seed=manifest.seed, until=manifest.until, road_key=manifest.road_key, lineage=lineage, built_by=manifest
        )
    return directory / artifact.REPORT


def _assemble(
    new: Path, old: Path, plan: Plan, recipe: Recipe, target: Target, until: Until, cache: StageCache, lineage: list[artifact.StageRecord]
) -> None:
    """Copies the stages' files into place and writes what belongs to the artifact as a whole; `old` is the one that is replaced, if any."""
    for stage in plan.stages(until):
        copy_tree(_kept(cache, stage), new / stage.folder, leave_out=(SEAL,))
    write_bytes(new / artifact.RECIPE, recipe.to_toml().encode())
    write_bytes(new / artifact.TARGET, target.to_toml().encode())
    write_document(new / artifact.DATA, record_of(plan.splits))
    features = features_of(plan.splits, plan.recipe.property.perturbation)
    if until in EXPORTED:
        if features is not None:
            write_document(new / FEATURES, features)
            write_columns(new, features, recipe)
        finish_models(new, target, recipe)
    from vsparse.stages.report import write_report

    if until != "report":
        write_list(new / artifact.GATES, judge_training(recipe, gather(new)))
    else:
        carry_results(old, new)
        # The report shows provenance, so it needs a manifest; the final one, with the report's own hash, replaces it.
        artifact.write_manifest(new, seed=recipe.train.seed, until=until, road_key="", lineage=lineage)
        judge_artifact(new, recipe, target)
        artifact.write_manifest(new, seed=recipe.train.seed, until=until, road_key="", lineage=lineage)
        write_report(new)


def _result(directory: Path, manifest: artifact.Manifest) -> BuildResult:
    from vsparse.pipeline.figures import key_figures

    facts = gather(directory)
    return BuildResult(
        directory=directory,
        until=next(step for step in ORDER if step == manifest.until),
        gates=facts.gates,
        figures=key_figures(facts),
        data=facts.data,
        not_measured=facts.not_measured,
        choice=facts.choice,
        advice=with_directory(facts.advice, directory),
        uncertified=facts.uncertified,
        device="" if facts.device is None else facts.device.label,
        lineage=manifest.lineage,
        requirements=facts.requirements,
    )
