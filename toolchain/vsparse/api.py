"""One typed function for each command; `import vsparse` offers them all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsparse.artifact.certificate import Certificate
from vsparse.ask import verify_property
from vsparse.environment import examine
from vsparse.limits import parse_memory
from vsparse.monitor import FrameCertifier
from vsparse.notebook import table
from vsparse.perturbation import PerturbationSet
from vsparse.pipeline.build import BuildResult, build, rewrite_report
from vsparse.prediction import predict
from vsparse.progress import Reporter, silent
from vsparse.recheck import recheck
from vsparse.recipe import Recipe, Verify, load_recipe
from vsparse.recipe_summary import RecipeSummary, summarise_recipe
from vsparse.results import CompressResult, ExportResult, Findings, Targets
from vsparse.shipped import shipped_names, shipped_settings
from vsparse.stages.profile.difference import compare_profiles
from vsparse.stages.report import compare_artifacts
from vsparse.standalone import compress_onnx, continue_artifact, export_onnx, profile
from vsparse.standalone import verify as verify_onnx
from vsparse.sweep import train_sweep
from vsparse.target import load_target
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
    "live",
    "models",
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
    publication, scaled from one, or our best (`vsparse.shipped.shipped_settings`)."""

    recipes: tuple[Recipe, ...]
    architectures: dict[str, str]
    settings: dict[str, str]

    def _repr_html_(self) -> str:
        rows = [
            (one.name, one.description, one.data.name, one.network.architecture, self.settings.get(one.name, "")) for one in self.recipes
        ]
        return table("recipes", ("name", "description", "data", "network", "settings"), rows)


def train(recipe: str = "digits", **options: Any) -> BuildResult:
    """Trains a certified sparse network and its dense parent, and stops there; options are those of `build`."""
    return build(recipe, until="train", **options)


def compress(source: Path | str, out: Path | str | None = None, data: Path | str | None = None) -> BuildResult | CompressResult:
    """Packs the network of a trained artifact, or an ONNX file of one's own (then the account of every layer is returned)."""
    source, out, data = Path(source), _path(out), _path(data)
    return continue_artifact(source, "compress", out=out, data=data) if source.is_dir() else CompressResult(compress_onnx(source, out))


def export(
    source: Path | str, target: str | None = None, out: Path | str | None = None, data: Path | str | None = None
) -> BuildResult | ExportResult:
    """Writes the deployed files of a trained artifact, or of an ONNX file of one's own (then what was checked is returned).

    Without a target they are for that of the artifact; of a file, for this machine.
    """
    source, out, data = Path(source), _path(out), _path(data)
    if source.is_dir():
        return continue_artifact(source, "export", target=target, out=out, data=data)
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
    reporter: Reporter = silent,
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
    return Models(tuple(load_recipe(name) for name in names), descriptions(), {name: shipped_settings(name) for name in names})


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
