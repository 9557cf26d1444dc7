"""results.json of a device: what agent.py measured there, bound to the models of the device folder by their hashes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isclose, isfinite
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from vsparse.artifact.device_latency import DeviceLatency, DevicePart, DeviceSamples
from vsparse.artifact.document import Conditions, Count, Document
from vsparse.artifact.latency import BLOCK_SAMPLES
from vsparse.artifact.noise import Noise

# Where an artifact keeps the results that were fetched; a folder of its own, as profile/*.json are what the build measured.
DEVICE_RESULTS = "profile/device/results.json"

AUDIT = "audit"
# The gates that say whether a certificate holds where a form was executed; any other is about running at all.
OF_CERTIFICATE = (AUDIT, "arithmetic", "refusal")
NOT_CERTIFIED = "not certified on this device"
EMULATED = "emulated: not the target's numbers"
# How the agent words an audit that passed, and how many probes it ran.
RAN = re.compile(r"(?:the logits|logits and margins) of ([0-9]{1,9}) probe\(s\)")
# What is shown of one gate's sentence, and how many of them.
SHOWN, SENTENCES = 300, 5
# Runs for the meter, which no other form delays, are not faster than the fastest timed one by more than this.
FASTER_ALONE = 10


def one_line(text: object, most: int = SHOWN) -> str:
    """Returns text of a device for people: no control characters, and not endless."""
    found = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * most])
    return found if len(found) <= most else f"{found[:most]}…"


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

    @property
    def sentence(self) -> str:
        """Its name and what it says, for people."""
        return f"{one_line(self.name, 60)}: {one_line(self.detail)}"

    @model_validator(mode="after")
    def _examined(self) -> Self:
        if self.probes == 0:
            raise ValueError("passed: it is true, and detail says that 0 probes were compared")
        return self


def judged(gates: Sequence[DeviceGate]) -> tuple[str, bool]:
    """Returns what some gates come to, in words, and whether they are reached: none failed, and there are some."""
    failed = [gate for gate in gates if gate.passed is False]
    open_ = [f"{one_line(gate.name, 60)} ({one_line(gate.detail)})" for gate in gates if gate.passed is None]
    if failed or not gates:
        void = f"{NOT_CERTIFIED}: " if any(gate.name in OF_CERTIFICATE for gate in failed) else ""
        return void + _some([gate.sentence for gate in failed]) or "none is on record", False
    return f"none failed; not examined: {_some(open_, ', ')}" if open_ else "all passed", True


def _some(sentences: Sequence[str], between: str = "; ") -> str:
    """Returns sentences in one, each once; of many the first ones, and how many more there are."""
    told = list(dict.fromkeys(sentences))
    more = [f"and {len(told) - SENTENCES} more"] if len(told) > SENTENCES else []
    return between.join([*told[:SENTENCES], *more])


class DeviceMemory(DevicePart):
    """What a form took of the device's memory: its process at its peak, and before the model was opened."""

    process_bytes_before: Count | None = Field(None, exclude_if=lambda value: value is None)
    process_peak_bytes: Count | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.process_peak_bytes is not None and self.process_peak_bytes < (self.process_bytes_before or 0):
            raise ValueError(f"process_peak_bytes: it is {self.process_peak_bytes}, and process_bytes_before {self.process_bytes_before}")
        return self


Power = Annotated[float, Field(ge=0)]


class DevicePower(DevicePart):
    """What a meter read while a form ran: means in mW over `window_s`, and the energy of one run in mJ, which is an estimate."""

    power_mw_mean: Power
    readings: Annotated[int, Field(ge=1, le=2**53)]
    window_s: Power | None = Field(None, exclude_if=lambda value: value is None)
    idle_mw_mean: Power | None = Field(None, exclude_if=lambda value: value is None)
    power_mw_above_idle: float | None = Field(None, exclude_if=lambda value: value is None)
    ms_per_run: Power | None = Field(None, exclude_if=lambda value: value is None)
    energy_mj_per_run_estimate: Power | None = Field(None, exclude_if=lambda value: value is None)
    energy_mj_per_run_above_idle_estimate: float | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _follows(self) -> Self:
        pairs = (
            ("energy_mj_per_run_estimate", self.power_mw_mean, self.energy_mj_per_run_estimate),
            ("energy_mj_per_run_above_idle_estimate", self.power_mw_above_idle, self.energy_mj_per_run_above_idle_estimate),
        )
        for key, power, stated in pairs:
            if stated is None or power is None or self.ms_per_run is None:
                continue
            wanted = power * self.ms_per_run / 1000
            if not isclose(stated, wanted, rel_tol=1e-6, abs_tol=1e-12):
                raise ValueError(f"{key}: it is {stated:g}, and the power over the time of a run gives {wanted:g}")
        return self


class DeviceRuntime(DevicePart):
    """What executed a model."""

    name: str | None = Field(None, exclude_if=lambda value: value is None)
    version: str | None = Field(None, exclude_if=lambda value: value is None)


class LayerTime(DevicePart):
    """What one layer takes, in ms, under the names that trtexec gives it; `percentage` is its part of all layers."""

    name: str
    operator: str = Field("", exclude_if=lambda value: not value)
    average_ms: Annotated[float, Field(ge=0)] | None = Field(None, alias="averageMs", exclude_if=lambda value: value is None)
    median_ms: Annotated[float, Field(ge=0)] | None = Field(None, alias="medianMs", exclude_if=lambda value: value is None)
    percentage: Annotated[float, Field(ge=0)] | None = Field(None, exclude_if=lambda value: value is None)


class DeviceModel(DevicePart):
    """One form in one runtime: its file, its role in the folder, its hash, its gates and its runs.

    `latency` is absent where it did not run, and `fault` says why. The role of a network in C is the name of its form, and that of the file
    that certifies its own input is `certifying`. `deployed` is false for an ONNX file in another runtime than the target's, which is
    measured for comparison and judged by nothing.
    """

    file: str
    role: str
    onnx_sha256: str = Field("", exclude_if=lambda value: not value)
    source_sha256: str = Field("", exclude_if=lambda value: not value)
    gates: tuple[DeviceGate, ...]
    latency: DeviceSamples | None = Field(None, exclude_if=lambda value: value is None)
    runtime: DeviceRuntime | None = Field(None, exclude_if=lambda value: value is None)
    settings: Conditions = Field(default_factory=dict, exclude_if=lambda value: not value)
    contract: str = Field("", exclude_if=lambda value: not value)
    certificate_sha256: str = Field("", exclude_if=lambda value: not value)
    memory: DeviceMemory | None = Field(None, exclude_if=lambda value: value is None)
    power: DevicePower | None = None
    deployed: bool = Field(True, exclude_if=lambda value: value)
    fault: str = Field("", exclude_if=lambda value: not value)
    layer_times: tuple[LayerTime, ...] | None = Field(None, exclude_if=lambda value: value is None)
    noise: Noise | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _spent(self) -> Self:
        """Refuses an energy that is not of a run: of an engine its power is over the timed runs, and else over runs of its own."""
        if self.energy_mj is None or self.power is None:
            return self
        if self.latency is None:
            raise ValueError("power.energy_mj_per_run_estimate: there is one, and no run was timed")
        if self.power.ms_per_run is not None:
            least = min(self.latency.samples_ms)
            if self.power.ms_per_run < least / FASTER_ALONE:
                raise ValueError(f"power.ms_per_run: it is {self.power.ms_per_run:g}, and the least of the timed runs took {least:g}")
            return self
        wanted = [self.power.power_mw_mean * mean / 1000 for mean in self.latency.means]
        if not any(isclose(self.energy_mj, one, rel_tol=1e-6, abs_tol=1e-12) for one in wanted):
            raise ValueError(
                f"power.energy_mj_per_run_estimate: it is {self.energy_mj:g}, and the power over the mean run gives {wanted[-1]:g}"
            )
        return self

    @property
    def sha256(self) -> str:
        """The hash of its file, whichever kind that is."""
        return self.onnx_sha256 or self.source_sha256

    @property
    def counts(self) -> bool:
        """Whether its gates are the artifact's: whatever it calls itself, C source is deployed."""
        return self.deployed or bool(self.source_sha256)

    @property
    def batch(self) -> int:
        """How many samples one run has."""
        found = self.settings.get("batch")
        return found if isinstance(found, int) and not isinstance(found, bool) and found >= 1 else 1

    @property
    def peak_bytes(self) -> int | None:
        """The largest resident set of the process that ran it."""
        return None if self.memory is None else self.memory.process_peak_bytes

    @property
    def energy_mj(self) -> float | None:
        """The energy of one run, idle power included, in mJ: an estimate of a meter; None without one."""
        return None if self.power is None else self.power.energy_mj_per_run_estimate

    def measured(self, machine: Conditions) -> DeviceLatency | None:
        """Returns its latency, derived again from the raw samples and the counts of all runs; None where it did not run."""
        if self.latency is None:
            return None
        told = self.runtime or DeviceRuntime()
        runs = self.latency.runs_timed or len(self.latency.samples_ms)
        own: Conditions = {"model": self.file, "runtime": told.name, "runtime_version": told.version, "runs_timed": runs}
        if self.latency.block_samples is not None:
            own[BLOCK_SAMPLES] = self.latency.block_samples
        return DeviceLatency(
            samples_ms=self.latency.samples_ms,
            settings=self.settings | own,
            machine=machine,
            noise=self.noise,
            all_runs_ns=self.latency.all_runs_ns,
            block_medians=self.latency.block_medians_ms,
        )


class DeviceResults(Document):
    """What one run of the agent measured; `models` are those of the folder in the target's runtime, `further` everything else.

    `complete` is false for what a run that was cut short had measured.
    """

    model_config = ConfigDict(extra="allow")

    kind: Literal["vsparse-device-results"]
    target: str
    device: Conditions
    models: tuple[DeviceModel, ...]
    further: tuple[DeviceModel, ...] = Field((), exclude_if=lambda value: not value)
    gates: tuple[DeviceGate, ...]
    manifest_sha256: str
    passed: bool
    runtime: DeviceRuntime | None = Field(None, exclude_if=lambda value: value is None)
    complete: bool = Field(True, exclude_if=lambda value: value)
    timing: Conditions = Field(default_factory=dict, exclude_if=lambda value: not value)
    script_sha256: str = Field("", exclude_if=lambda value: not value)

    @model_validator(mode="after")
    def _says_what_it_is(self) -> Self:
        said = self.device.get("emulated")
        if said is not None and not isinstance(said, bool):
            raise ValueError("device.emulated: it is neither true, false nor null")
        if self.device.get("emulator") is not None and said is not True:
            raise ValueError("device.emulated: it is not true, and device.emulator names what executes it")
        for key in ("batch", "threads"):
            value = self.timing.get(key, 1)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65_536:
                raise ValueError(f"timing.{key}: it is no number from 1 to 65536")
        return self

    @property
    def emulated(self) -> bool:
        """Whether an emulator executed all this: its times are nobody's, and none of its numbers is the target's."""
        return self.device.get("emulated") is True

    @property
    def label(self) -> str:
        """Whose numbers these are, in a few words."""
        found = next((self.device[key] for key in ("model", "processor", "architecture") if self.device.get(key)), None)
        named = self.target if found is None else f"{self.target}: {one_line(found, 80)}"
        if any(gate.name == "device" and gate.passed is False for gate in self.gates):
            named = f"{'another device' if found is None else one_line(found, 80)}, not {self.target}"
        return f"{named}, emulated" if self.emulated else named

    def timed_otherwise(self, batch: int, threads: int) -> str:
        """What its times are of, where that is not this batch and these threads; empty where it is."""
        got = {"batch": self.timing.get("batch", batch), "threads": self.timing.get("threads", threads)}
        told = [f"a batch of {got['batch']}, and the recipe asks for {batch}"] if got["batch"] != batch else []
        told += [f"{got['threads']} threads, and the recipe asks for {threads}"] if got["threads"] != threads else []
        return f"timed with {'; with '.join(told)}" if told else ""

    @property
    def measurements(self) -> tuple[DeviceModel, ...]:
        """Every form in every runtime: the models in the target's own first."""
        return (*self.models, *self.further)

    @property
    def contradiction(self) -> str:
        """What `passed` says other than the gates; empty where they agree."""
        if self.passed is not bool(self.failed):
            return ""
        said = f"{self.failed[0].name} failed ({self.failed[0].detail})" if self.failed else "no gate failed"
        return f"passed: it is {str(self.passed).lower()}, and {said}"

    @property
    def counted(self) -> tuple[DeviceModel, ...]:
        """The measurements whose gates count: `models`, and of the others what is deployed."""
        return (*self.models, *(one for one in self.further if one.counts))

    @property
    def every_gate(self) -> tuple[DeviceGate, ...]:
        """All gates that count, those of the models first."""
        return (*(gate for model in self.counted for gate in model.gates), *self.gates)

    @property
    def uncertified(self) -> tuple[str, ...]:
        """What shows that certificates do not hold on this device: each with the file, its role and the gate that failed."""
        return tuple(
            f"{one_line(model.file, 60)} ({one_line(model.role, 60)}), {gate.sentence}"
            for model in self.counted
            for gate in model.gates
            if gate.passed is False and gate.name in OF_CERTIFICATE
        )

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

    @property
    def deployed(self) -> dict[str, DeviceModel]:
        """What is deployed, by its role in the folder: each model in the target's own runtime, and each network in C."""
        found = {model.role: model for model in reversed(self.further) if model.source_sha256}
        return found | {model.role: model.model_copy(update={"runtime": model.runtime or self.runtime}) for model in self.models}

    def left_out(self, role: str) -> str:
        """Why something was left out there, as the agent said; empty where it said nothing of it."""
        told = (self.model_extra or {}).get("skipped")
        found = [one for one in told if isinstance(one, dict) and one.get("role") == role] if isinstance(told, (list, tuple)) else []
        return one_line(found[0].get("reason", "")) if found else ""

    def latencies(self) -> dict[str, DeviceLatency]:
        """Returns the latency of what is deployed by its role, derived again from the raw samples."""
        found = {role: model.measured(self.device) for role, model in self.deployed.items()}
        return {role: latency for role, latency in found.items() if latency is not None}
