"""results.json of a device: what run_on_device.py measured there, bound to the models of the device folder by their hashes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from vsparse.artifact.document import Conditions, Count, Document, Part
from vsparse.artifact.latency import Latency, Milliseconds

# Where an artifact keeps the results that were fetched; a folder of its own, as profile/*.json are what the build measured.
DEVICE_RESULTS = "profile/device/results.json"


class DevicePart(Part):
    """A part of a device's results: the script runs without vsparse, and reports more of each runtime than is read here."""

    model_config = ConfigDict(extra="allow")


AUDIT = "audit"
# How the script words an audit that passed, and how many probes it ran.
RAN = re.compile(r"the logits of ([0-9]{1,9}) probe\(s\)")


class DeviceGate(DevicePart):
    """One gate that was judged on the device; `passed` is None where it was not examined."""

    name: str
    passed: bool | None
    detail: str

    @property
    def probes(self) -> int | None:
        """How many probes an audit that passed ran through the network; None where its sentence does not say."""
        told = RAN.match(self.detail) if self.name == AUDIT and self.passed else None
        return None if told is None else int(told[1])

    @model_validator(mode="after")
    def _examined(self) -> Self:
        if self.probes == 0:
            raise ValueError("passed: it is true, and detail says that 0 probes were compared")
        return self


def judged(gates: Sequence[DeviceGate]) -> tuple[str, bool]:
    """Returns what some gates come to, in words, and whether they are reached: none failed, and there are some."""
    failed = [f"{gate.name}: {gate.detail}" for gate in gates if gate.passed is False]
    open_ = [f"{gate.name} ({gate.detail})" for gate in gates if gate.passed is None]
    if failed or not gates:
        return "; ".join(failed) or "none is on record", False
    return f"none failed; not examined: {', '.join(open_)}" if open_ else "all passed", True


class DeviceSamples(DevicePart):
    """The timed runs, in ms; percentiles stand beside them, and are derived again.

    `runs` counts them; of very many every so many is kept, and `runs_timed` counts all.
    """

    samples_ms: Annotated[tuple[Milliseconds, ...], Field(min_length=1)]
    runs: Count | None = Field(None, exclude_if=lambda value: value is None)
    runs_timed: Count | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _counted(self) -> Self:
        kept = len(self.samples_ms)
        if self.runs not in (None, kept):
            raise ValueError(f"runs: it is {self.runs}, and samples_ms has {kept}")
        if self.runs_timed is not None and self.runs_timed < kept:
            raise ValueError(f"runs_timed: it is {self.runs_timed}, and samples_ms has {kept}")
        return self


class DeviceModel(DevicePart):
    """One model of the folder: its file, its role there, its hash, its gates and its runs."""

    file: str
    role: str
    onnx_sha256: str
    gates: tuple[DeviceGate, ...]
    latency: DeviceSamples


class DeviceRuntime(DevicePart):
    """What executed the models."""

    name: str | None = Field(None, exclude_if=lambda value: value is None)
    version: str | None = Field(None, exclude_if=lambda value: value is None)


class DeviceResults(Document):
    """What one run of the script measured."""

    model_config = ConfigDict(extra="allow")

    kind: Literal["vsparse-device-results"]
    target: str
    device: Conditions
    models: tuple[DeviceModel, ...]
    gates: tuple[DeviceGate, ...]
    manifest_sha256: str
    passed: bool
    runtime: DeviceRuntime | None = Field(None, exclude_if=lambda value: value is None)

    @property
    def contradiction(self) -> str:
        """What `passed` says other than the gates; empty where they agree."""
        if self.passed is not bool(self.failed):
            return ""
        said = f"{self.failed[0].name} failed ({self.failed[0].detail})" if self.failed else "no gate failed"
        return f"passed: it is {str(self.passed).lower()}, and {said}"

    @property
    def every_gate(self) -> tuple[DeviceGate, ...]:
        """All gates, those of the models first."""
        return (*(gate for model in self.models for gate in model.gates), *self.gates)

    @property
    def failed(self) -> tuple[DeviceGate, ...]:
        """The gates that were not reached, those of the models first."""
        return tuple(gate for gate in self.every_gate if gate.passed is False)

    @property
    def ratio(self) -> float | None:
        """Median of packed over median of dense; None where one of them was not timed, or took no time that a ratio could be taken of."""
        found = self.latencies()
        ratio = found["packed"].p50 / found["dense"].p50 if {"packed", "dense"} <= found.keys() and found["dense"].p50 else None
        return ratio if ratio is not None and isfinite(ratio) else None

    def latencies(self) -> dict[str, Latency]:
        """Returns the latency of each model by its role, derived again from the raw samples."""
        found = self.runtime or DeviceRuntime()
        runtime = {"runtime": found.name, "runtime_version": found.version}
        return {
            model.role: Latency(samples_ms=model.latency.samples_ms, settings={"model": model.file, **runtime}, machine=self.device)
            for model in self.models
        }
