"""A space to draw configurations from: lists of values and ranges, and Optuna's tree-structured Parzen estimator as who draws."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vsparse.errors import InputError, UnavailableError
from vsparse.recipe import Recipe
from vsparse.schema import Section, validate
from vsparse.sweep.grid import SEED, Configuration, Grid, SweepFile, check_key, read_sweep
from vsparse.sweep.results import Row

# Configurations that are drawn before any of them is told: they train side by side, and what is drawn does not depend on --jobs.
BATCH = 4
MAX_TRIALS = 1000
# Configurations drawn at random before the estimator is asked.
RANDOM_FIRST = 8


class RangeTable(Section):
    """`{low = …, high = …}` of a key: numbers from low to high, both included; `log` draws their logarithm evenly."""

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class SearchSpace:
    """What is drawn from: lists and ranges by key, and the seeds that each configuration is repeated with."""

    lists: dict[str, list[Any]]
    ranges: dict[str, RangeTable]
    points: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class TpeSampler:
    """How configurations were drawn: how many, by which seed, from which ranges beside the lists of the grid."""

    trials: int
    seed: int
    ranges: dict[str, RangeTable]

    def as_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        ranges = {key: one.model_dump(mode="json", exclude_none=True) for key, one in self.ranges.items()}
        return {"name": "tpe", "trials": self.trials, "seed": self.seed, "ranges": ranges}


def split_ranges(arguments: Sequence[str]) -> tuple[list[str], dict[str, RangeTable]]:
    """Returns the arguments of --sweep without `KEY={low = …, high = …}`, and those; InputError for a range that is none."""
    rest: list[str] = []
    ranges: dict[str, RangeTable] = {}
    for argument in arguments:
        key, equals, text = (part.strip() for part in argument.partition("="))
        if not (equals and text.startswith("{")):
            rest.append(argument)
            continue
        source = f"--sweep {argument}"
        check_key(key, source)
        try:
            content = tomllib.loads(f"value = {text}")["value"]
        except ValueError:
            raise InputError(f"{source}: write it as KEY={{low = 1e-4, high = 1e-2, log = true}}") from None
        found = validate(RangeTable, content, source)
        if key == SEED or key in ranges:
            raise InputError(
                f"{source}: {key} {'is a seed' if key == SEED else 'is given twice'}; give a range of it once, and seeds as a list"
            )
        if (
            not found.low < found.high
            or (found.log and (found.low <= 0 or found.step is not None))
            or (found.step is not None and found.step <= 0)
        ):
            raise InputError(
                f"{source}: low must be less than high, above 0 where log is true, and step above 0 without log; correct the range"
            )
        ranges[key] = found
    return rest, ranges


def read_space(arguments: Sequence[str]) -> tuple[SearchSpace, Grid, SweepFile]:
    """Reads --sweep with ranges; returns the space, the grid of its lists alone (as sweep.json has it), and the sweep file."""
    rest, ranges = split_ranges(arguments)
    if rest:
        grid, file = read_sweep(rest)
    else:
        grid, file = Grid({}), SweepFile()
    both = next((key for key in ranges if key in grid.axes or any(key in point for point in grid.points)), None)
    if both is not None:
        raise InputError(f"--sweep: {both} has a range and values; leave one of them out")
    lists = {key: values for key, values in grid.axes.items() if key != SEED}
    if not lists and not ranges and not grid.points:
        raise InputError("--sweep: nothing is varied but the seed; give a key with a list or a range")
    return SearchSpace(lists, ranges, grid.points), grid, file


TrainConfigurations = Callable[[list[Configuration]], list[Row]]


def search_tpe(space: SearchSpace, trials: int, seed: int, axes: Sequence[str], train: TrainConfigurations) -> list[Row]:
    """Returns the rows of `trials` configurations that TPE draws, each batch knowing the results of those before.

    The multi-objective tree-structured Parzen estimator of Optuna (Ozaki et al., GECCO 2020; Bergstra et al., NeurIPS 2011) on the axes.
    What is drawn follows from the seed and the results alone, so that the same sweep again draws the same, and trains nothing that the
    cache has. What failed or collapsed counts as the worst of each axis that was seen. A configuration that was drawn before is not
    trained again; it counts as a trial. UnavailableError where Optuna is not installed.
    """
    try:
        import optuna  # an extra
    except ImportError as error:
        raise UnavailableError(
            f"--sampler tpe: the package optuna is not installed ({error}); pip install 'vsparse[optuna]', or leave --sampler out"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_FIRST, multivariate=True)
    study = optuna.create_study(directions=["minimize"] * len(axes), sampler=sampler)
    rows: dict[str, Row] = {}
    known: dict[str, str] = {}
    drawn = 0
    digits = max(2, len(str(trials)))
    while drawn < trials:
        asked = []
        new: list[Configuration] = []
        for _ in range(min(BATCH, trials - drawn)):
            trial = study.ask()
            drawn += 1
            settings = _drawn(trial, space)
            text = repr(sorted(settings.items(), key=lambda item: item[0]))
            if text not in known:
                known[text] = f"c{len(known) + 1:0{digits}d}"
                new.append(Configuration(known[text], settings))
            asked.append((trial, known[text]))
        for row in train(new):
            rows[row.configuration.id] = row
        for trial, name in asked:
            values = _values(rows[name], list(rows.values()), axes)
            study.tell(trial, values, state=optuna.trial.TrialState.FAIL if values is None else None)
    return list(rows.values())


def _drawn(trial: Any, space: SearchSpace) -> dict[str, Any]:
    """Returns the settings that a trial draws, in the order of the space; a point counts as one choice among them."""
    settings: dict[str, Any] = {}
    if space.points:
        settings |= space.points[trial.suggest_categorical("[[point]]", list(range(len(space.points))))]
    for key, values in space.lists.items():
        settings[key] = values[trial.suggest_categorical(key, list(range(len(values))))]
    for key, wanted in space.ranges.items():
        whole = _is_whole(key)
        draw = trial.suggest_int if whole else trial.suggest_float
        low, high = (int(wanted.low), int(wanted.high)) if whole else (wanted.low, wanted.high)
        step = {} if wanted.step is None else {"step": int(wanted.step) if whole else wanted.step}
        settings[key] = draw(key, low, high, log=wanted.log, **step)
        if not whole:
            settings[key] = float(f"{settings[key]:.6g}")
    return settings


def _is_whole(key: str) -> bool:
    """Whether a recipe's key is an integer."""
    found: Any = Recipe
    for part in key.split("."):
        found = found.model_fields[part].annotation
    return found is int


def _values(row: Row, rows: Sequence[Row], axes: Sequence[str]) -> list[float] | None:
    """Returns what a row is worth on the axes, lower is better; the worst seen where it failed or collapsed, None without one."""
    if row.status == "finished" and not row.collapse:
        return list(row.point(axes))
    sound = [one.point(axes) for one in rows if one.status == "finished" and not one.collapse]
    return [max(values) for values in zip(*sound, strict=True)] if sound else None
