"""An artifact measured on a device over ssh: what came back whole is kept in it, which is judged anew; what did not lies beside it."""

from __future__ import annotations

from pathlib import Path

from vsparse import artifact
from vsparse.artifact.choice import FormChoice
from vsparse.artifact.device import DEVICE_RESULTS, EMULATED, DeviceResults
from vsparse.artifact.document import read_if_there, write_document
from vsparse.artifact.elsewhere import HARNESS, measured_elsewhere, not_yet, on_target, with_directory
from vsparse.artifact.latency import Latency
from vsparse.errors import InputError, VsparseError
from vsparse.pipeline.judged import keep_results
from vsparse.progress import Event, Reporter
from vsparse.stages.profile import AgentOptions, DeviceGateError, profile_remote, stated
from vsparse.target import Target, load_target


def measure_on_device(
    source: Path, host: str, asked: AgentOptions, save: Path | None, reporter: Reporter
) -> tuple[DeviceResults, FormChoice | None]:
    """Returns what `host` measured, and what the artifact chooses by it; None where one runtime alone was asked for, and nothing is kept.

    What a run that was cut short had measured is written where `save` says, or beside the artifact. Raises InputError for a target that
    nothing reaches over ssh, and as `profile_remote` does.
    """
    artifact.require_intact(source)
    target = load_target(str(source / artifact.TARGET))
    if target.device.kind == "microcontroller":
        raise InputError(f"target {target.name} has no device folder that --host could run: {HARNESS}; leave --host out")
    reporter(Event("start", "profile", f"on {host}"))
    chosen: list[FormChoice | None] = [None]
    whole = source.absolute()
    aside = save or whole.with_name(f"{whole.name}.partial-results.json")

    def keep(found: DeviceResults) -> None:
        try:
            chosen.append(keep_results(source, found))
        except VsparseError as error:  # of an artifact of another version, which has no place for them
            write_document(aside, found)
            raise type(error)(f"{error}; what {host} measured is in {aside}") from error

    def said(text: str) -> None:
        reporter(Event("note", "profile", text))

    def warned(text: str) -> None:
        reporter(Event("warning", "profile", text))

    try:
        answer = profile_remote(host, source, save, keep, asked, aside, said, warned)
    except DeviceGateError as error:
        error.choice = chosen[-1]
        raise
    return answer, chosen[-1]


def conditions_here(latency: Latency, target: Target | None, source: Path) -> str:
    """How a latency was measured, and that it was not on the target of its artifact, where that is another machine."""
    processor = str(latency.machine.get("processor") or "an unnamed processor")
    text = stated(latency.settings)
    if latency.settings.get("batch", 1) != 1:
        text += ", so that a run is of that many samples"
    if target is None or on_target(target.model_dump(mode="json"), processor):
        return text
    there = read_if_there(DeviceResults, source / DEVICE_RESULTS)
    if target.device.kind == "microcontroller":
        told = HARNESS
    elif there is None or there.emulated:
        told = with_directory(not_yet(target.device.kind, "" if there is None else EMULATED), source)
    else:
        told = f"the numbers of {there.label} are in its {DEVICE_RESULTS}"
    return f"{text}; {measured_elsewhere(processor, target.name)} ({told})"
