"""manifest.json of a device folder: the models that are copied to a device, how it is to time them, and the probes it is audited with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vsparse.artifact.document import SHA256, Document, Part

MANIFEST, SCRIPT = "manifest.json", "run_on_device.py"


class DeviceProbe(Part):
    """One input, and the enclosure [lower, upper] of its logits under the contract (docs/numerics.md, section 11.2)."""

    file: str
    sha256: str = Field(pattern=SHA256)
    lower: tuple[float, ...]
    upper: tuple[float, ...]


class DeviceFolderModel(Part):
    """One model of the folder: its role there, its file, and its interface; `input_shape` is that of one sample."""

    role: str
    file: str
    sha256: str = Field(pattern=SHA256)
    precision: Literal["fp32"] = "fp32"
    content_sha256: str = Field(pattern=SHA256)
    input: str
    input_shape: tuple[Annotated[int, Field(ge=1)], ...]
    output: str
    probes: tuple[DeviceProbe, ...] = ()


class DeviceTarget(Part):
    """What of the target the script must know: what to expect of the device, and what meters its power."""

    name: str
    kind: str
    module: str
    runtime: Literal["tensorrt", "onnxruntime"]
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
    """The manifest; `contract` is the numeric contract that the probes' enclosures hold under."""

    kind: Literal["vsparse-device-folder"] = "vsparse-device-folder"
    recipe: str
    contract: dict[str, str]
    certificate_sha256: str
    script_sha256: str = Field(pattern=SHA256)
    target: DeviceTarget
    timing: DeviceTiming
    models: Annotated[tuple[DeviceFolderModel, ...], Field(min_length=1)]
