"""manifest.json of a device folder: the models that are copied to a device, how it is to time them, and the probes it is audited with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vsparse.artifact.document import SHA256, Document, Part

MANIFEST, AGENT = "manifest.json", "agent.py"
# The names that the agent had in earlier folders: a few lines each, which run it.
SCRIPT, CERTIFYING_SCRIPT = "run_on_device.py", "certify_on_device.py"


class DeviceProbe(Part):
    """One input, and the enclosure [lower, upper] of its logits under the contract (docs/numerics.md, section 11.2)."""

    file: str
    sha256: str = Field(pattern=SHA256)
    lower: tuple[float, ...]
    upper: tuple[float, ...]


class DeviceFolderModel(Part):
    """One model of the folder: its role there, its file, and its interface; `input_shape` is that of one sample.

    `contract` is the name of the numeric contract that its certificate, the one of the hash, is under; both are left out where no
    certificate is about it. `unrounded` names the input and the output where a float16 file keeps them in float32 (docs/numerics.md,
    section 8.3). `structured_sparsity` says that it has 2:4 weights, and the target's GPU kernels for them.
    """

    role: str
    file: str
    sha256: str = Field(pattern=SHA256)
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    contract: str = Field("", exclude_if=lambda value: not value)
    certificate_sha256: str = Field("", exclude_if=lambda value: not value)
    unrounded: tuple[str, ...] = Field((), exclude_if=lambda value: not value)
    structured_sparsity: bool = Field(False, exclude_if=lambda value: not value)
    content_sha256: str = Field(pattern=SHA256)
    input: str
    input_shape: tuple[Annotated[int, Field(ge=1)], ...]
    output: str
    probes: tuple[DeviceProbe, ...] = ()


class DeviceSource(Part):
    """The network in C: the form's name, its files with their hashes, and its interface, as `<prefix>_logits` has it.

    `file` is compiled, and so is the assembly file of `files` where there is one; `content_sha256` is that of the ONNX file that it was
    made from.
    """

    role: str
    file: str
    sha256: str = Field(pattern=SHA256)
    files: dict[str, Annotated[str, Field(pattern=SHA256)]]
    prefix: str
    precision: Literal["fp32", "int8"]
    contract: str = Field("", exclude_if=lambda value: not value)
    certificate_sha256: str = Field("", exclude_if=lambda value: not value)
    content_sha256: str = Field(pattern=SHA256)
    input_shape: tuple[Annotated[int, Field(ge=1)], ...]
    classes: Annotated[int, Field(ge=1)]
    probes: tuple[DeviceProbe, ...] = ()


class CertifyingProbe(DeviceProbe):
    """One input and a radius, with what no device may exceed: `margin_upper` holds the largest margin bound for each predicted class."""

    epsilon: float = Field(ge=0)
    margin_upper: tuple[float, ...]


class CertifyingEntry(Part):
    """The file that certifies its own input (docs/live.md), made of the model with the hash `network_sha256`: its interface and probes.

    Those of further forms have a `role`, a precision and a contract of their own; `unrounded` as for models.
    """

    role: str = Field("certifying", exclude_if=lambda value: value == "certifying")
    file: str
    sha256: str = Field(pattern=SHA256)
    content_sha256: str = Field(pattern=SHA256)
    network_sha256: str = Field(pattern=SHA256)
    script_sha256: str = Field(pattern=SHA256)
    precision: Literal["fp32", "fp16", "int8"] = Field("fp32", exclude_if=lambda value: value == "fp32")
    contract: str = Field("", exclude_if=lambda value: not value)
    certificate_sha256: str = Field("", exclude_if=lambda value: not value)
    unrounded: tuple[str, ...] = Field((), exclude_if=lambda value: not value)
    input: str
    input_shape: tuple[Annotated[int, Field(ge=1)], ...]
    epsilon: str
    logits: str
    predicted: str
    margin: str
    probes: tuple[CertifyingProbe, ...] = ()


class DeviceTarget(Part):
    """What of the target the script must know: what to expect of the device, and what meters its power."""

    name: str
    kind: str
    module: str
    runtime: Literal["tensorrt", "onnxruntime", "c"]
    soc: str
    modules: tuple[str, ...]
    power_rails: tuple[str, ...]


class DeviceTiming(Part):
    """How the device is to time: at least `runs` timed runs and at least `seconds` of them, after `warmup_ms`."""

    runs: int = 300
    seconds: float = 10.0
    warmup_ms: int = 500
    threads: int = 1
    batch: int = 1


class DeviceFolder(Document):
    """The manifest; `contract` is the one of the float32 model, whose certificate is named: further models name their own."""

    kind: Literal["vsparse-device-folder"] = "vsparse-device-folder"
    recipe: str
    contract: dict[str, str]
    certificate_sha256: str
    script_sha256: str = Field(pattern=SHA256)
    agent_sha256: str = Field("", exclude_if=lambda value: not value)
    target: DeviceTarget
    timing: DeviceTiming
    models: Annotated[tuple[DeviceFolderModel, ...], Field(min_length=1)]
    c_sources: tuple[DeviceSource, ...] = Field((), exclude_if=lambda value: not value)
    certifying: CertifyingEntry | None = Field(None, exclude_if=lambda value: value is None)
    further_certifying: tuple[CertifyingEntry, ...] = Field((), exclude_if=lambda value: not value)

    @property
    def certifying_files(self) -> tuple[CertifyingEntry, ...]:
        """The files that certify their own input: that of the float32 model, and those of further ones."""
        return (*([] if self.certifying is None else [self.certifying]), *self.further_certifying)
