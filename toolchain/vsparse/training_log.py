"""Trainings as JSON lines, a line for each epoch and step, and as event files of TensorBoard (docs/how-to-log.md)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from vsparse.errors import InputError, UnavailableError
from vsparse.progress import Event, Reporter

SCHEMA_VERSION = 1
# How the first line of a log begins.
HEADER = "vsparse training log"
# Titles of the stages that train, with what they train.
VARIANTS = {"train sparse": "sparse", "train dense": "dense"}
# What a line calls the fields of an epoch (`EpochReport`).
EPOCH_FIELDS = {
    "loss": "loss",
    "clean": "clean_accuracy",
    "certified": "robust_accuracy",
    "measure": "robust_measure",
    "phase": "phase",
    "density": "density",
    "epsilon": "epsilon",
    "learning_rate": "learning_rate",
    "seconds": "seconds",
}
STEP_SERIES = ("loss", "gradient_norm", "epsilon")


class _Sink(Protocol):
    def write(self, line: dict[str, Any]) -> None: ...


class _File:
    """Appends lines to a file as they come, so that it can be followed while it grows."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        if line["event"] != "step":
            self._file.flush()


class _EventFiles:
    """Writes the numbers of lines as scalars of TensorBoard, a run for each of sparse and dense."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard, which is an extra
        except ImportError as error:
            raise UnavailableError(
                f"--tensorboard {folder}: the package tensorboard is not installed ({error}); pip install 'vsparse[tensorboard]', or use "
                "--log, which needs nothing"
            ) from error
        self._make, self._folder = SummaryWriter, folder
        self._writers: dict[str, Any] = {}

    def write(self, line: dict[str, Any]) -> None:
        if line["event"] not in ("step", "epoch"):
            return
        if line["variant"] not in self._writers:
            self._writers[line["variant"]] = self._make(str(self._folder / line["variant"]))
        names = STEP_SERIES if line["event"] == "step" else EPOCH_FIELDS.values()
        for name in names:
            if isinstance(line[name], int | float):
                self._writers[line["variant"]].add_scalar(f"{line['event']}/{name}", line[name], line[line["event"]])

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


@contextmanager
def logged(
    reporter: Reporter, log: Path | None = None, tensorboard: Path | None = None, about: Mapping[str, Any] | None = None
) -> Iterator[Reporter]:
    """Yields a reporter that writes what trainings report to `log` and `tensorboard` too, and passes everything on.

    `about` is what the line says that begins a run, such as the recipe and its settings.

    A log that is there already is appended to, so that an interrupted training goes on in it. Raises InputError for a file that is no
    training log or cannot be written, UnavailableError where the package tensorboard is not installed.
    """
    if log is None and tensorboard is None:
        yield reporter
        return
    with ExitStack() as stack:
        sinks: list[_Sink] = []
        if tensorboard is not None:
            events = _EventFiles(tensorboard)
            stack.callback(events.close)
            sinks.append(events)
        if log is not None:
            sinks.append(_File(stack.enter_context(_opened(log))))
        for sink in sinks:
            sink.write({"event": "start", "time": round(time.time(), 3), **(about or {})})

        def told(event: Event) -> None:
            try:
                for line in _lines(event):
                    for sink in sinks:
                        sink.write(line)
            except OSError as error:
                raise InputError(f"--log {log}: it cannot be written ({error.strerror}); free space, or leave --log out") from error
            reporter(event)

        yield told


def _opened(path: Path) -> IO[str]:
    """Opens a log to append to; a last line that an interrupt cut off is ended."""
    try:
        whole = True
        if path.exists():
            if not path.is_file():
                raise InputError(f"--log {path} is no file; choose another name")
            with path.open("rb") as old:
                first = old.readline(200)
                if first and not (
                    first.startswith(b'{"log": "' + HEADER.encode()) and f'"schema_version": {SCHEMA_VERSION}'.encode() in first
                ):
                    raise InputError(f"--log {path} is there and is no training log of this version; choose another name, or remove it")
                if first:
                    old.seek(-1, os.SEEK_END)
                    whole = old.read(1) == b"\n"
        file = path.open("a", encoding="utf-8")
        if not path.stat().st_size:
            file.write(json.dumps({"log": HEADER, "schema_version": SCHEMA_VERSION, "event": "log"}) + "\n")
        elif not whole:
            file.write("\n")
    except OSError as error:
        raise InputError(f"--log {path} cannot be written ({error.strerror or error}); choose another name") from error
    return file


def _lines(event: Event) -> Iterator[dict[str, Any]]:
    """Yields the lines that an event stands for."""
    variant = VARIANTS.get(event.stage)
    if variant is None:
        return
    if event.kind == "done" and event.reused:
        yield {"event": "reused", "variant": variant}
    if event.kind != "record" or event.data is None:
        return
    data = event.data
    if data["event"] == "epoch":
        yield {"event": "epoch", "variant": variant, **_at(data), **{name: _number(data[key]) for key, name in EPOCH_FIELDS.items()}}
    elif data["event"] == "steps":
        for index, values in enumerate(zip(*(data[name] for name in STEP_SERIES), strict=True)):
            line = {"event": "step", "variant": variant, "step": data["first"] + index, **_at(data), "phase": data["phase"]}
            yield line | {
                "learning_rate": data["learning_rate"],
                **{name: _number(one) for name, one in zip(STEP_SERIES, values, strict=True)},
            }


def _at(data: Mapping[str, Any]) -> dict[str, int]:
    return {"epoch": data["epoch"], "epochs": data["epochs"]}


def _number(value: Any) -> Any:
    """Returns a value as strict JSON has it: null for what is not finite."""
    return None if isinstance(value, float) and not (abs(value) < float("inf")) else value


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """Returns the lines of a log, without its header and without one that an interrupt cut off; InputError for another file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"the training log {path} cannot be read ({error}); check the path") from error
    if not text.startswith('{"log": "' + HEADER):
        raise InputError(f"{path} is no training log; give the file of --log")
    found = []
    for line in text.splitlines()[1:]:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            found.append(content)
    return found
