"""What a sweep varies: axes on the command line and in files, their product, and which keys make sense."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from vsparse.errors import InputError, nearest
from vsparse.recipe import Recipe
from vsparse.schema import Section, known_keys, parse_toml, validate

SEED = "train.seed"
MAX_CONFIGURATIONS = 1000
# The rest of [data] decides what is validated on, and [property] what is certified: then no two rows could be compared.
DATA_KEYS = ("shift", "flip", "crop", "mean", "std")
SECTIONS = ("network", "train", "compress")

Settings = dict[str, Any]


class HalvingTable(Section):
    """`[halving]` of a sweep file."""

    eta: int = Field(3, ge=2, le=100, description="each rung keeps one in eta, and trains eta times as long")
    first_epochs: int = Field(3, ge=1, description="fewest epochs of the first rung")
    keep: Literal["front", "certified"] = Field("front", description="whom a rung keeps")


class SweepFile(Section):
    """A sweep file: axes, further points, and how to search."""

    schema_version: Literal[1] = 1
    grid: dict[str, Any] = Field({}, description="values of each key")
    point: tuple[dict[str, Any], ...] = Field((), description="settings that belong together; crossed with the grid")
    halving: HalvingTable | None = None
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """What is varied: values by key, and sets of settings that belong together; their product is the sweep."""

    axes: dict[str, list[Any]]
    points: tuple[Settings, ...] = ()


@dataclass(frozen=True)
class Configuration:
    """One combination of the grid, seeds apart; `id` is its index, `settings` maps recipe keys to values."""

    id: str
    settings: Mapping[str, Any]

    def as_set(self) -> list[str]:
        """Returns the settings as `--set` takes them."""
        return [setting(key, value) for key, value in self.settings.items()]

    @property
    def label(self) -> str:
        """The settings in a few words, each key by its last part where that is unambiguous."""
        last = [key.rpartition(".")[2] for key in self.settings]
        words = [
            f"{name if last.count(name) == 1 else key} {value if isinstance(value, str) else json.dumps(value)}"
            for name, (key, value) in zip(last, self.settings.items(), strict=True)
        ]
        return ", ".join(words) or "the recipe as it is"


def setting(key: str, value: Any) -> str:
    """Returns `key=value` as `--set` takes it; JSON's scalars, strings and arrays are TOML's too."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def read_sweep(arguments: Sequence[str]) -> tuple[Grid, SweepFile]:
    """Reads the values of `--sweep`, each `KEY=[VALUE, …]` or the path of a sweep file, into one grid.

    The file's other tables come back beside it, empty where no file was given. Raises InputError that names the argument, the
    key and the way out.
    """
    axes: dict[str, list[Any]] = {}
    file: SweepFile | None = None
    points: tuple[Settings, ...] = ()
    for argument in arguments:
        if "=" not in argument:
            if file is not None:
                raise InputError(f"--sweep {argument}: there is one sweep file already; put everything into one")
            file = validate(SweepFile, parse_toml(Path(argument), "sweep file"), f"sweep file {argument}")
            source = f"sweep file {argument}"
            found = flatten(file.grid)
            points = tuple(flatten(table) for table in file.point)
            for point in points:
                for key, value in point.items():
                    check_key(key, source)
                    if key == SEED:
                        raise InputError(f"{source}: {SEED} stands in a point; seeds are repeated for every point: put it under [grid]")
                    _plain(key, value, source)
        else:
            source = f"--sweep {argument}"
            key, _, text = argument.partition("=")
            try:
                found = {key.strip(): tomllib.loads(f"value = {text}")["value"]}
            except ValueError:  # not TOML, or an integer of thousands of digits
                raise InputError(f"{source}: write it as KEY=[VALUE, …], strings in quotes, or give the path of a .toml file") from None
        for key, values in found.items():
            if key in axes:
                raise InputError(f"{source}: {key} is given twice; put all its values into one list")
            axes[key] = _axis(key, values, source)
    for key in axes:
        if any(key in point for point in points):
            raise InputError(f"--sweep: {key} is an axis and stands in a point too; leave it out of one of them")
    if not axes and not points:
        raise InputError("--sweep: nothing is varied; give KEY=[VALUE, …] or a file with a [grid]")
    return Grid(axes, points), file or SweepFile()


def _axis(key: str, values: Any, source: str) -> list[Any]:
    check_key(key, source)
    if not isinstance(values, list) or not values:
        raise InputError(
            f"{source}: {key} needs a list of values, such as {key}=[{'…' if values in ([], {}) else json.dumps(values, default=str)}]"
        )
    for value in values:
        _plain(key, value, source)
        if values.count(value) > 1:
            raise InputError(f"{source}: {key} has {json.dumps(value)} twice; leave one out")
    return values


def _plain(key: str, value: Any, source: str) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise InputError(f"{source}: {key} has the value {value}, which no recipe key takes; leave it out") from None


def flatten(table: Mapping[str, Any], above: str = "") -> Settings:
    """Returns a TOML table with dotted keys, whether they were written dotted, quoted or as tables."""
    found: Settings = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found.update(flatten(value, f"{above}{key}."))
        else:
            found[f"{above}{key}"] = value
    return found


def check_key(key: str, source: str) -> None:
    """Raises InputError for a key that no recipe has (naming the nearest), a section, and one that would make rows incomparable."""
    model: type[BaseModel] = Recipe
    parts = key.split(".")
    for index, part in enumerate(parts):
        known = known_keys(Recipe, tuple(parts[:index]))
        field = model.model_fields.get(part)
        if field is None:
            raise InputError(f"{source}: {key} is not a key of a recipe{nearest(part, known)}")
        annotation = field.annotation
        section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        if section != (index < len(parts) - 1):
            if section:
                raise InputError(f"{source}: {key} is a section; name one of its keys: {', '.join(annotation.model_fields)}")  # type: ignore[union-attr]
            raise InputError(f"{source}: {'.'.join(parts[: index + 1])} is a value, not a section")
        if section:
            model = annotation  # type: ignore[assignment]
    if key == "train.baseline":
        raise InputError(f"{source}: a sweep trains no baselines; for the dense network sweep train.sparsity with 0 among its values")
    if parts[0] not in SECTIONS and not (parts[0] == "data" and parts[1] in DATA_KEYS):
        raise InputError(
            f"{source}: {key} does not change what is trained, or changes what it is measured on; "
            f"sweep keys of {', '.join(SECTIONS)} or data.{', data.'.join(DATA_KEYS)}, and give the rest with --set"
        )


def expand(grid: Grid) -> list[Configuration]:
    """Returns the configurations in the order of the axes (the last changes fastest), seeds left out; InputError for too many."""
    axes = {key: values for key, values in grid.axes.items() if key != SEED}
    points: Sequence[Settings] = grid.points or ({},)
    count = len(points) * prod(len(values) for values in axes.values())
    if count > MAX_CONFIGURATIONS:
        raise InputError(f"--sweep: {count} configurations are more than {MAX_CONFIGURATIONS}; leave out values or axes")
    combinations = [{**point, **dict(zip(axes, values, strict=True))} for point in points for values in product(*axes.values())]
    unique = [settings for index, settings in enumerate(combinations) if settings not in combinations[:index]]
    digits = max(2, len(str(len(unique))))
    return [Configuration(f"c{index:0{digits}d}", settings) for index, settings in enumerate(unique, 1)]


def seeds(grid: Grid, default: int) -> list[int]:
    """Returns the seeds that every configuration is trained with."""
    return list(grid.axes.get(SEED, [default]))
