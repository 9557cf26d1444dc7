"""results.json of a device: read, and refused where it is about another folder or contradicts itself."""

from __future__ import annotations

from pathlib import Path

from vsparse.artifact.choice import FormChoice
from vsparse.artifact.device import NOT_CERTIFIED, OF_CERTIFICATE, DeviceResults, one_line
from vsparse.artifact.device_folder import MANIFEST, DeviceFolder
from vsparse.artifact.document import REBUILD, read_document
from vsparse.errors import GateError, InputError
from vsparse.files import sha256_file
from vsparse.stages.profile.contradictions import contradiction, other_agent


class DeviceGateError(GateError):
    """A gate failed on a device; `results` is all that was measured there, and `choice` what the artifact chooses by it, if it does."""

    def __init__(self, sentence: str, results: DeviceResults) -> None:
        super().__init__(sentence)
        self.results = results
        self.choice: FormChoice | None = None


def failed_there(found: DeviceResults, what: str, more: str = "") -> DeviceGateError:
    """Returns the error for results with a gate that failed: where it shows that certificates do not hold there, it says that first."""
    void = f"{NOT_CERTIFIED}: " if found.uncertified else ""
    shown = next((gate for gate in found.failed if gate.name in OF_CERTIFICATE), found.failed[0])
    return DeviceGateError(f"{what}: {void}a gate failed on the device ({shown.sentence}){more}", found)


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
    elsewhere = next((gate for gate in found.gates if gate.name == "device" and gate.passed is False), None)
    if elsewhere is not None:
        told = f"another device than {one_line(found.target, 60)} ({one_line(elsewhere.detail)})"
        raise InputError(f"{path} was measured on {told}; run it there, without --any-device")
    other = other_agent(found, read_document(DeviceFolder, manifest))
    if other:
        raise InputError(f"{path}: {other}; copy that folder to the device and run it again on the device")
    _require_consistent(found, manifest, str(path))
    return found


def read_results(path: Path) -> DeviceResults:
    """Reads results.json of a device; raises InputError for anything that is not such a document."""
    try:
        return read_document(DeviceResults, path)
    except InputError as error:
        raise InputError(
            f"device results {path} are not what agent.py writes ({str(error).removesuffix(f'; {REBUILD}')}); run it again on the "
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
    known |= {(one.file, one.role, one.sha256) for one in content.certifying_files}
    further = {(model.file, model.role, model.sha256) for model in measured.further}
    whole = got == expected or (not got and bool(further))
    return measured.manifest_sha256 == sha256_file(manifest) and whole and further <= known


def _require_consistent(measured: DeviceResults, manifest: Path, what: str) -> None:
    """Refuses results that contradict themselves, or say other than the folder that they are about."""
    wrong = measured.contradiction or contradiction(measured, read_document(DeviceFolder, manifest))
    if wrong:
        raise InputError(f"{what}: {one_line(wrong, 600)}; run it again on the device")
