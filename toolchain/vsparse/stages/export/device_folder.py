"""The `device/` folder: models, one standard-library script, a manifest that binds them to the certificate, and a README."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact.device_folder import (
    AGENT,
    MANIFEST,
    SCRIPT,
    DeviceFolder,
    DeviceFolderModel,
    DeviceProbe,
    DeviceSource,
    DeviceTarget,
    DeviceTiming,
)
from vsparse.artifact.document import write_document
from vsparse.artifact.hashes import content_sha256, parse_model
from vsparse.contract import contract
from vsparse.errors import InputError
from vsparse.files import new_directory, read_bytes, sha256_bytes, write_bytes
from vsparse.graph.from_onnx import from_onnx
from vsparse.stages.export.bundle import agent_script, device_script
from vsparse.stages.export.c_source.weights import beside
from vsparse.stages.export.certifying_folder import README_LINE, CertifyingFile, put_certifying, unrounded_ends
from vsparse.stages.export.structured import has_two_four
from vsparse.target import Target

MAX_PROBES = 16


@dataclass(frozen=True)
class Probe:
    """One input and the enclosure of its logits under the contract: on the device, the logits must lie inside.

    See docs/numerics.md, section 11.2.

    `x` float32 [*input shape]; `lower`, `upper` float64 [classes].
    """

    x: NDArray[np.float32]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


@dataclass(frozen=True)
class CertifiedModel:
    """What is certified about a model of the folder: its precision, the contract's name, the certificate's hash."""

    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    contract: str = ""
    certificate_sha256: str = ""


@dataclass(frozen=True)
class DeployedSource:
    """C source for the folder: the form's name, the file, the ONNX file that it was made from, what its names begin with, its probes."""

    role: str
    file: Path
    network: Path
    prefix: str
    certified: CertifiedModel = CertifiedModel()
    probes: Sequence[Probe] = ()


def write_device_folder(
    directory: Path,
    models: Mapping[str, Path] | Sequence[Path],
    target: Target,
    certificate_sha256: str,
    *,
    contract_name: str = "",
    recipe: str = "",
    timing: DeviceTiming | None = None,
    probes: Mapping[str, Sequence[Probe]] | None = None,
    certified: Mapping[str, CertifiedModel] | None = None,
    sources: Sequence[DeployedSource] = (),
    certifying: CertifyingFile | None = None,
    further_certifying: Sequence[CertifyingFile] = (),
) -> DeviceFolder:
    """Writes the folder that is copied to a device, in one step, and returns its manifest.

    `models` maps a variant (`packed`, `dense`, `fp16`, …) to an ONNX file, or lists files, whose variants are then their stems; files keep
    their names. `probes` maps variants to the probes that the device is audited with, `certified` to the certificates about them.
    `contract_name` defaults to the target's. Raises InputError for no models, for two of one name, for a model that has not one fp32 input
    of known shape and one output, and for a probe that does not fit its model. `sources` are the networks in C, or none;
    `certifying` is the file that certifies its own input, `further_certifying` those of further forms.
    """
    contract_name = contract_name or target.default_contract
    variants = dict(models) if isinstance(models, Mapping) else {path.name.split(".")[0]: path for path in models}
    names = [path.name for path in (models.values() if isinstance(models, Mapping) else models)]
    if not variants or len(set(names)) < len(names) or len(variants) < len(names):
        raise InputError(f"a device folder needs at least one model, each with its own name; got {', '.join(names) or 'none'}")
    with new_directory(directory) as folder:
        entries = []
        for variant, path in variants.items():
            claimed = (certified or {}).get(variant, CertifiedModel())
            entries.append(_entry(folder, variant, path, (probes or {}).get(variant, ()), claimed, target))
        for name, text in ((AGENT, agent_script()), (SCRIPT, device_script())):
            write_bytes(folder / name, text.encode())
            os.chmod(folder / name, 0o755)
        manifest = DeviceFolder(
            recipe=recipe,
            contract=contract(contract_name).as_dict(),
            certificate_sha256=certificate_sha256,
            script_sha256=sha256_bytes((folder / SCRIPT).read_bytes()),
            agent_sha256=sha256_bytes((folder / AGENT).read_bytes()),
            target=_target(target),
            timing=timing or DeviceTiming(),
            models=tuple(entries),
            c_sources=tuple(_source(folder, one) for one in sources),
            certifying=None if certifying is None else put_certifying(folder, certifying),
            further_certifying=tuple(put_certifying(folder, one) for one in further_certifying),
        )
        write_document(folder / MANIFEST, manifest)
        lines = "".join(_C_LINE.format(file=one.file.name, header=one.file.with_suffix(".h").name) for one in sources)
        write_bytes(folder / "README", (_readme(target) + lines + (README_LINE if certifying else "")).encode())
    return manifest


def _target(target: Target) -> DeviceTarget:
    device = target.device
    return DeviceTarget(
        name=target.name,
        kind=device.kind,
        module=device.module,
        runtime=target.runtime.name,
        soc=device.soc,
        modules=device.modules,
        power_rails=device.power_rails,
    )


def _entry(folder: Path, variant: str, path: Path, probes: Sequence[Probe], claimed: CertifiedModel, target: Target) -> DeviceFolderModel:
    """Copies a model and its probes into the folder and returns its entry; InputError for an interface or a probe that does not fit."""
    data = read_bytes(path, "model", 2**30)
    model = parse_model(data)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise InputError(f"model {path} has {len(inputs)} inputs and {len(model.graph.output)} outputs; one of each is wanted")
    kind = inputs[0].type.tensor_type
    shape = tuple(d.dim_value for d in kind.shape.dim)[1:]
    if kind.elem_type != 1 or not shape or min(shape) < 1:
        raise InputError(f"the input of model {path} is not float32 of a known shape; export it again")
    write_bytes(folder / path.name, data)
    return DeviceFolderModel(
        role=variant,
        file=path.name,
        sha256=sha256_bytes(data),
        precision=claimed.precision,
        contract=claimed.contract,
        certificate_sha256=claimed.certificate_sha256,
        unrounded=unrounded_ends(from_onnx(data)) if claimed.contract == "fp16-tensorrt" else (),
        structured_sparsity=target.device.structured_sparsity_2_4 and has_two_four(model),
        content_sha256=content_sha256(model),
        input=inputs[0].name,
        input_shape=shape,
        output=model.graph.output[0].name,
        probes=tuple(_probe(folder, f"probe-{variant}-{i}.bin", probe, shape) for i, probe in enumerate(probes[:MAX_PROBES])),
    )


def _source(folder: Path, given: DeployedSource) -> DeviceSource:
    """Copies the files of a network in C and its probes into the folder and returns its entry."""
    network = parse_model(read_bytes(given.network, "model", 2**30))
    (shape, (classes,)) = (
        tuple(d.dim_value for d in one[0].type.tensor_type.shape.dim)[1:] for one in (network.graph.input, network.graph.output)
    )
    files = {}
    for path in beside(given.file):
        data = read_bytes(path, "C source", 2**30)
        write_bytes(folder / path.name, data)
        files[path.name] = sha256_bytes(data)
    return DeviceSource(
        role=given.role,
        file=given.file.name,
        sha256=files[given.file.name],
        files=files,
        prefix=given.prefix,
        precision="int8" if given.certified.precision == "int8" else "fp32",
        contract=given.certified.contract,
        certificate_sha256=given.certified.certificate_sha256,
        content_sha256=content_sha256(network),
        input_shape=shape,
        classes=classes,
        probes=tuple(_probe(folder, f"probe-{given.role}-{i}.bin", one, shape) for i, one in enumerate(given.probes[:MAX_PROBES])),
    )


def _probe(folder: Path, name: str, probe: Probe, shape: tuple[int, ...]) -> DeviceProbe:
    fits = probe.x.shape == shape and probe.x.dtype == np.float32 and probe.lower.shape == probe.upper.shape
    if not fits or not np.isfinite([*probe.lower, *probe.upper]).all() or not (probe.lower <= probe.upper).all():
        raise InputError(f"{name} does not fit its model: float32 {list(shape)} and finite lower <= upper are wanted")
    data = np.ascontiguousarray(probe.x, dtype="<f4").tobytes()
    write_bytes(folder / name, data)
    return DeviceProbe(file=name, sha256=sha256_bytes(data), lower=tuple(probe.lower.tolist()), upper=tuple(probe.upper.tolist()))


_C_LINE = "In C99, without any runtime: {file}; {header} says how to compile and call it.\n"


def _readme(target: Target) -> str:
    module = target.device.module or target.name
    return (
        f"1. Copy this folder to the {module}: scp -r device user@address:\n"
        f"2. There, run: python3 device/{AGENT} (standard library only, Python 3.8 or newer)\n"
        "3. Copy device/results.json back: it holds every sample, and the hashes of the model and of what ran.\n"
    )
