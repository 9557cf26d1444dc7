"""A stream of frames in JSON lines: a line of verdict for each, and a summary of all, in bounded memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from vsparse.errors import InputError
from vsparse.monitor.certifier import FrameCertifier
from vsparse.monitor.drift import LEAST, RadiusDrift

WINDOW, MAX_WINDOWS = 100, 256
# Characters of a number in a line, and of all else in it.
EACH, AROUND = 32, 4096
LONGEST_ID = 200


@dataclass
class MonitorSummary:
    """All frames so far: how many were certified, refused (no frame), and the share certified over time.

    `windows` holds how many of `window` frames in a row were certified, one after the other, the last of them `open_frames` long; where
    there are too many of them two become one, and `window` doubles. `drift` and `drift_since` are None where there are too few calibration
    frames, `drift_since` also where there was no warning. `form` is that of the C.
    """

    frames: int = 0
    certified: int = 0
    refused: int = 0
    window: int = WINDOW
    windows: list[int] = field(default_factory=list)
    open_frames: int = 0
    drift: float | None = None
    drift_warns: bool = False
    drift_since: int | None = None
    calibration_frames: int = 0
    calibration_median_radius: float | None = None
    form: str = ""

    @property
    def certified_share(self) -> float | None:
        """The share of frames that were certified; None before the first."""
        return self.certified / self.frames if self.frames else None

    def count(self, certified: bool) -> None:
        """Adds one frame."""
        if not self.windows or self.open_frames == self.window:
            if len(self.windows) == MAX_WINDOWS:
                self.windows = [self.windows[i] + self.windows[i + 1] for i in range(0, MAX_WINDOWS, 2)]
                self.window *= 2
            self.windows.append(0)
            self.open_frames = 0
        self.frames += 1
        self.certified += certified
        self.windows[-1] += certified
        self.open_frames += 1

    def shares(self) -> list[float]:
        """Returns the share certified of each window."""
        sizes = [self.window] * (len(self.windows) - 1) + [self.open_frames]
        return [count / size for count, size in zip(self.windows, sizes, strict=False)]

    def as_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON values."""
        return {"kind": "vsparse-monitor-summary", **asdict(self), "certified_share": self.certified_share, "shares": self.shares()}


class StreamMonitor:
    """Certifies the frames of a stream, and keeps account of them in `summary`."""

    def __init__(self, certifier: FrameCertifier, epsilon: float | str | None = None, radius: bool = True) -> None:
        """Takes what certifies, its radius ε (None: the recipe's), and whether each frame's own radius is found, which drift needs."""
        self.certifier, self.epsilon, self.radius = certifier, certifier.radius_of(epsilon), radius
        reference = certifier.reference_radii
        self.drift = RadiusDrift(reference.tolist()) if radius and len(reference) >= LEAST else None
        self.summary = MonitorSummary(
            calibration_frames=len(reference),
            calibration_median_radius=None if self.drift is None else self.drift.median,
            form=certifier.form,
        )
        size = math.prod(certifier.shape)
        self.longest_line = AROUND + EACH * size

    def lines(self, source: Iterable[str | bytes]) -> Iterator[str]:
        """Returns a JSON line for each line of the source; one that is no frame gets an error, and the stream goes on.

        A line is an object: `id`, a number or short text (the line's number where it is left out), and `pixels`, the values of the frame as
        the network reads them, in a flat list or in the network's shape.
        """
        for number, line in enumerate(source, start=1):
            if not line.strip():
                continue
            try:
                identity, pixels = self._read(line, number)
                told = self.frame(identity, pixels)
            except InputError as error:
                self.summary.refused += 1
                told = {"line": number, "error": str(error)}
            yield json.dumps(told, allow_nan=False)

    def frame(self, identity: int | str, pixels: Any) -> dict[str, Any]:
        """Returns what is told of one frame: its id, class, whether it is certified, margin, radius, latency, and the drift."""
        x = self.certifier.frames(_shaped(pixels, self.certifier.shape))
        if len(x) != 1:
            raise InputError(f"a line holds one frame, and this one {len(x)}; give a line each")
        begin = perf_counter()
        (verdict,) = self.certifier(x, self.epsilon)
        latency = 1000 * (perf_counter() - begin)
        told: dict[str, Any] = {"frame": identity, "class": verdict.label, "certified": verdict.certified, "margin": verdict.margin}
        if self.radius:
            (found,) = self.certifier(x, self.epsilon, radius=True)
            told["radius"] = found.radius
            if self.drift is not None and found.radius is not None:
                told["drift"] = self.drift.add(found.radius)
                told["drift_warns"] = self.drift.warns
                self.summary.drift, self.summary.drift_warns = self.drift.value, self.drift.warns
                self.summary.drift_since = self.drift.warned_at
        told["latency_ms"] = round(latency, 4)
        self.summary.count(verdict.certified)
        return told

    def _read(self, line: str | bytes, number: int) -> tuple[int | str, Any]:
        if len(line) > self.longest_line:
            raise InputError(f"the line has more than {self.longest_line} characters, too many for one frame; write numbers shorter")
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the line is not valid JSON ({error!s:.80}); write one object a line") from None
        if not isinstance(content, dict) or not content.keys() <= {"id", "pixels"} or "pixels" not in content:
            raise InputError("the line is no object with pixels and, at most, id; write these alone")
        identity = content.get("id", number)
        named = isinstance(identity, str) and len(identity) <= LONGEST_ID
        if not (named or (type(identity) is int and abs(identity) < 2**63)):
            raise InputError(f"id is neither a whole number nor text of up to {LONGEST_ID} characters; name the frame so, or leave it out")
        return identity, content["pixels"]


def _shaped(pixels: Any, shape: tuple[int, ...]) -> Any:
    """Returns a flat list of as many numbers as a frame has as nested lists are read: in the network's shape."""
    if not isinstance(pixels, list):
        return pixels
    if len(pixels) == math.prod(shape) and all(type(value) in (int, float) for value in pixels):
        try:
            return np.array(pixels, np.float64).reshape(shape)
        except OverflowError:
            raise InputError("pixels holds a number beyond all that a float holds; give values in the data range") from None
    return pixels
