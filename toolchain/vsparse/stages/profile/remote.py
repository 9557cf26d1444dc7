"""Measurement on a device over ssh: the files go there, the agent runs, what it measures comes back as it grows; nothing stays there."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vsparse.artifact.device import DeviceResults
from vsparse.artifact.device_folder import AGENT, MANIFEST, DeviceFolder
from vsparse.artifact.document import read_document, write_document
from vsparse.errors import GateError, InputError, UnavailableError, VsparseError
from vsparse.files import read_bytes, write_bytes
from vsparse.stages.export.bundle import agent_script
from vsparse.stages.profile.connection import Connection, printable
from vsparse.stages.profile.cross import delivered_libraries
from vsparse.stages.profile.device_results import failed_there, read_results, require_about

MOST_RESULTS = 2**26
GRACE_S = 30.0  # for the device to end what runs, beyond a limit of time
FLAGS = ("runs", "seconds", "warmup", "threads", "batch", "runtime")


@dataclass(frozen=True)
class AgentOptions:
    """What is asked of the agent, as its own options; None: as the folder says.

    `timeout` in seconds bounds the whole run on the device. `keep` leaves its folder there; `directory` is where that is made (empty: the
    home of the user).
    """

    runs: int | None = None
    seconds: float | None = None
    warmup: int | None = None
    threads: int | None = None
    batch: int | None = None
    runtime: str | None = None
    layers: bool = False
    any_device: bool = False
    timeout: float = 3600
    keep: bool = False
    directory: str = ""

    def arguments(self) -> list[str]:
        """Returns the command line of the agent."""
        given = [(name, getattr(self, name)) for name in FLAGS]
        flags = [part for name, value in given if value is not None for part in (f"--{name}", str(value))]
        flags += ["--layers"] if self.layers else []
        return [*flags, *(["--any-device"] if self.any_device else []), "--timeout", f"{max(1.0, self.timeout):g}"]


AS_THE_FOLDER_SAYS = AgentOptions()


@dataclass
class _Run:
    """What came back of one run so far."""

    host: str
    said: Callable[[str], None]
    last: str = "it gave no reason"
    results: bytes = b""
    complete: bool = False
    over: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    folder: str = ""
    end: str = ""  # what became of the folder

    def take(self, message: dict[str, Any]) -> None:
        event = message.get("event")
        if event == "said":
            self.last = printable(message.get("text", ""))
            self.said(f"{self.host}: {self.last}")
        elif event == "results":
            try:
                self.results = zlib.decompressobj().decompress(base64.b64decode(message["data"]), MOST_RESULTS)
                self.complete = message.get("name") == "results.json"
            except (ValueError, TypeError, KeyError, zlib.error):
                pass  # what cannot be read was not measured
        elif event == "over":
            self.over = message
        elif event == "refused":
            self.refused = printable(message.get("sentence", "it gave no reason"))
        elif event in ("removed", "kept", "left"):
            self.end, self.folder = str(event), printable(message.get("folder", ""), 200)


def profile_remote(
    host: str,
    directory: Path,
    results: Path | None = None,
    measured: Callable[[DeviceResults], None] | None = None,
    options: AgentOptions = AS_THE_FOLDER_SAYS,
    partial: Path | None = None,
    said: Callable[[str], None] = lambda text: None,
    warned: Callable[[str], None] = lambda text: None,
) -> DeviceResults:
    """Sends a device folder to `host` over ssh, runs the agent there, and returns its results.json.

    `directory` is a device folder, or an artifact that holds one; the results are also written to `results` where that is given, and told
    to `measured`, both before a gate that failed on the device is raised. `measured` is told nothing of another device than the target's,
    nor of one runtime alone. The agent that runs is this package's own. What a run that was cut short had measured is written to `partial`.
    `said` is told what the agent says, and `warned` what became of the run or of its folder, where that is not what is usual.

    The system's own ssh is used, with its keys and configuration, never asking for a password. However the run ends, the processes on the
    device end and the folder there is removed, unless `options.keep`. Raises UnavailableError where the device cannot be reached or used,
    or the agent was ended, DeviceGateError where a gate failed there, InputError for a folder or options that cannot be used.
    """
    inner = directory / "device"
    folder = inner if inner.is_dir() else directory
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{directory} holds no device folder ({MANIFEST} is not there); export it for a target first")
    manifest = read_document(DeviceFolder, folder / MANIFEST)
    run = _Run(host, said)
    connection = Connection(host, {"directory": options.directory, "keep": options.keep, "timeout": options.timeout})
    try:
        _converse(connection, run, folder, manifest, options)
    except KeyboardInterrupt:
        connection.stop()
        _drain(connection, run)
        kept = _kept_partial(run, partial)
        warned(f"interrupted: {_folder(run)}{kept}")
        raise
    finally:
        connection.close()
    if not (run.complete and run.over.get("why") == "done" and run.over.get("code") in (0, 1)):
        raise _failure(connection, run, options, _kept_partial(run, partial))
    found = results_of(host, run.results, folder / MANIFEST)
    if results is not None:
        write_document(results, found)
    elsewhere = any(gate.name == "device" and gate.passed is False for gate in found.gates)
    if measured is not None and options.runtime is None and not elsewhere:
        measured(found)
    if run.end in ("kept", "left"):
        warned(f"{host}: {run.folder} {'is kept there' if run.end == 'kept' else 'could not be removed there; remove it by hand'}")
    if found.failed:
        where = f"; {results} holds what was measured" if results else "; --save FILE keeps what is measured so" if elsewhere else ""
        raise failed_there(found, host, where)
    return found


def _converse(connection: Connection, run: _Run, folder: Path, manifest: DeviceFolder, options: AgentOptions) -> None:
    """Receives until the device says that it is over, or the time for that has passed; what it says twice gives it no more time."""
    limit, begun, over = time.monotonic() + 60, False, False
    while True:
        message = connection.receive(limit)
        event = message["event"] if isinstance(message.get("event"), str) else ""
        if event in ("closed", "late"):
            return
        run.take(message)
        if event == "ready" and not begun:
            begun = True
            with tempfile.TemporaryDirectory(prefix="vsparse-cross-") as scratch:
                more = [] if message.get("compiler") else delivered_libraries(folder, manifest, str(message.get("machine")), Path(scratch))
                connection.send_meanwhile(_package(folder, manifest, more, options))
            limit = time.monotonic() + options.timeout + GRACE_S
        if event in ("over", "refused") and not over:
            limit, over = min(limit, time.monotonic() + GRACE_S), True


def _drain(connection: Connection, run: _Run) -> None:
    limit = time.monotonic() + GRACE_S
    while (message := connection.receive(limit)).get("event") not in ("closed", "late"):
        run.take(message)


def _package(folder: Path, manifest: DeviceFolder, libraries: list[Path], options: AgentOptions) -> bytes:
    """Returns the line that orders a run, and after it the files as a tar archive: those of the manifest, and this package's agent."""
    entries: list[Any] = [*manifest.models, *manifest.c_sources, *manifest.certifying_files]
    names = {MANIFEST, *(one.file for one in entries), *(probe.file for one in entries for probe in one.probes)}
    names |= {name for source in manifest.c_sources for name in source.files}
    files = {name: read_bytes(folder / name, "file of the device folder", 2**30) for name in sorted(names)}
    files |= {path.name: read_bytes(path, "library", 2**30) for path in libraries} | {AGENT: agent_script().encode()}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    data = stream.getvalue()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    order = {"bytes": len(data), "files": hashes, "arguments": options.arguments()}
    return json.dumps(order).encode() + b"\n" + data


def _kept_partial(run: _Run, path: Path | None) -> str:
    """Writes what a run that was cut short had measured; returns the words that say where, empty where there is nothing."""
    if path is None or not run.results:
        return ""
    try:
        content = json.loads(run.results)
        there = [one for one in (*content["models"], *content["further"]) if "latency" in one]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    if not there:
        return ""
    write_bytes(path, run.results)
    return f"; what was measured until then is in {path}"


def _folder(run: _Run) -> str:
    """What became of the folder on the device, in words."""
    ends = {
        "removed": "the agent was ended there, and its folder removed",
        "kept": f"the agent was ended there; {run.folder} is kept",
        "left": f"the agent was ended there; {run.folder} could not be removed",
    }
    return ends.get(run.end, "the device ends the agent and removes its folder by itself")


def _failure(connection: Connection, run: _Run, options: AgentOptions, kept: str) -> VsparseError:
    """Returns the error that a run ends with which brought no whole results."""
    host, why, code = run.host, run.over.get("why"), run.over.get("code")
    if run.refused:
        return UnavailableError(f"{host}: {run.refused}{kept}")
    if not run.over:
        if not run.folder and not run.results and run.last == "it gave no reason":
            return UnavailableError(f"{host} cannot be used: {connection.reason()}")
        return UnavailableError(f"{host}: the connection was lost ({connection.reason()}); {_folder(run)}{kept}; run it again")
    if why == "late":
        return UnavailableError(
            f"{host} had not finished after {options.timeout:g} s: {_folder(run)}{kept}; give --timeout more, or --seconds less"
        )
    if why in ("silence", "gone"):
        return UnavailableError(f"{host} heard nothing from here any more: {_folder(run)}{kept}; run it again")
    if isinstance(code, int) and code < 0:
        killed = f"the agent was killed on the device (signal {-code}), as the kernel does where memory is short"
        return UnavailableError(f"{host}: {killed}{kept}; end other programs there, or measure one --runtime at a time")
    sentence = f"{host}: {run.last.removeprefix('agent.py: ')}{kept}"
    return UnavailableError(sentence) if code == 3 else InputError(sentence) if code == 2 else GateError(sentence)


def results_of(host: str, data: bytes, manifest: Path) -> DeviceResults:
    """Reads results that came back; GateError for what is no such document, or is not about what was sent."""
    what = f"{host}: the results that came back"
    with tempfile.TemporaryDirectory(prefix="vsparse-remote-") as folder:
        local = Path(folder) / "results.json"
        local.write_bytes(data)
        try:
            found = read_results(local)
            require_about(found, manifest, what)
        except InputError as error:
            raise GateError(printable(str(error).replace(str(local), what))) from error
    return found
