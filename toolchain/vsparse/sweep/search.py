"""The search: rung after rung, every configuration with every seed, side by side; what fails becomes a row with its reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Lock

from pydantic import ValidationError

from vsparse.errors import ClusterError, InputError, SoundnessError, VsparseError
from vsparse.pipeline.stage import Allotment
from vsparse.progress import Event, Reporter
from vsparse.recipe import Recipe
from vsparse.stages.train.checks import objection
from vsparse.sweep.grid import Configuration
from vsparse.sweep.halving import Halving, Rung, kept, shortened
from vsparse.sweep.pareto import front
from vsparse.sweep.results import Measured, Row, TrainingRun

# Resolves settings into a recipe; trains and measures one. Both raise VsparseError with a sentence for the user.
Resolve = Callable[[Sequence[str]], Recipe]
TrainAndMeasure = Callable[[Recipe, Reporter], Measured]


@dataclass(frozen=True)
class Job:
    """One training: a configuration, a seed, and the recipe that they make on this rung, or why they make none."""

    configuration: Configuration
    seed: int
    recipe: Recipe | None
    epochs: int
    reason: str = ""


def recipe_of(configuration: Configuration, seed: int, resolve: Resolve) -> Recipe | str:
    """Returns the recipe of a configuration, or the sentence why its settings do not go together.

    Raises InputError for a value that no combination could mend, such as a misspelt name.
    """
    try:
        recipe = resolve([*configuration.as_set(), f"train.seed={seed}"])
        return objection(recipe.train) or recipe
    except InputError as error:
        cause = error.__cause__
        problem = cause.errors()[0] if isinstance(cause, ValidationError) else None
        # What a section's own check refuses; a single key's type or range is a slip of whoever wrote the axis.
        if problem is not None and problem["type"] == "value_error" and isinstance(problem.get("input"), dict):
            return str(error)
        raise


def plan_jobs(configurations: Sequence[Configuration], seeds: Sequence[int], rung: Rung, resolve: Resolve) -> list[Job]:
    """Returns the trainings of a rung, configuration by configuration."""
    jobs = []
    for configuration in configurations:
        for seed in seeds:
            recipe = recipe_of(configuration, seed, resolve)
            if isinstance(recipe, Recipe):
                shorter = shortened(recipe, rung.fraction)
                if shorter:
                    settings = {**configuration.settings, **shorter}
                    recipe = recipe_of(Configuration(configuration.id, settings), seed, resolve)
            if isinstance(recipe, Recipe):
                jobs.append(Job(configuration, seed, recipe, recipe.train.epochs))
            else:
                jobs.append(Job(configuration, seed, None, 0, recipe))
    return jobs


def run_jobs(
    jobs: Sequence[Job], train: TrainAndMeasure, parallel: int, reporter: Reporter, stop: Callable[[], None], title: str
) -> list[TrainingRun]:
    """Trains all jobs, in at most `parallel` processes at once, and returns what came of each in the order given.

    An error that is about one training ends up in what is returned of it; an interrupt calls `stop`, which must make the trainings end, and
    is raised.
    """
    lock, slots, allotment = Lock(), SimpleQueue[int](), Allotment(parallel, len(jobs))
    for slot in range(1, parallel + 1):
        slots.put(slot)
    done = 0
    stopping = False

    def report(event: Event) -> None:
        with lock:
            reporter(event)

    def one(job: Job) -> TrainingRun:
        nonlocal done, stopping
        if stopping:  # nothing starts between an error in one thread and its arrival in the main one
            return TrainingRun(job.seed, job.epochs, None, "stopped")
        slot = slots.get()
        words = f"{job.configuration.id} ({job.configuration.label}), seed {job.seed}"
        try:
            with allotment.take(1 if job.recipe is None else job.recipe.train.processes):
                run = _tried(
                    job,
                    train,
                    lambda event: report(
                        event
                        if event.kind == "record"
                        else replace(event, kind="progress", stage=f"training {slot}", text=f"{job.configuration.id} {event.text}")
                    ),
                )
            with lock:
                if stopping:  # what is killed now has not failed
                    return run
                done += 1
                reporter(Event("note", title, f"{words}: {outcome(run)}"))
                reporter(Event("progress", title, f"{done} of {len(jobs)} trained", done, len(jobs)))
        except BaseException:
            stopping = True
            raise
        finally:
            slots.put(slot)
        return run

    reporter(Event("progress", title, "", 0, len(jobs)))
    with ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
        futures = [pool.submit(one, job) for job in jobs]
        try:
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2)
                for future in finished:
                    future.result()
        except BaseException:
            stopping = True
            for future in futures:
                future.cancel()
            stop()
            raise
    return [future.result() for future in futures]


def outcome(run: TrainingRun) -> str:
    """Returns what came of a training in a few words."""
    if run.measured is None:
        return run.reason
    found = run.measured
    certified, clean = 100 * found.certified_accuracy, 100 * found.clean_accuracy
    told = f"certified {certified:.1f} %, clean {clean:.1f} %, {found.macs:,} MACs, {found.bytes:,} bytes"
    return f"{told}; collapsed: {found.collapse}" if found.collapse else told


def _tried(job: Job, train: TrainAndMeasure, reporter: Reporter) -> TrainingRun:
    if job.recipe is None:
        return TrainingRun(job.seed, job.epochs, None, job.reason, InputError.exit_code)
    try:
        return TrainingRun(job.seed, job.epochs, train(job.recipe, reporter))
    except (SoundnessError, ClusterError):
        raise  # these are about the whole sweep
    except VsparseError as error:
        return TrainingRun(job.seed, job.epochs, None, str(error), error.exit_code)
    except OSError:
        raise  # a full disk or a lost folder is not this configuration's fault
    except Exception as error:
        # The last line: a worker's error carries its whole traceback.
        lines = str(error).strip().splitlines() or [""]
        return TrainingRun(
            job.seed,
            job.epochs,
            None,
            f"a bug in vsparse ({type(error).__name__}: {lines[-1]}); `vsparse train` with these settings shows it",
            InputError.exit_code,
        )


def search(
    configurations: Sequence[Configuration],
    seeds: Sequence[int],
    ladder: Sequence[Rung],
    resolve: Resolve,
    train: TrainAndMeasure,
    *,
    halving: Halving | None,
    axes: Sequence[str],
    jobs: int,
    reporter: Reporter,
    stop: Callable[[], None],
) -> list[Row]:
    """Returns a row for each configuration, in their order, with the Pareto front of those trained in full marked.

    Each rung trains whole recipes of its own length from their beginning, so a row's numbers are those of a training that ended.
    """
    rows: dict[str, Row] = {}
    entering = list(configurations)
    for index, rung in enumerate(ladder):
        title = f"rung {index + 1}/{len(ladder)}" if len(ladder) > 1 else "sweep"
        plan = plan_jobs(entering, seeds, rung, resolve)
        runs = run_jobs(plan, train, jobs, reporter, stop, title)
        found: dict[str, list[TrainingRun]] = {}
        for job, run in zip(plan, runs, strict=True):
            found.setdefault(job.configuration.id, []).append(run)
        last = index == len(ladder) - 1
        for one in entering:
            failed = any(run.measured is None for run in found[one.id])
            rows[one.id] = Row(one, index, tuple(found[one.id]), "failed" if failed else "finished" if last else "stopped")
        if not last and halving is not None:
            going = kept([rows[one.id] for one in entering], ladder[index + 1].configurations, halving.keep, axes)
            entering = [row.configuration for row in going]
    return mark_front([rows[one.id] for one in configurations], axes)


def mark_front(rows: Sequence[Row], axes: Sequence[str]) -> list[Row]:
    """Returns the rows with `pareto` set on those that were trained in full, not to a collapse, and that no other such row dominates."""
    full = [row for row in rows if row.status == "finished" and not row.collapse]
    best = {row.configuration.id for row, on in zip(full, front([row.point(axes) for row in full]), strict=True) if on}
    return [replace(row, pareto=row.configuration.id in best) for row in rows]
