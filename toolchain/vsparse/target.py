"""Targets: where a network will run, with a source for every number (docs/reference-target.md)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import Field, model_validator

from vsparse.contract import CONTRACTS
from vsparse.errors import InputError, nearest
from vsparse.processor import half_precision_contract, kept_contracts, this_processor
from vsparse.schema import Section, parse_toml, validate
from vsparse.shipped import shipped_file, shipped_names

# The contract on integers that a runtime honours: their files differ (docs/numerics.md, sections 7.4 and 7.5).
INTEGERS = {"onnxruntime": "int8", "tensorrt": "int8-tensorrt", "c": "int8"}


class Fact(Section):
    """A number about a device, with its unit and where it comes from; an estimate is never shown as a measurement."""

    value: float = Field(description="the number, in the unit")
    unit: str = Field(description="such as KiB, MHz or GB/s")
    source: Literal["datasheet", "measured", "estimate"] = Field(description="where it comes from; measured: on the device itself")
    note: str = Field("", description="under which conditions")


# Only what names a processor: a target is a file that anyone may have written.
MachineOption = Annotated[str, Field(pattern=r"^-m[a-z0-9-]+(=[A-Za-z0-9+._-]+)?$")]


class Device(Section):
    """The hardware."""

    kind: Literal["host", "jetson", "raspberry-pi", "microcontroller"] = Field(description="host: the machine that builds")
    module: str = Field("", description="as the vendor names it")
    compute_capability: str = Field("", description="CUDA compute capability, empty where there is no GPU")
    structured_sparsity_2_4: bool = Field(False, description="whether its tensor cores skip two of every four weights")
    power_modes: tuple[str, ...] = Field((), description="as the vendor names them")
    power_rails: tuple[str, ...] = Field((), description="rails of the device's meter that add up to the module; empty: no meter")
    soc: str = Field("", description="chip in the device tree's `compatible`, such as nvidia,tegra234; empty: not checked")
    modules: tuple[str, ...] = Field(
        (), description="module numbers in `compatible`, such as p3767-0005; one of these, where the device names one"
    )
    compiler_options: tuple[MachineOption, ...] = Field((), description="microcontroller: the processor, as arm-none-eabi-gcc is told")
    facts: dict[str, Fact] = Field(default_factory=dict, description="numbers by name, each with unit and source, such as flash and ram")

    @model_validator(mode="after")
    def _memories(self) -> Device:
        if self.kind != "microcontroller":
            return self
        for name in ("flash", "ram"):
            if name not in self.facts or self.facts[name].unit != "KiB":
                raise ValueError(f"a microcontroller needs device.facts.{name} in KiB: a network that does not fit is refused by that")
        if not self.compiler_options:
            raise ValueError('a microcontroller needs device.compiler_options, such as ["-mcpu=cortex-m4", "-mthumb"]')
        return self

    def kib(self, memory: Literal["flash", "ram"]) -> float:
        """Returns the size of a microcontroller's memory in KiB."""
        return self.facts[memory].value


Nanoseconds = Annotated[float, Field(gt=0, le=1e6)]
BySize = Annotated[tuple[Nanoseconds, ...], Field(min_length=6, max_length=6)]


class MeasuredCosts(Section):
    """What the kernels of model.c with vectors take on the device, measured there by benchmarks/c/kernels.py: they choose a layer's kernel.

    The numbers are those of `KernelCosts`; `position` and `point` begin with tiles of one row or point.
    """

    compiler: str = Field("", description="what compiled them, as it says itself")
    options: str = Field("", description="how")
    lanes: Literal[4, 8, 16] = Field(description="floats of a vector")
    position: BySize = Field(description="ns of one kernel position, by the size of the tile")
    store: Annotated[float, Field(ge=0, le=1e6)] = Field(description="ns of storing a tile's row")
    point: BySize = Field(description="ns of one point, by the size of the tile")
    dense_row: Nanoseconds = Field(description="ns of a row of a dense layer")
    listed_row: Nanoseconds = Field(description="ns of a row whose columns are listed")
    sparse_row: Nanoseconds = Field(description="ns of a row of single weights")


class TargetRuntime(Section):
    """The software that executes the network."""

    name: Literal["onnxruntime", "tensorrt", "c"] = Field(description="what executes the network there")
    versions: tuple[str, ...] = Field((), description="versions the target is known to ship")
    opset: int = Field(17, ge=13, le=26, description="of the ONNX files")
    system: str = Field("", description="such as JetPack 6.2")


class Precision(Section):
    """A precision that the runtime offers, and the numeric contract that it honours."""

    contract: str = Field(description="numeric contract that the device honours")
    conditions: tuple[str, ...] = Field((), description="what must be set or checked on the device for the contract to hold")

    @model_validator(mode="after")
    def _known(self) -> Precision:
        known = [name for name, rules in CONTRACTS.items() if not rules.exact and rules.order != "sequential"]
        if self.contract not in known:
            raise ValueError(f'"{self.contract}" is not a contract of a device; known: {", ".join(known)}')
        return self


class Target(Section):
    """A whole target. The first precision is the default one."""

    schema_version: Literal[1] = Field(1, description="of this format")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="letters, digits, dot, dash; default: the file's name")
    description: str = Field("", description="one line for people")
    sources: tuple[str, ...] = Field((), description="where the numbers come from")
    c_source: bool = Field(False, description="also write model.c and model.h, certified under the contract `sequential`")
    device: Device
    runtime: TargetRuntime
    precisions: dict[str, Precision] = Field(min_length=1, description="by name, the default one first: fp32, fp16, int8 and the like")
    kernel_costs: MeasuredCosts | None = Field(None, description="what the kernels of model.c take there")

    @property
    def processor(self) -> str:
        """The architecture of the CPU; this machine's for a target of the kind `host`."""
        if self.device.kind == "microcontroller":
            return "arm"
        return this_processor() if self.device.kind == "host" else "aarch64"

    @property
    def types_tensors(self) -> bool:
        """Whether the runtime computes in the types of the file: TensorRT from version 10 on, which can be told to."""
        majors = [version.split(".")[0] for version in self.runtime.versions]
        return self.runtime.name == "tensorrt" and not any(major.isdigit() and int(major) < 10 for major in majors)

    @model_validator(mode="after")
    def _without_runtime(self) -> Target:
        bare = self.device.kind == "microcontroller"
        if bare is not (self.runtime.name == "c"):
            raise ValueError('a microcontroller has no runtime: give device.kind = "microcontroller" and runtime.name = "c" together')
        if bare and not self.c_source:
            raise ValueError("a microcontroller runs the network as C: set c_source = true")
        if bare and self.kernel_costs is not None:
            raise ValueError("kernel_costs are about kernels with vectors, and a microcontroller has none: leave it out")
        other = next((name for name in self.precisions if name not in ("fp32", "int8")), "") if bare else ""
        if other:
            raise ValueError(f"precisions.{other}: the C source computes in float32 or on 8-bit integers; leave it out")
        return self

    @model_validator(mode="after")
    def _kept(self) -> Target:
        kept = half_precision_contract(self.processor)
        wrong = [name for name, one in self.precisions.items() if one.contract == "fp16" != kept]
        if wrong and self.runtime.name == "onnxruntime" and self.device.kind != "host":
            raise ValueError(
                f'precisions.{wrong[0]}.contract is "fp16", which adds in float32, and ONNX Runtime adds float16 numbers in float16 on '
                f'{self.processor}: choose "{kept_contracts(self.processor)[-1]}", or "{kept}" for sums in any order'
            )
        chained = [name for name, one in self.precisions.items() if CONTRACTS[one.contract].order == "chain"]
        if chained and (self.runtime.name != "onnxruntime" or "fp16-chain" not in kept_contracts(self.processor)):
            raise ValueError(
                f'precisions.{chained[0]}.contract is "fp16-chain", the order in which ONNX Runtime adds on aarch64, and this target is '
                f"{self.runtime.name} on {self.processor}: choose "
                + ('"fp16"' if self.runtime.name != "onnxruntime" else f'"{kept_contracts(self.processor)[-1]}"')
            )
        typed = next((name for name, one in self.precisions.items() if one.contract == "fp16-tensorrt"), "")
        if typed and not self.types_tensors:
            instead = kept if self.runtime.name == "onnxruntime" else "fp16-accumulate"
            raise ValueError(
                f'precisions.{typed}.contract is "fp16-tensorrt", the types of whose file TensorRT obeys from version 10 on, and this '
                f'target is {self.runtime.name} {", ".join(self.runtime.versions)}: choose "{instead}"'
            )
        integers = {name: one.contract for name, one in self.precisions.items() if one.contract.startswith("int8")}
        honoured = INTEGERS[self.runtime.name]
        other = next((name for name, rules in integers.items() if rules != honoured), "")
        if other:
            raise ValueError(
                f'precisions.{other}.contract is "{integers[other]}", and files for {self.runtime.name} have another form: choose '
                f'"{honoured}"'
            )
        return self

    def offered(self) -> Target:
        """Returns the target without the precisions whose contract ONNX Runtime does not keep on its processor."""
        keeps = self.runtime.name != "onnxruntime" or half_precision_contract(self.processor) == "fp16"
        kept = {name: one for name, one in self.precisions.items() if keeps or one.contract != "fp16"}
        return self if kept.keys() == self.precisions.keys() else self.model_copy(update={"precisions": kept})

    @property
    def default_contract(self) -> str:
        """The contract of the default precision."""
        return next(iter(self.precisions.values())).contract

    def to_toml(self) -> str:
        """Returns the resolved target as TOML."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def target_of(text: str) -> Target:
    """Returns the target of an artifact from the text of its target.toml, resolved before; InputError for another text."""
    try:
        content = tomllib.loads(text)
    except ValueError as error:
        raise InputError(f"target.toml cannot be read ({error}); build the artifact again") from error
    return validate(Target, content, "target.toml")


def load_target(name: str) -> Target:
    """Loads a target by its shipped name (`local`) or its path; raises InputError that names file, key and nearest name."""
    path = shipped_file("targets", name)
    if path is None:
        path = Path(name)
        if path.suffix != ".toml" and not path.exists():
            names = shipped_names("targets")
            raise InputError(
                f'there is no target "{name}"{nearest(name, names)}; shipped: {", ".join(names)}; your own: give the path of its .toml file'
            )
    content = parse_toml(path, "target")
    content.setdefault("name", path.stem)
    return validate(Target, content, f"target {path}").offered()
