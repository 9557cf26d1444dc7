"""One typed function for each command; `import vsparse` offers them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vsparse.artifact.certificate import Certificate
from vsparse.ask import verify_property
from vsparse.dry_run import plan_build
from vsparse.editor_schema import editor_schema, is_ours
from vsparse.environment import examine
from vsparse.errors import InputError
from vsparse.files import read_json, write_bytes, write_json
from vsparse.given import GivenData, base, is_tensors, written
from vsparse.limits import parse_memory
from vsparse.monitor import FrameCertifier
from vsparse.notebook import table
from vsparse.notebook_progress import in_notebook
from vsparse.own_network import export_onnx, prune_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.pipeline.build import BuildResult, build, rewrite_report
from vsparse.prediction import predict
from vsparse.progress import Reporter
from vsparse.recheck import recheck
from vsparse.recipe import Recipe, Verify, load_recipe
from vsparse.recipe_summary import RecipeSummary, shipped_sources, summarise_recipe
from vsparse.results import CompressResult, ExportResult, Findings, Targets
from vsparse.shipped import shipped_names, shipped_settings
from vsparse.stages.profile.difference import compare_profiles
from vsparse.stages.report import compare_artifacts
from vsparse.standalone import compress_onnx, continue_artifact, profile
from vsparse.standalone import verify as verify_onnx
from vsparse.starter import SCHEMA, Recommendation, data_name, recipe_text, recommend, survey
from vsparse.sweep import train_sweep
from vsparse.target import load_target
from vsparse.training_log import logged
from vsparse_check import CheckResult

__all__ = [
    "Models",
    "build",
    "check",
    "compare_artifacts",
    "compare_profiles",
    "compress",
    "describe_model",
    "doctor",
    "export",
    "init",
    "live",
    "models",
    "plan_build",
    "predict",
    "profile",
    "report",
    "targets",
    "train",
    "train_sweep",
    "verify",
    "verify_property",
]


@dataclass(frozen=True)
class Models:
    """The shipped recipes, the named architectures with one line each, and by a recipe's name whether its settings are faithful to a
    publication, scaled from one, or our best (`vsparse.shipped.shipped_settings`), and where each of its keys has its setting from
    (`vsparse.recipe_sources.key_sources`)."""

    recipes: tuple[Recipe, ...]
    architectures: dict[str, str]
    settings: dict[str, str]
    sources: dict[str, dict[str, str]]

    def _repr_html_(self) -> str:
        rows = [
            (one.name, one.description, one.data.name, one.network.architecture, self.settings.get(one.name, "")) for one in self.recipes
        ]
        return table("recipes", ("name", "description", "data", "network", "settings"), rows)


def init(
    directory: Path | str,
    *,
    target: str = "local",
    out: Path | str | None = None,
    force: bool = False,
    column: str = "",
    drop: Sequence[str] = (),
) -> tuple[Recommendation, Path]:
    """Looks at data and a target, and writes a first recipe for them; returns what was found and chosen, and the recipe's path.

    Of a table `column` is the one to predict (default: by its name, or the last), and the columns of `drop` are left out.
    `out`: default NAME.toml in the current folder, NAME being that of the data's folder. InputError for data that a build would refuse,
    and for a file that is there already unless `force`.
    """
    device = load_target(target)
    path = Path(out) if out is not None else Path(f"{data_name(Path(directory).absolute())}.toml")
    if path.suffix != ".toml":
        raise InputError(f"--out {path} is no .toml file; a recipe's name ends in .toml, such as --out my.toml")
    if path.is_dir() or path.is_symlink() or (path.exists() and not force):
        way = (
            "give another name with --out"
            if path.is_dir() or path.is_symlink()
            else "give another name with --out, or replace it with --force"
        )
        raise InputError(f"{path} is there already; {way}")
    found = recommend(survey(Path(directory), column=column, drop=tuple(drop)), device)
    if path.exists() and not force:
        raise InputError(f"{path} was written meanwhile; give another name with --out, or replace it with --force")
    write_bytes(path, recipe_text(found).encode())
    _beside(path)
    return found, path


def _beside(recipe: Path) -> None:
    """Writes the schema that a recipe's first line names for editors, unless something else of that name is there."""
    schema = recipe.with_name(SCHEMA)
    if schema.exists():
        try:
            ours = is_ours(read_json(schema, "schema"))
        except InputError:
            ours = False
        if not ours:
            return
    write_json(schema, editor_schema("recipe"))


def train(
    recipe: str | Path | Recipe | nn.Module | None = None,
    data: Path | str | GivenData | None = None,
    *,
    module: nn.Module | None = None,
    out: Path | str | None = None,
    settings: list[str] | None = None,
    log: Path | str | None = None,
    tensorboard: Path | str | None = None,
    reporter: Reporter = in_notebook,
    **options: Any,
) -> BuildResult:
    """Trains a certified sparse network and its dense parent, and stops there; further options are those of `build`.

    `recipe` is the name or file of a recipe, a Recipe, or a network; `module` is the network, where a recipe is given too. Its weights are
    those that training begins with. `data` is a folder, or tensors or arrays: (x, y), ((x, y), (x_test, y_test)), or a dictionary with the
    keys train, validation and test; x is [n, channels, height, width], uint8 or floats from 0 to 1. What is given in memory is written
    beside the artifact, into OUT-given, from which the other stages read it. `log` and `tensorboard` are as on the command line
    (docs/how-to-log.md). Raises InputError for what cannot be trained.
    """
    if isinstance(recipe, nn.Module):
        if module is not None:
            raise InputError("a network is given twice, as recipe and as module; give the recipe first, or one network")
        recipe, module = None, recipe
    about: dict[str, Any] = {"recipe": recipe.name if isinstance(recipe, Recipe) else str(recipe or "digits"), "set": list(settings or [])}
    named = str(recipe or "digits")
    tensors = is_tensors(data)
    if tensors or module is not None or isinstance(recipe, Recipe):
        chosen = base(recipe, "given" if tensors else "digits")
        about["recipe"] = chosen.name
        out = Path(out) if out is not None else Path("build") / f"{chosen.name}-local"
        beside = out.with_name(f"{out.name}-given")
        named = str(written(beside, chosen, data if tensors else None, module, settings, None if tensors else _path(data)))  # type: ignore[arg-type]
        data = None if tensors else data
    with logged(reporter, _path(log), _path(tensorboard), about) as reporting:
        return build(named, until="train", out=out, data=data, settings=settings, reporter=reporting, **options)  # type: ignore[arg-type]


def compress(
    source: Path | str, out: Path | str | None = None, data: Path | str | None = None, *, sparsity: float | None = None
) -> BuildResult | CompressResult:
    """Packs the network of a trained artifact, or an ONNX file of one's own (then the account of every layer is returned).

    With `sparsity`, so many of the file's weights are removed first, in one shot without training, calibrated on training samples of
    `data`; InputError where there are none, or the source is an artifact.
    """
    source, out = Path(source), _path(out)
    if sparsity is not None:
        if data is None or source.is_dir():
            raise InputError("sparsity is of an ONNX file and is calibrated on samples; give the file, and data")
        return CompressResult(prune_onnx(source, sparsity, data, out))
    return (
        continue_artifact(source, "compress", out=out, data=_path(data)) if source.is_dir() else CompressResult(compress_onnx(source, out))
    )


def export(
    source: Path | str, target: str | None = None, out: Path | str | None = None, data: Path | str | None = None
) -> BuildResult | ExportResult:
    """Writes the deployed files of a trained artifact, or an artifact of an ONNX file of one's own (then what was checked is returned).

    Without a target they are for that of the artifact; of a file, for this machine. Of a file with `data` the whole artifact is built,
    its certificates too, as `build` does it.
    """
    source, out = Path(source), _path(out)
    if source.is_dir():
        return continue_artifact(source, "export", target=target, out=out, data=_path(data))
    if data is not None:
        return build(str(source), target=target or "local", out=out, data=data)
    return ExportResult(export_onnx(source, target or "local", out))


def verify(
    model: Path | str,
    *,
    data: str,
    epsilon: str,
    norm: str = "linf",
    brightness: str = "0",
    contrast: str = "0",
    samples: int = 0,
    contract: str | None = None,
    out: Path | str | None = None,
    seed: int = 0,
    jobs: int | None = None,
    settings: Verify | None = None,
    vnnlib: Path | str | None = None,
    cluster: str | None = None,
    device: str | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    reporter: Reporter = in_notebook,
) -> Certificate:
    """Certifies any ONNX classifier on the test split of a dataset, under what may happen to a sample (docs/properties.md).

    Numbers are text, such as 0.1 or 8/255, and exact. The rest is as for `vsparse.standalone.verify`.
    """
    perturbation = PerturbationSet.parse("the property asked for", norm=norm, epsilon=epsilon, brightness=brightness, contrast=contrast)
    return verify_onnx(
        Path(model),
        data=data,
        perturbation=perturbation,
        samples=samples,
        contract=contract,
        out=_path(out),
        seed=seed,
        jobs=jobs,
        settings=settings,
        vnnlib=_path(vnnlib),
        cluster=cluster,
        device=device,
        mean=mean,
        std=std,
        reporter=reporter,
    )


def report(directory: Path | str) -> Path:
    """Writes the report of an artifact again and returns its path."""
    return rewrite_report(Path(directory))


def check(directory: Path | str, *, data: str | None = None, memory: str | int | None = None, work: int | None = None) -> CheckResult:
    """Runs the independent checker on an artifact; the result is true where every claim, hash and file that follows is confirmed.

    `data` names the data that claims should be about; `memory` is in bytes or a text such as 4GiB, `work` in billions of operations.
    """
    most = parse_memory(memory) if isinstance(memory, str) else memory
    return recheck(Path(directory), data=data, memory_bytes=most, work=work)


def live(artifact: Path | str, *, form: str | None = None, compiled: bool = True) -> FrameCertifier:
    """Returns what certifies frames as the device would, to the bit: `vsparse.live(artifact)(frames, epsilon)` (docs/live.md).

    `form` is `sequential` (model.c) or `int8-c` (model.int8.c), and that of choice.json where it is left out. With a C compiler, and where
    `compiled` is true, the network's C is executed, else its simulation. InputError for a directory that is no artifact, for a form that
    it does not hold, and for a network without a live certificate.
    """
    return FrameCertifier(artifact, form=form, compiled=compiled)


def targets() -> Targets:
    """Returns the shipped targets."""
    return Targets(load_target(name) for name in shipped_names("targets"))


def models() -> Models:
    """Returns the shipped recipes and the named architectures."""
    from vsparse.networks import descriptions

    names = shipped_names("models")
    settings: dict[str, str] = {name: shipped_settings(name) for name in names}
    return Models(tuple(load_recipe(name) for name in names), descriptions(), settings, {name: shipped_sources(name) for name in names})


def describe_model(name: str) -> RecipeSummary:
    """Returns what a shipped recipe, or one in a .toml file, builds: data, network with its costs, property, training, gates, source.

    Raises InputError for a name that is no recipe, with the nearest one.
    """
    return summarise_recipe(name)


def doctor() -> Findings:
    """Tries out what a build needs on this machine, by using it."""
    return Findings(examine())


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value)
