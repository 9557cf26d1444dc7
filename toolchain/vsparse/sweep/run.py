"""The whole sweep: what is asked is checked, searched, and written to a directory; the chosen networks can be certified after."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vsparse import artifact
from vsparse.cluster.opened import opened, require_openable
from vsparse.data import load
from vsparse.errors import InputError
from vsparse.files import sha256_bytes, write_bytes, write_json
from vsparse.notebook import table
from vsparse.notebook_progress import in_notebook
from vsparse.pipeline.build import resolve
from vsparse.pipeline.cache import StageCache
from vsparse.pipeline.steps import leaves_open, resolved
from vsparse.progress import Reporter
from vsparse.recipe import Recipe, Sparse
from vsparse.schema import validate
from vsparse.sweep.certify import Certified, certify_rows
from vsparse.sweep.grid import SEED, Configuration, Grid, HalvingTable, SweepFile, expand, read_sweep, seeds
from vsparse.sweep.halving import Halving, Rung, check_axes, rungs
from vsparse.sweep.page import html
from vsparse.sweep.results import DEFAULT_AXES, SCHEMA_VERSION, Row
from vsparse.sweep.runner import PipelineRunner
from vsparse.sweep.search import mark_front, search
from vsparse.sweep.space import MAX_TRIALS, SearchSpace, TpeSampler, read_space, search_tpe, split_ranges
from vsparse.sweep.task import METHOD
from vsparse.worker import Workers

SWEEP = "sweep.json"
PAGE = "sweep.html"
CERTIFIED = "certified"
# Configurations that a sampler draws where --trials does not say.
DEFAULT_TRIALS = 32
# A sweep trains no baselines, and no gate of the recipe is about a network of another size.
ALONE = ("train.baseline=false", "gates={}")


@dataclass(frozen=True)
class Sweep:
    """What a sweep found: a row for each configuration, the ladder that it climbed, and what was certified afterwards."""

    directory: Path
    recipe: Recipe
    grid: Grid
    settings: tuple[str, ...]
    axes: tuple[str, ...]
    halving: Halving | None
    ladder: tuple[Rung, ...]
    jobs: int
    rows: tuple[Row, ...]
    certified: tuple[Certified, ...] = ()
    sampler: TpeSampler | None = None

    @property
    def front(self) -> tuple[Row, ...]:
        """The rows on the Pareto front, the most certified first."""
        return tuple(sorted((row for row in self.rows if row.pareto), key=lambda row: -(row.mean("certified_accuracy") or 0.0)))

    def _repr_html_(self) -> str:
        head = ("configuration", "clean", "certified", "on the front")
        rows = [
            (str(row.as_json().get("settings", "")), row.mean("clean_accuracy"), row.mean("certified_accuracy"), row.pareto)
            for row in self.rows
        ]
        return table(f"sweep of {self.recipe.name}, on the validation split", head, rows, f"in {self.directory}")

    def as_json(self) -> dict[str, Any]:
        """Returns what sweep.json holds: fractions from 0 to 1, bytes of float32 storage, seconds."""
        steps = [
            {
                "configurations": rung.configurations,
                "epochs_share": float(rung.fraction),
                "epochs": max(1, round(self.recipe.train.epochs * rung.fraction)),
            }
            for rung in self.ladder
        ]
        halving = None if self.halving is None else {"eta": self.halving.eta, "keep": self.halving.keep, "rungs": steps}
        return {
            "schema_version": SCHEMA_VERSION,
            "vsparse_version": artifact.tool_versions()["vsparse"],
            "recipe": self.recipe.name,
            "set": list(self.settings),
            "grid": self.grid.axes,
            "points": list(self.grid.points),
            "epsilon": self.recipe.property.epsilon,
            "norm": self.recipe.property.norm,
            "split": "validation",
            "certified_by": METHOD,
            "axes": list(self.axes),
            "halving": halving,
            **({} if self.sampler is None else {"sampler": self.sampler.as_json()}),
            "jobs": self.jobs,
            "configurations": [row.as_json() for row in self.rows],
            "certified_on_test": [one.as_json() for one in self.certified],
        }


def train_sweep(
    recipe: str = "digits",
    sweep: Sequence[str] = (),
    *,
    out: Path | str | None = None,
    data: Path | str | None = None,
    settings: Sequence[str] | None = None,
    seed: int | None = None,
    eta: int | None = None,
    first_epochs: int | None = None,
    keep: str | None = None,
    axes: Sequence[str] | None = None,
    certify: bool = False,
    jobs: int | None = None,
    cluster: str | None = None,
    sampler: str | None = None,
    trials: int | None = None,
    reporter: Reporter = in_notebook,
) -> Sweep:
    """Trains every combination of recipe keys in `sweep` (`KEY=[VALUE, …]`, or a sweep file) and compares them on the validation split.

    Trainings run side by side as one-thread processes and are kept in the stage cache, so that the same sweep, interrupted or
    widened, trains only what is missing. A configuration that cannot be trained is a row with its reason. With `certify` the
    networks on the Pareto front are built to the end and certified on the test split. `eta` asks for successive halving (`Halving`);
    what is None is taken from the sweep file. With `sampler` "tpe" Optuna draws `trials` configurations, from ranges
    `KEY={low = …, high = …}` too, in place of the whole product (`vsparse.sweep.space`). With `cluster`, an address or
    `local:N`, its workers train, as many networks at once as they have threads, and certify. Raises InputError for what cannot be asked.
    """
    require_openable(cluster)
    space, grid, file = _space(sweep, sampler, trials, eta)
    if seed is not None and SEED in grid.axes:
        raise InputError(f"--seed {seed}: {SEED} is swept; put the seed into its list, or leave --seed out")
    halving = _halving(file.halving, eta, first_epochs, keep)
    chosen = tuple(axes or file.axes or DEFAULT_AXES)
    check_axes(chosen)
    if halving is not None and any("train.epochs" in keys for keys in (grid.axes, *grid.points)):
        raise InputError(
            "--halving: train.epochs is what halving varies; leave it out of the sweep, and give the longest with --set train.epochs=…"
        )
    extra = [*(settings or ()), *([f"train.seed={seed}"] if seed is not None else []), *ALONE]
    base, target = resolve(recipe, "local", extra)
    if base.data.is_regression:
        raise InputError(f"a sweep compares accuracies of classes, and recipe {base.name} predicts a number; build each recipe by itself")
    folder = None if data is None else Path(data)
    sized = _Sized(folder)
    base = sized(base)
    directory = Path(out) if out is not None else Path("build") / f"{base.name}-sweep"
    _require_replaceable(directory)
    configurations = expand(grid) if space is None else []
    ladder = rungs(len(configurations) or DEFAULT_TRIALS, base.train.epochs, halving)
    cache = StageCache()
    with (
        cache.lock("out-" + sha256_bytes(str(directory.absolute()).encode())[:16]),
        opened(cluster) as address,
        _workers(address) as (workers, threads),
    ):
        workers_wanted = jobs or threads

        def trained(wanted: list[Configuration]) -> list[Row]:
            return search(
                wanted,
                seeds(grid, base.train.seed),
                ladder,
                lambda wanted: _plain(sized(resolve(recipe, "local", [*extra, *wanted])[0])),
                PipelineRunner(target, folder, workers),
                halving=halving,
                axes=chosen,
                jobs=workers_wanted,
                reporter=reporter,
                stop=workers.stop,
            )

        drawn = None if space is None else TpeSampler(trials or DEFAULT_TRIALS, base.train.seed, space.ranges)
        if space is None or drawn is None:
            rows = trained(configurations)
        else:
            rows = mark_front(search_tpe(space, drawn.trials, drawn.seed, chosen, trained), chosen)
        made = Sweep(directory, base, grid, tuple(settings or ()), chosen, halving, tuple(ladder), workers_wanted, tuple(rows))
        result = replace(made, sampler=drawn)
        _write(result)
        if certify and result.front:
            found = certify_rows(
                result.front,
                lambda wanted: _plain(sized(resolve(recipe, "local", [*extra, *wanted])[0])),
                directory / CERTIFIED,
                folder,
                workers_wanted,
                reporter,
                address,
            )
            result = Sweep(**{**result.__dict__, "certified": tuple(found)})
            _write(result)
    return result


class _Sized:
    """Gives recipes the batch size and the epochs that fit their data, where they leave them out; the data are read once a description.

    Only then do all rungs shorten the training that would be run in full.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._samples: dict[str, int] = {}

    def __call__(self, recipe: Recipe) -> Recipe:
        if not leaves_open(recipe):
            return recipe
        what = f"{recipe.data.model_dump_json()} {recipe.train.seed}"
        if what not in self._samples:
            try:
                self._samples[what] = len(load(recipe.data, self._folder, recipe.train.seed).train)
            except InputError:
                return recipe  # the training says it, as the reason of its row
        return resolved(recipe, self._samples[what])


def _space(sweep: Sequence[str], sampler: str | None, trials: int | None, eta: int | None) -> tuple[SearchSpace | None, Grid, SweepFile]:
    """Returns what is drawn from, where a sampler is asked for, and grid and sweep file; InputError for what does not go together."""
    if sampler not in (None, "grid", "tpe"):
        raise InputError(f'--sampler: there is no "{sampler}"; choose grid (every combination) or tpe')
    if sampler == "tpe":
        space, grid, file = read_space(sweep)
        if eta is not None or file.halving is not None:
            raise InputError(
                "--sampler tpe draws each configuration by those before, and --halving trains all at once; leave one of them out"
            )
        if trials is not None and not 1 <= trials <= MAX_TRIALS:
            raise InputError(f"--trials {trials}: give 1 to {MAX_TRIALS}")
        return space, grid, file
    if trials is not None:
        raise InputError("--trials goes with --sampler tpe; give that too")
    if split_ranges(sweep)[1]:
        raise InputError("--sweep: a range is drawn from; give --sampler tpe too, or a list of values")
    return None, *read_sweep(sweep)


@contextmanager
def _workers(address: str | None) -> Iterator[tuple[Workers, int]]:
    """Yields the workers of a sweep, and how many trainings they take at once: processes of this machine, or those of a cluster."""
    if address is None:
        with Workers() as workers:
            yield workers, os.cpu_count() or 1
        return
    from vsparse.sweep.on_cluster import ClusterWorkers  # Dask is an extra

    on_cluster = ClusterWorkers(address)
    with on_cluster:
        yield on_cluster, on_cluster.threads


def _halving(table: HalvingTable | None, eta: int | None, first_epochs: int | None, keep: str | None) -> Halving | None:
    """Returns how to halve: each option, else what the file says of it, else its default; None where neither asks for halving."""
    given = {name: value for name, value in (("eta", eta), ("first_epochs", first_epochs), ("keep", keep)) if value is not None}
    if table is None and eta is None:
        if given:
            raise InputError(f"--{next(iter(given)).replace('_', '-')} goes with --halving; give that too, such as --halving 3")
        return None
    chosen = validate(HalvingTable, {**(table.model_dump() if table else {}), **given}, "--halving")
    return Halving(chosen.eta, chosen.first_epochs, chosen.keep)


def _plain(recipe: Recipe) -> Recipe:
    """Returns the recipe without what a dense network does not read, so that a dense network is trained once, not for each sparsifier."""
    if recipe.train.is_sparse:
        return recipe
    unread = {"sparse": Sparse(), "budget": "weights", "macs_per_byte": type(recipe.train).model_fields["macs_per_byte"].default}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=unread)})


def _write(result: Sweep) -> None:
    content = result.as_json()
    write_json(result.directory / SWEEP, content)
    write_bytes(result.directory / PAGE, html(content).encode())


def _require_replaceable(directory: Path) -> None:
    """A sweep may be replaced by another; anything else that stands at --out is not ours to write into."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise InputError(f"--out {directory} is there and is no directory; choose another")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / SWEEP).is_file():
        raise InputError(f"--out {directory} holds something that is no sweep; choose an empty or new directory")
