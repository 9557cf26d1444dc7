"""Latency on a device over ssh: the device folder goes there, its script runs, results.json comes back."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from vsparse.artifact.device import DeviceResults
from vsparse.artifact.device_folder import MANIFEST, SCRIPT, DeviceFolder
from vsparse.artifact.document import REBUILD, read_document, write_document
from vsparse.errors import GateError, InputError, UnavailableError
from vsparse.files import sha256_file

# A host name, with an optional user; never an option: ssh reads what begins with "-" as one.
HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9\[][A-Za-z0-9_.:\[\]-]*")
OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15")


def profile_remote(
    host: str, directory: Path, results: Path | None = None, timeout: float = 3600, measured: Callable[[DeviceResults], None] | None = None
) -> DeviceResults:
    """Copies a device folder to `host` with scp, runs its script there over ssh, and returns its results.json.

    `directory` is a device folder, or an artifact that holds one; the results are also written to `results` where that is given, and told
    to `measured`, both before a gate that failed on the device is raised.

    The system's own ssh and scp are used, with their keys and configuration, never asking for a password. `timeout` in seconds is for each
    step. The results are checked against the folder's manifest. What the script leaves on the device stays in a fresh folder
    under its home, which is removed after a success. Raises UnavailableError where ssh or the device is absent, unreachable or lacks the
    runtime, GateError where a gate failed on the device (results.json is brought back all the same), InputError for anything else.
    """
    if not HOST.fullmatch(host):
        raise InputError(f'"{host}" is not user@address; write it as ssh does, such as robot@192.168.1.20')
    inner = directory / "device"
    folder_there = inner if inner.is_dir() else directory
    manifest = folder_there / MANIFEST
    if not (folder_there / SCRIPT).is_file():
        raise InputError(f"{directory} holds no device folder (run_on_device.py is not there); export it for a target first")
    read_document(DeviceFolder, manifest)
    there = _run(["ssh", *OPTIONS, host, "mktemp -d vsparse-XXXXXXXX"], host, 60).stdout.strip()
    if not re.fullmatch(r"vsparse-[A-Za-z0-9]{8}", there):
        raise UnavailableError(
            f"{host} answers, but made no folder (it said {there[:80]!r}); check that its shell works: ssh {host} mktemp -d"
        )
    _run(["scp", "-q", "-r", *OPTIONS, str(folder_there.resolve()), f"{host}:{there}/device"], host, timeout)
    done = _run(["ssh", *OPTIONS, host, f"python3 {shlex.quote(there)}/device/run_on_device.py"], host, timeout, tolerate=(1, 2, 3))
    said = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1][:500]
    if done.returncode == 3:
        raise UnavailableError(f"{host}: {said}")
    if done.returncode == 2:
        raise InputError(f"{host}: {said}")
    with tempfile.TemporaryDirectory(prefix="vsparse-remote-") as folder:
        local = Path(folder) / "results.json"
        copied = _run(["scp", "-q", *OPTIONS, f"{host}:{there}/device/results.json", str(local)], host, timeout, tolerate=(1,))
        if copied.returncode != 0 or not local.is_file():
            raise GateError(f"{host}: {said}")
        found = read_results(local)
    if not _is_about(found, manifest):
        raise InputError(f"{host}: the results that came back are about other models than those that were sent; run it again")
    _require_consistent(found, manifest, f"{host}: the results that came back")
    if results is not None:
        write_document(results, found)
    if measured is not None:
        measured(found)
    if done.returncode != 0 or found.failed:
        failed = found.failed
        reason = f"{failed[0].name}: {failed[0].detail}" if failed else said
        raise GateError(f"{host}: a gate failed on the device ({reason})" + (f"; {results} holds what was measured" if results else ""))
    _run(["ssh", *OPTIONS, host, f"rm -rf {shlex.quote(there)}"], host, 60, tolerate=tuple(range(1, 255)))
    return found


def copied_results(path: Path, directory: Path) -> DeviceResults:
    """Reads a results.json that was copied from a device by hand, about the device folder of an artifact.

    Raises InputError where it is about other models, or was measured on another device than the target.
    """
    found = read_results(path)
    if not _is_about(found, directory / "device" / MANIFEST):
        raise InputError(
            f"{path} is about other models than those in {directory / 'device'}; copy that folder to the device and run it again"
        )
    other = next((gate for gate in found.gates if gate.name == "device" and gate.passed is False), None)
    if other is not None:
        raise InputError(f"{path} was measured on another device than {found.target} ({other.detail}); run it there, without --any-device")
    _require_consistent(found, directory / "device" / MANIFEST, str(path))
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


def _is_about(measured: DeviceResults, manifest: Path) -> bool:
    """Whether results are about the models of this very folder, each in its role."""
    content = read_document(DeviceFolder, manifest)
    expected = [(model.file, model.role, model.sha256) for model in content.models]
    got = [(model.file, model.role, model.onnx_sha256) for model in measured.models]
    return measured.manifest_sha256 == sha256_file(manifest) and got == expected


def _require_consistent(measured: DeviceResults, manifest: Path, what: str) -> None:
    """Refuses results that contradict their own gates, or an audit that passed on another number of probes than the folder has."""
    if measured.contradiction:
        raise InputError(f"{what}: {measured.contradiction}; run it again on the device")
    probes = {model.role: len(model.probes) for model in read_document(DeviceFolder, manifest).models}
    for place, model in enumerate(measured.models):
        for number, gate in enumerate(model.gates):
            if gate.probes not in (None, probes[model.role]):
                raise InputError(
                    f"{what}: models.{place}.gates.{number}.detail: the audit of {model.file} passed on {gate.probes} probe(s), and the "
                    f"device folder has {probes[model.role]} of it; run it again on the device"
                )


def _run(command: list[str], host: str, timeout: float, tolerate: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except FileNotFoundError as error:
        raise UnavailableError(
            f"{command[0]} is not installed here; install an OpenSSH client, or copy the device/ folder by hand"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{host} did not finish within {timeout:g} s ({command[0]}); look at the device, then run again") from error
    if done.returncode != 0 and done.returncode not in tolerate:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
        raise UnavailableError(f"{host} cannot be reached or used over {command[0]}: {reason}; try: ssh {host} true")
    return done
