"""results.json of a device: read, and refused where it is about another folder or contradicts itself."""

from __future__ import annotations

from pathlib import Path

from vsparse.artifact.device import DeviceResults
from vsparse.artifact.device_folder import MANIFEST, DeviceFolder
from vsparse.artifact.document import REBUILD, read_document
from vsparse.errors import InputError
from vsparse.files import sha256_file

CERTIFYING_ROLE = "certifying"


def copied_results(path: Path, directory: Path) -> DeviceResults:
    """Reads a results.json that was copied from a device by hand, about the device folder of an artifact.

    Raises InputError where it is about other models, or was measured on another device than the target.
    """
    found, manifest = read_results(path), directory / "device" / MANIFEST
    if not found.complete:
        raise InputError(f"{path} is of a run that was cut short; run agent.py again on the device, and copy results.json")
    if not _is_about(found, manifest) or not found.models:
        raise InputError(
            f"{path} is about other models than those in {directory / 'device'}; copy that folder to the device and run it again"
        )
    other = next((gate for gate in found.gates if gate.name == "device" and gate.passed is False), None)
    if other is not None:
        raise InputError(f"{path} was measured on another device than {found.target} ({other.detail}); run it there, without --any-device")
    _require_consistent(found, manifest, str(path))
    return found


def read_results(path: Path) -> DeviceResults:
    """Reads results.json of a device; raises InputError for anything that is not such a document."""
    try:
        return read_document(DeviceResults, path)
    except InputError as error:
        raise InputError(
            f"device results {path} are not what run_on_device.py writes ({str(error).removesuffix(f'; {REBUILD}')}); run it again on the "
            "device and copy results.json back"
        ) from error


def require_about(found: DeviceResults, manifest: Path, what: str) -> None:
    """Refuses results about other files than those of a device folder, and those that contradict themselves."""
    if not _is_about(found, manifest):
        raise InputError(f"{what} are about other models than those that were sent; run it again")
    _require_consistent(found, manifest, what)


def _is_about(measured: DeviceResults, manifest: Path) -> bool:
    """Whether results are about the files of this very folder, each in its role; of one runtime alone there may be no models."""
    content = read_document(DeviceFolder, manifest)
    expected = [(model.file, model.role, model.sha256) for model in content.models]
    got = [(model.file, model.role, model.onnx_sha256) for model in measured.models]
    known = {*expected, *((source.file, source.role, source.sha256) for source in content.c_sources)}
    if content.certifying is not None:
        known.add((content.certifying.file, CERTIFYING_ROLE, content.certifying.sha256))
    further = {(model.file, model.role, model.sha256) for model in measured.further}
    whole = got == expected or (not got and bool(further))
    return measured.manifest_sha256 == sha256_file(manifest) and whole and further <= known


def _require_consistent(measured: DeviceResults, manifest: Path, what: str) -> None:
    """Refuses results that contradict their own gates, or an audit that passed on another number of probes than the folder has."""
    if measured.contradiction:
        raise InputError(f"{what}: {measured.contradiction}; run it again on the device")
    content = read_document(DeviceFolder, manifest)
    probes = {model.role: len(model.probes) for model in content.models}
    probes |= {source.role: len(source.probes) for source in content.c_sources}
    for key, models in (("models", measured.models), ("further", measured.further)):
        for place, model in enumerate(models):
            for number, gate in enumerate(model.gates):
                if gate.probes not in (None, probes.get(model.role)):
                    raise InputError(
                        f"{what}: {key}.{place}.gates.{number}.detail: the audit of {model.file} passed on {gate.probes} probe(s), and the "
                        f"device folder has {probes.get(model.role)} of it; run it again on the device"
                    )
