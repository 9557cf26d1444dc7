"""Documents of model/: what the runtime makes of a file, the network as C, and a TensorRT engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, model_validator

from vsparse.artifact.document import SHA256, Count, Document, Part
from vsparse.c_prefix import DEFAULT_PREFIX

C_SOURCE = "model/c_source.json"
C_FILE = "model/model.c"
C_FILES = ("model.c", "model.h", "model_weights.h")
# Further ones where weights are in the binary notation.
C_BINARY_FILES = ("model_weights.S", "model_weights.bin")
# Of a table: its columns as the input, for either network in C.
C_COLUMNS = "model_columns.h"
C_INT8_SOURCE = "model/c_source.int8.json"
C_INT8_FILES = ("model.int8.c", "model.int8.h", "model.int8_weights.h")
C_INT8_BINARY_FILES = ("model.int8_weights.S", "model.int8_weights.bin")


@dataclass(frozen=True)
class CertifyingPlaces:
    """Where the file that certifies its own input stands, of one form: itself, its record or what says why there is none, its latency.

    `role` is its name in a device folder and in the results of a device, `label` its name among the models that are timed.
    """

    file: str
    record: str
    refusal: str
    latency: str
    role: str
    label: str
    title: str


# By the name of the form; only that of the float32 network must be there where deploy.live asks for it.
CERTIFYING_OF: dict[str, CertifyingPlaces] = {
    "sparse": CertifyingPlaces(
        "model/model.certify.onnx", "model/certify.json", "", "profile/certify.json", "certifying", "certifying", "certifies its own input"
    ),
    **{
        name: CertifyingPlaces(
            f"model/model.{name}.certify.onnx",
            f"model/certify.{name}.json",
            f"model/certify.{name}.refused.json",
            f"profile/certify.{name}.json",
            f"certifying-{name}",
            f"certifying {name}",
            f"certifies its own input, {name}",
        )
        for name in ("fp16", "bf16", "int8")
    },
}
CERTIFYING_FILE = CERTIFYING_OF["sparse"].file


class LevelReport(Part):
    """What one optimisation level made of the file: its operators, and how many constant tensors it left alone or re-laid."""

    level: str
    identical: Count
    reordered: Count
    operators: dict[str, Count]
    activations: Count = 0


class RuntimeGraphReport(Document):
    """Evidence that the runtime executes the network as it was read; it exists only where the check passed.

    `unoptimised` is about the file as it stands: that it was read right. `compared` is the number of elements of the output, for one
    sample, whose expressions were compared, `batches` the batch sizes. `foldable` says where the file is out of the form in which nothing
    can be folded, though this runtime folded nothing.
    """

    runtime: str
    runtime_version: str
    content_sha256: str
    initializers: Count
    levels: tuple[LevelReport, ...]
    unoptimised: LevelReport
    threads: tuple[Count, ...]
    batches: tuple[Count, ...]
    compared: Count
    foldable: tuple[str, ...]


class CFootprint(Part):
    """What model.c takes of a microcontroller, by the linker's map and -fstack-usage: flash is constants and code, RAM is without stack.

    `stack_bytes` bounds the deepest chain of calls; None where the compiler gives no bound.
    """

    flash_bytes: Count
    constant_bytes: Count
    code_bytes: Count
    ram_bytes: Count
    stack_bytes: Count | None
    compiler: str
    options: tuple[str, ...]


class CAnalysis(Part):
    """What Frama-C's Eva says of the text without vectors, for all inputs of elements in the range `inputs`.

    `alarms` counts what it could not exclude, of which `found` names some; `reached` of `statements` are executed by some of these inputs.
    Where it did not finish, `reason` says why, and nothing is known.
    """

    tool: str
    options: tuple[str, ...]
    inputs: tuple[float, float]
    finished: bool
    reason: str
    alarms: Count | None = None
    found: tuple[str, ...] = ()
    reached: Count | None = None
    statements: Count | None = None


class CSourceRecord(Document):
    """The network as C: whether it was written, why not, how much memory its constants and its static arrays take.

    `constant_bytes` and `static_bytes` are about the text with vectors, the `scalar_` ones about the text without; `footprint` is there
    where the target is a microcontroller and its compiler is at hand, `analysis` where one was asked for and Frama-C is.
    """

    written: bool
    reason: str
    files: tuple[str, ...] = Field((), exclude_if=lambda value: not value)
    contract: str = Field("", exclude_if=lambda value: not value)
    constant_bytes: Count | None = Field(None, exclude_if=lambda value: value is None)
    static_bytes: Count | None = Field(None, exclude_if=lambda value: value is None)

    scalar_constant_bytes: Count | None = Field(None, exclude_if=lambda value: value is None)
    scalar_static_bytes: Count | None = Field(None, exclude_if=lambda value: value is None)
    prefix: str = Field(DEFAULT_PREFIX, exclude_if=lambda value: value == DEFAULT_PREFIX)
    footprint: CFootprint | None = Field(None, exclude_if=lambda value: value is None)
    analysis: CAnalysis | None = Field(None, exclude_if=lambda value: value is None)

    @property
    def is_binary(self) -> bool:
        """Whether the weights are in the binary notation."""
        return any(name.endswith("_weights.bin") for name in self.files)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.written is not (self.constant_bytes is not None and self.static_bytes is not None and bool(self.files)):
            raise ValueError("a C source that was written has files and sizes, another none")
        return self


class EngineReport(Document):
    """A built TensorRT engine: what it was built from and for, and what its inspector reports. Bind measurements to both hashes."""

    onnx_sha256: str
    content_sha256: str
    engine_sha256: str
    engine_bytes: Count
    tensorrt_version: str
    precision: str
    sparsity: str
    batch: Count
    build_s: float
    layers: tuple[Any, ...]


class CertifiedAtRadius(Part):
    """How many of the samples that were tried a certifying file certifies at a radius, and how many float64 interval bounds do."""

    epsilon: float = Field(ge=0)
    certified: Count
    by_intervals: Count


class CertifyingRecord(Document):
    """The file that certifies its own input (docs/live.md): what it is made of, and what was executed of it before it was kept.

    It is made of the network with the hash `network_sha256`, and clips to `clip`. `samples` training samples were tried at each of
    `radii` and each of `levels` with each of `threads`: no margin above its bound in float64, no logit outside its enclosure.
    """

    content_sha256: str = Field(pattern=SHA256)
    network_sha256: str = Field(pattern=SHA256)
    contract: str
    clip: tuple[float, float]
    nodes: Count
    size_bytes: Count
    runtime: str
    runtime_version: str
    levels: tuple[str, ...]
    threads: tuple[Count, ...]
    samples: Count
    executions: Count
    radii: tuple[CertifiedAtRadius, ...]


class CertifyingRefusal(Document):
    """Why a further form has no file that certifies its own input, though deploy.live asks for one."""

    contract: str
    reason: str
