"""Recipes: what is wanted, as a TOML file in which every key has a default (docs/reference-recipe.md)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli_w
from pydantic import Field, field_validator, model_validator

from vsparse.artifact.forms import PRECISIONS
from vsparse.c_prefix import DEFAULT_PREFIX, require_prefix
from vsparse.errors import InputError, nearest
from vsparse.perturbation import Norm, PerturbationSet
from vsparse.recipe_data import Data
from vsparse.recipe_gates import Choose, Gates
from vsparse.recipe_network import of_network
from vsparse.recipe_requirements import Requirement, as_list, wrong_requirement
from vsparse.recipe_train import OBJECTIVES, OF_START, REGRESSION, DeviceName, Sparse, Train, beside
from vsparse.schema import ExactNumber, Section, parse_toml, validate
from vsparse.shipped import shipped_file, shipped_names

__all__ = [
    "Choose",
    "Compress",
    "Data",
    "Deploy",
    "Export",
    "Gates",
    "Network",
    "Profile",
    "Property",
    "Recipe",
    "Sparse",
    "Train",
    "Verify",
    "apply_settings",
    "load_recipe",
    "parse_setting",
    "with_device",
]

# In export.precisions: every form that the target offers; in export.float_layers: what it takes to keep within choose.certified_loss.
AUTO = "auto"


class Network(Section):
    """The architecture: a name from `vsparse models`, or `package.module:function` that returns an nn.Module."""

    architecture: str = Field(
        "cnn4", description="`vsparse models` lists the names; start: that of the ONNX file train.start, and the default where there is one"
    )
    width: float = Field(1.0, gt=0, le=16, description="multiplies every hidden channel and unit count")


class Property(Section):
    """What the certificate is about: what may happen to each test sample, clipped to the data range (docs/properties.md)."""

    norm: Norm = Field("linf", description="of the perturbation")
    epsilon: ExactNumber = Field("0.1", description="radius on inputs scaled to [0, 1]; 0.1 and 8/255 are both exact")
    brightness: ExactNumber = Field("0", description="most that is added to all values of a sample alike, or taken from them")
    contrast: ExactNumber = Field("0", description="most that a sample's distance from medium grey grows or shrinks by, as a fraction")
    features: dict[str, ExactNumber] = Field(
        {}, exclude_if=({}).__eq__, description="of a table: radii of columns in their own units, in place of epsilon standard deviations"
    )
    scales: tuple[ExactNumber, ...] = Field(
        (),
        exclude_if=().__eq__,
        description="factor of epsilon for each input value, for norm linf alone; empty: 1; of a table the build derives it",
    )
    delta: ExactNumber = Field(
        "0",
        exclude_if=("0").__eq__,
        description="regression: most that the answer may change, in its own unit; above 0 for regression alone",
    )
    samples: int = Field(0, ge=0, description="how many test samples to certify, the first ones; 0: all")
    curve: tuple[ExactNumber, ...] = Field((), description="further radii for the curve; empty: ten steps to twice epsilon")
    curve_samples: int = Field(1000, ge=1, description="how many test samples the curve uses, evenly spaced over the split")

    @property
    def perturbation(self) -> PerturbationSet:
        """The perturbation set that the keys state."""
        return PerturbationSet.model_validate(self.model_dump(include={"norm", "epsilon", "brightness", "contrast", "scales", "delta"}))


class Compress(Section):
    """Physical removal of what the mask leaves unused, and the exact reductions."""

    exact: bool = Field(
        True, description="remove units that interval bounds over the whole input range prove dead, merge affine pairs when smaller"
    )


if TYPE_CHECKING:
    PrecisionName = str
else:  # the names of the table of forms, so that a wrong one is refused with those there are
    PrecisionName = Literal[(AUTO, *(form.name for form in PRECISIONS))]


class Export(Section):
    """The deployed files."""

    opset: int = Field(0, ge=0, le=26, description="0: the target's")
    precisions: tuple[PrecisionName, ...] = Field(
        (),
        description="further ones, each a model file of its own, certified under its own contract; auto, alone: all that the target offers",
    )
    float_layers: tuple[str, ...] = Field(
        (),
        description="layers that the int8 file keeps in float32: names of the layer table, first, last; "
        "auto: those that it takes to lose at most choose.certified_loss (docs/training.md)",
    )
    int8_epochs: int = Field(
        0,
        ge=-1,
        le=100_000,
        description="epochs that the int8 network is trained on as it rounds (docs/training.md); -1: a quarter of train.epochs; 0: none",
    )

    c_prefix: str = Field(DEFAULT_PREFIX, description="what the names in model.h begin with; another one for each network of a program")
    c_analysis_seconds: float = Field(
        0.0,
        ge=0,
        le=86_400,
        description="most seconds that Frama-C, where installed, may look for undefined behaviour in each network in C; 0: it does not",
    )
    c_weights: Literal["text", "binary", "auto"] = Field(
        "auto",
        description="notation of the weights of model.c (docs/c.md): C99, a file of bytes for ELF, or the latter where they are many",
    )

    @field_validator("precisions")
    @classmethod
    def _all_or_some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if AUTO in value and len(value) > 1:
            raise ValueError(f'"{AUTO}" stands for every form that the target offers; leave the others out, or "{AUTO}"')
        return value

    @field_validator("c_prefix")
    @classmethod
    def _identifier(cls, value: str) -> str:
        try:
            return require_prefix(value)
        except InputError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _once(self) -> Export:
        for key, names in (("precisions", self.precisions), ("float_layers", self.float_layers)):
            if len(set(names)) < len(names):
                raise ValueError(f"{key} names one of them twice")
        if self.float_layers and not {AUTO, "int8"} & set(self.precisions):
            raise ValueError('float_layers is about the int8 file; add "int8" to export.precisions, or leave float_layers out')
        return self


class Deploy(Section):
    """What the deployed files do beside inference."""

    live: bool = Field(False, description="they certify the input at hand, on the device, by interval bounds (docs/live.md)")
    live_budget: int = Field(
        0, ge=0, le=65_535, exclude_if=(0).__eq__, description="backward passes that C may spend on margins left open (docs/live.md)"
    )


class Verify(Section):
    """Re-verification of the exported file."""

    contract: str = Field("", description="numeric contract; empty: the target's")
    methods: tuple[Literal["interval", "crown-ibp", "crown", "alpha-crown", "branch-and-bound"], ...] = Field(
        ("interval", "crown-ibp", "crown", "alpha-crown", "branch-and-bound"),
        min_length=1,
        description="bounds to try, the cheapest first",
    )
    branch_domains: int = Field(
        256, ge=0, le=10_000_000, description="parts of a region that branch and bound looks at for one sample; 0: it is left out"
    )
    attack_steps: int = Field(40, ge=1, le=10_000, description="steps of projected gradient descent")
    attack_restarts: int = Field(5, ge=1, le=10_000, description="random starts of the attack")
    cross_check: int = Field(16, ge=0, description="samples on which bounds are compared with auto_LiRPA's; 0: none")
    batch_size: int = Field(64, ge=1, description="samples bounded at once; lower it when memory is short")
    memory: int = Field(2048, ge=64, le=2**20, exclude_if=(2048).__eq__, description="MiB that bounds may take, beside the network")
    refine_work: float = Field(150, ge=0, le=1e9, exclude_if=(150.0).__eq__, description="1e9 multiplications to refine a sample's bounds")
    branch_batch: int = Field(
        0, ge=0, le=65_536, description="parts of a region that branch and bound splits at once; 0: 128 on cpu, 1024 on an accelerator"
    )
    device: DeviceName = Field("cpu", description="cpu, cuda, cuda:N, or auto: the first CUDA device where there is one, else cpu")


class Profile(Section):
    """Latency on this machine."""

    runs: int = Field(300, ge=10, le=1_000_000, description="least number of timed runs")
    seconds: float = Field(2.0, gt=0, le=3600, description="least time of timed runs")
    warmup: int = Field(50, ge=0, le=1_000_000, description="runs before those that are timed")
    threads: int = Field(1, ge=1, le=256, description="threads inside one operator")
    batch: int = Field(1, ge=1, le=65_536, description="samples of one run")


class Recipe(Section):
    """A whole recipe."""

    schema_version: Literal[1] = Field(1, description="of this format")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="letters, digits, dot, dash; default: the file's name")
    description: str = Field("", description="one line for people")
    data: Data = Data()
    network: Network = Network()
    property: Property = Property()
    train: Train = Train()
    compress: Compress = Compress()
    export: Export = Export()
    deploy: Deploy = Field(Deploy(), exclude_if=lambda value: value == Deploy())
    verify: Verify = Verify()
    profile: Profile = Profile()
    gates: Gates = Gates()
    choose: Choose = Choose()
    requirements: tuple[Requirement, ...] = Field(
        (), exclude_if=lambda value: not value, description="ids of a specification and the gates that decide them, below"
    )

    @field_validator("requirements", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return as_list(value)

    @model_validator(mode="before")
    @classmethod
    def _training_radius(cls, content: Any) -> Any:
        """Fills train.epsilon from the property, so that a resolved recipe has nothing left to default."""
        if isinstance(content, dict):
            train = content.get("train", {})
            wanted = content.get("property", {})
            if isinstance(train, dict) and isinstance(wanted, dict) and not train.get("epsilon"):
                return {**content, "train": {**train, "epsilon": _enclosing(wanted)}}
        return content

    @model_validator(mode="after")
    def _combinations(self) -> Recipe:
        wrong = self.unmet() or self.unfit_for_regression()
        if wrong:
            raise ValueError(wrong)
        if self.network.architecture == OF_START and not self.train.start:
            raise ValueError(f'network.architecture = "{OF_START}" is that of an ONNX file; name it in train.start')
        if self.gates.live_certified_accuracy and not self.deploy.live:
            raise ValueError("gates.live_certified_accuracy needs deploy.live = true, by which a device certifies anything by itself")
        if self.deploy.live and (self.property.scales or self.property.features):
            raise ValueError("deploy.live certifies one radius for all inputs, and property states one for each; leave deploy.live out")
        if self.deploy.live_budget and not self.deploy.live:
            raise ValueError("deploy.live_budget is what the live certificate may spend; set deploy.live = true, or leave it out")
        if AUTO in self.export.float_layers and not self.choose.certified_loss:
            raise ValueError(
                f'export.float_layers = ["{AUTO}"] keeps layers in float32 until at most choose.certified_loss is lost, '
                "and that is 0, which turns the limit off; set it, such as to 0.01, or name the layers"
            )
        crossed = bool(self.verify.cross_check) and self.property.perturbation.is_box
        precisions = None if AUTO in self.export.precisions else self.export.precisions
        if wrong := wrong_requirement(self.requirements, self.gates, crossed, precisions):
            raise ValueError(wrong)
        return self

    def unmet(self) -> str:
        """Returns why a gate or a choice is about a form that export.precisions does not ask for; empty where none is."""
        if AUTO in self.export.precisions:
            return ""  # known once there is a target
        for form in PRECISIONS:
            if self.gates.certified_of(form) and form.name not in self.export.precisions:
                return f"gates.{form.gate} needs {form.name} in export.precisions"
            if form.label in self.choose.forms and form.name not in self.export.precisions:
                return f"choose.forms names {form.label}, which needs {form.name} in export.precisions"
        return ""

    def unfit_for_regression(self) -> str:
        """Returns why keys do not go with regression, or with classes, whichever the data is of; empty where they do."""
        wanted, objective = self.property.perturbation.regression, self.train.objective
        if not self.data.is_regression:
            has = f'is about regression, and data.name = "{self.data.name}" has classes'
            if wanted:
                return f'property.delta {has}; leave it out, or set data.kind = "regression"'
            if objective == REGRESSION:
                return f'train.objective = "{REGRESSION}" {has}; set another, or set data.kind = "regression"'
            return ""
        if not wanted:
            return "the data has a number to predict, and property.delta, the most that it may change, is 0; set it above 0"
        if objective in OBJECTIVES and objective != REGRESSION:
            return f'train.objective = "{objective}" is about classes, and the data has a number to predict; set it to "{REGRESSION}"'
        if self.deploy.live:
            return "deploy.live certifies classes alone, and the data has a number to predict; leave it out"
        if set(self.export.precisions) - {AUTO}:
            return "export.precisions has forms that are certified of classes alone, and the data has a number to predict; leave it out"
        return ""

    def to_toml(self) -> str:
        """Returns the resolved recipe as TOML, with nothing left to default."""
        return tomli_w.dumps(self.model_dump(mode="json"))


def _enclosing(keys: dict[str, Any]) -> Any:
    """Returns the radius of the l∞ ball that a property's perturbation set lies in; its epsilon alone where the rest is not well formed."""
    epsilon = keys.get("epsilon", "0.1")
    more = {name: keys[name] for name in ("brightness", "contrast") if name in keys}
    try:
        stated = PerturbationSet.model_validate({"epsilon": epsilon, **more})
    except ValueError:
        return epsilon
    return str(stated.box_radius) if stated.photometric else epsilon


def parse_setting(text: str) -> tuple[list[str], Any]:
    """Splits `--set train.sparsity=0.9` into its key path and its TOML value (bare words are strings)."""
    key, equals, value = text.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise InputError(f"--set {text}: write it as section.key=value, such as --set train.sparsity=0.9")
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except ValueError:  # not TOML, or an integer of thousands of digits
        return path, value.strip()


def apply_settings(content: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Returns a copy of the document with each `section.key=value` put in; raises InputError where a path leads nowhere."""
    for text in settings:
        path, value = parse_setting(text)
        content = dict(content)
        table = content
        for part in path[:-1]:
            child = table.get(part, {})
            if not isinstance(child, dict):
                raise InputError(f"--set {text}: {part} is a value, not a section")
            table[part] = dict(child)
            table = table[part]
        table[path[-1]] = value
    return content


def with_device(device: str | None, settings: list[str] | None) -> list[str]:
    """Returns settings that put every section which computes on a device on `device`; the given ones follow, and so decide."""
    if device is None:
        return list(settings or [])
    sections = [name for name, section in (("train", Train), ("verify", Verify)) if "device" in section.model_fields]
    return [*(f"{name}.device={device}" for name in sections), *(settings or [])]


def load_recipe(name: str, settings: list[str] | None = None) -> Recipe:
    """Loads a recipe by its shipped name (`digits`) or its path (`my.toml`), then applies `--set` overrides.

    The path of an ONNX file stands for the recipe that takes this network as it is (`vsparse.recipe_network`).

    Raises InputError that names the file, the key and the nearest valid key or name.
    """
    path = shipped_file("models", name)
    if path is None:
        path = Path(name)
        if path.suffix != ".toml" and not path.exists():
            names = shipped_names("models")
            raise InputError(
                f'there is no recipe "{name}"{nearest(name, names)}; shipped: {", ".join(names)}; your own: give the path of its .toml file'
            )
    if path.is_dir():
        raise InputError(f"recipe {path} is a folder; `vsparse init {path}` writes a recipe for the images in it")
    given = of_network(path)
    content = apply_settings(beside(parse_toml(path, "recipe"), path) if given is None else given, settings or [])
    content.setdefault("name", path.stem)
    return validate(Recipe, content, f"recipe {path}")
