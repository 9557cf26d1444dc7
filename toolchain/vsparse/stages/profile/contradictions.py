"""What results of a device say other than the folder that they are about: which forms, executed by what, audited on how many probes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from vsparse.artifact.device import AUDIT, DeviceModel, DeviceResults
from vsparse.artifact.device_folder import DeviceFolder
from vsparse.files import sha256_bytes
from vsparse.stages.export.bundle import agent_script

RUNTIMES = ("onnxruntime", "tensorrt", "c")
# The gate that each runtime must have judged beside the audit: what TensorRT built is read back, layer by layer.
READ_BACK = {"tensorrt": "arithmetic"}
LARGEST_BATCH = 65_536
# Of what runs on processors. C that has no threads takes one, whatever was asked for.
THREADS = "threads_intra_op"


@dataclass(frozen=True)
class _Expected:
    """What a folder says of a form: its probes, the contract and the certificate that it is under, and its function in C."""

    probes: int
    contract: str = ""
    certificate_sha256: str = ""
    call: str = ""
    in_c: bool = False


def contradiction(measured: DeviceResults, folder: DeviceFolder) -> str:
    """Returns the first thing, with its key, that results say other than their folder; empty where there is none.

    Each file, its role and its hash must have been compared before.
    """
    return next(_contradictions(measured, folder), "")


def other_agent(measured: DeviceResults, folder: DeviceFolder) -> str:
    """Returns that results name another agent than that of the folder, or this package's own; empty where they do not."""
    known = {"", folder.agent_sha256, folder.script_sha256, sha256_bytes(agent_script().encode())}
    return "" if measured.script_sha256 in known else "script_sha256: it is that of another agent than agent.py of the device folder"


def _contradictions(measured: DeviceResults, folder: DeviceFolder) -> Iterator[str]:
    if measured.target != folder.target.name:
        yield f"target: it is {measured.target}, and the device folder is for {folder.target.name}"
    if [gate.name for gate in measured.gates if gate.passed is not None].count("device") != 1:
        yield "gates: they do not say, once, whether this is the target's device"
    seen: Counter[tuple[str, str]] = Counter()
    for key, models in (("models", measured.models), ("further", measured.further)):
        for place, model in enumerate(models):
            at = f"{key}.{place}"
            runtime = _runtime(measured, model, folder)
            seen[model.role, runtime] += 1
            if seen[model.role, runtime] > 1:
                yield f"{at}: it is the second measurement of {model.role} in {runtime}"
            yield from (f"{at}.{wrong}" for wrong in _of_model(measured, folder, model, runtime, key == "models"))


def _runtime(measured: DeviceResults, model: DeviceModel, folder: DeviceFolder) -> str:
    """Returns what executed a form; where nothing is said of it, the runtime of the whole, or of the target."""
    if model.source_sha256:
        return "c" if model.runtime is None or model.runtime.name is None else model.runtime.name
    told = [one.name for one in (model.runtime, measured.runtime) if one is not None and one.name]
    return told[0] if told else folder.target.runtime


def _of_model(measured: DeviceResults, folder: DeviceFolder, model: DeviceModel, runtime: str, in_models: bool) -> Iterator[str]:
    wanted = _expected(folder, model)
    if bool(model.onnx_sha256) is bool(model.source_sha256):
        yield "onnx_sha256: a form has this hash, or source_sha256, and not both"
    if runtime not in RUNTIMES or (runtime == "c") is not wanted.in_c or (in_models and runtime != folder.target.runtime):
        yield f"runtime.name: it is {runtime}, which does not run {model.file} on {folder.target.name}"
    owned = in_models or wanted.in_c
    if owned and not model.deployed:
        yield f"deployed: it is false, and {model.file} is what is deployed"
    if not owned and model.deployed and runtime != folder.target.runtime:
        yield f"deployed: it is true, and {model.file} runs in {runtime}, not in {folder.target.runtime}"
    for name, found, stated in (
        ("contract", model.contract, wanted.contract),
        ("certificate_sha256", model.certificate_sha256, wanted.certificate_sha256),
    ):
        if found and stated and found != stated:
            yield f"{name}: it is not that of {model.file} in the device folder"
    certifies = model.role in {one.role for one in folder.certifying_files}
    yield from _settings(measured, folder, model, wanted, certifies)
    yield from _gates(model, runtime, wanted, certifies)
    if model.latency is None and not model.fault:
        yield f"latency: there is none of {model.file}, and no fault that says why"


def _expected(folder: DeviceFolder, model: DeviceModel) -> _Expected:
    """Returns what the folder says of a form, whose file it was found to be."""
    for one in folder.certifying_files:
        if (one.file, one.role) == (model.file, model.role):
            return _Expected(len(one.probes), one.contract, one.certificate_sha256)
    for source in folder.c_sources:
        if (source.file, source.role) == (model.file, model.role):
            function = f"{source.prefix}_logits"
            return _Expected(len(source.probes), source.contract, source.certificate_sha256, function, in_c=True)
    found = next(one for one in folder.models if (one.file, one.role) == (model.file, model.role))
    return _Expected(len(found.probes), found.contract, found.certificate_sha256)


def _settings(measured: DeviceResults, folder: DeviceFolder, model: DeviceModel, wanted: _Expected, certifies: bool) -> Iterator[str]:
    if model.latency is None:
        return
    if "batch" in model.settings:
        batch, asked = model.settings["batch"], measured.timing.get("batch", folder.timing.batch)
        right = isinstance(batch, int) and not isinstance(batch, bool) and 1 <= batch <= LARGEST_BATCH
        if not right or batch != (1 if certifies else asked):
            yield f"settings.batch: it is {batch}, and {asked} was asked for"
    threads, most = model.settings.get(THREADS, 1), measured.timing.get("threads", folder.timing.threads)
    if isinstance(threads, bool) or not isinstance(threads, int) or not isinstance(most, int) or not 1 <= threads <= most:
        yield f"settings.{THREADS}: it is {threads}, and {most} was asked for"
    call = model.settings.get("call")
    if wanted.call and call is not None and call != wanted.call:
        yield f"settings.call: it is {call}, and an inference of {model.file} is {wanted.call}"


def _gates(model: DeviceModel, runtime: str, wanted: _Expected, certifies: bool) -> Iterator[str]:
    """What a form that ran must have had examined; one that did not run has its fault among its gates."""
    names = [gate.name for gate in model.gates]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        yield f"gates: {twice} is among them twice"
    if model.fault and all(gate.passed is not False for gate in model.gates):
        yield "fault: it says why the form did not run, and no gate failed"
    audits = [(place, gate) for place, gate in enumerate(model.gates) if gate.name == AUDIT]
    if wanted.probes and not audits and not model.fault:
        yield f"gates: there is no audit of {model.file}, and the device folder has {wanted.probes} probe(s) of it"
    for place, gate in audits:
        if gate.passed is None and wanted.probes:
            yield f"gates.{place}.passed: it is null, and the device folder has {wanted.probes} probe(s) of {model.file}"
        if gate.passed and gate.probes != wanted.probes:
            told = "without a word on how many" if gate.probes is None else f"on {gate.probes} probe(s)"
            yield f"gates.{place}.detail: the audit of {model.file} passed {told}, and the device folder has {wanted.probes} of it"
    needed = [*([READ_BACK[runtime]] if runtime in READ_BACK else [])]
    needed += ["refusal"] if certifies and runtime == "onnxruntime" else []
    for name in needed:
        if not model.fault and all(gate.name != name or gate.passed is None for gate in model.gates):
            yield f"gates: {name} of {model.file} was not examined"
