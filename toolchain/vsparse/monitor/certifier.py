"""Frames certified by the live certificate of an artifact, with the bits of its C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsparse import artifact
from vsparse.artifact.choice import CHOICE, FormChoice
from vsparse.artifact.document import read_if_there
from vsparse.artifact.live import LIVE, LiveRecord
from vsparse.errors import InputError
from vsparse.files import read_bytes
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.onnx_file import MAX_ONNX_BYTES
from vsparse.recipe import load_recipe
from vsparse.schema import parse_fraction
from vsparse.stages.export.c_live.forms import FLOAT, INTEGER, LIVE_FORMS, LiveForm, live_form_named
from vsparse.stages.verify.live import LiveCertifier, not_below

MAX_FRAMES = 2**20


def _form(root: Path, name: str | None) -> LiveForm:
    """Returns the form of a name, or the one that an artifact chose; that of float32 where it chose another one, or none."""
    if name is not None:
        return live_form_named(name)
    choice = read_if_there(FormChoice, root / CHOICE)
    return next((one for one in LIVE_FORMS if choice is not None and one.form.name == choice.chosen), FLOAT)


@dataclass(frozen=True)
class FrameVerdict:
    """What the device answers about one frame: the class (-1: none), whether it is certified, and a lower bound of its margin.

    `margin` is None where nothing was found. `radius` is the ε that the frame is certified at, -1 where not even 0 is, and None where it
    was not asked for.
    """

    label: int
    certified: bool
    margin: float | None
    radius: float | None = None


class FrameCertifier:
    """`vsparse.live(artifact)`: called with frames and a radius it returns a verdict for each, those of the device to the bit.

    The C of the network is compiled where there is a compiler, else simulated: the bits are the same (docs/numerics.md, section 14).
    A context manager; `form` is that of the C, `contract` what it is certified under, and `reference_radii` are those of test frames that
    the build recorded of it, float64 [n].
    """

    def __init__(self, directory: Path | str, *, form: str | None = None, compiled: bool = True) -> None:
        """Takes an intact artifact, and a form in C by its name or label in choice.json: `sequential`, or `int8-c` for 8-bit integers.

        Where it is left out it is the form that the build chose, and `sequential` where that is none in C. InputError for what is no
        artifact, for a form that it does not hold, and a network without a live certificate, GateError for files that were changed.
        """
        root = Path(directory)
        artifact.require_intact(root)
        kind = _form(root, form)
        self.form, self.contract = kind.form.name, kind.form.contract
        if not (root / kind.form.model).is_file():
            way = "build it with int8 in export.precisions" if kind is INTEGER else "build it to the end of its export"
            raise InputError(f"artifact {root} holds no {kind.form.model}; {way}")
        recipe = load_recipe(str(root / artifact.RECIPE))
        perturbation = recipe.property.perturbation
        graph = from_onnx(read_bytes(root / kind.form.model, "model", MAX_ONNX_BYTES))
        self.shape, self.data_range = graph.input_shape, perturbation.clip
        self.epsilon = not_below(perturbation.box_radius)
        self._live = LiveCertifier(graph, perturbation.clip, compiled=compiled, budget=recipe.deploy.live_budget)
        record = read_if_there(LiveRecord, root / LIVE)
        answers = None if record is None else record.int8 if kind is INTEGER else record
        told = [frame.radius for frame in answers.frames] if answers is not None else []
        self.reference_radii: NDArray[np.float64] = np.array(told, np.float64)

    @property
    def by(self) -> str:
        """`compiled C` or `simulation`."""
        return self._live.by

    def __call__(self, frames: ArrayLike, epsilon: float | str | None = None, *, radius: bool = False) -> tuple[FrameVerdict, ...]:
        """Returns the verdicts on frames [n, *shape], or on one frame [*shape], in the network's data range.

        `epsilon` is a number, or exact text such as 2/255, and the recipe's where it is left out; one that is negative, not a number or
        above the data range certifies nothing, and neither does a frame with numbers that are none or outside of the range. `radius` asks
        for the radius of each frame too. InputError for frames of another shape, or that are no numbers, and for text that is no number.
        """
        x, tried = self.frames(frames), self.radius_of(epsilon)
        found = self._live.certify(x, tried)
        radii: Sequence[float | None] = self._live.radius(x).tolist() if radius else [None] * len(x)
        rows = zip(found.label.tolist(), found.certified.tolist(), found.margin.tolist(), radii, strict=True)
        return tuple(FrameVerdict(label, sure, margin if margin > -3e38 else None, reached) for label, sure, margin, reached in rows)

    def frames(self, frames: Any) -> NDArray[np.float32]:
        """Returns frames as float32 [n, *shape]; InputError where they are of another shape, or no numbers."""
        wanted = f"[n, {', '.join(map(str, self.shape))}]"
        try:
            given = np.asarray(frames)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f"the frames are no array of numbers ({error!s:.80}); give float32 {wanted}") from error
        if given.dtype.kind not in "fiu":
            raise InputError(f"the frames are no array of numbers (they are {given.dtype.name:.40}); give float32 {wanted}")
        with np.errstate(over="ignore"):
            x = given.astype(np.float32)
        if x.shape == self.shape:
            x = x[None]
        if x.shape[1:] != self.shape or not 0 < len(x) <= MAX_FRAMES:
            raise InputError(f"the frames have the shape {list(x.shape)}; give {wanted}, up to {MAX_FRAMES} of them at once")
        return np.ascontiguousarray(x)

    def radius_of(self, epsilon: float | str | None) -> float:
        """Returns a radius as the device takes it, rounded up to float32; InputError for what is no number."""
        if epsilon is None:
            return self.epsilon
        if isinstance(epsilon, str):
            try:
                return not_below(parse_fraction(epsilon))
            except ValueError as error:
                raise InputError(f"epsilon: {error}; give a number such as 0.1 or 2/255") from None
        try:
            given = float(epsilon)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"epsilon is no number ({error!s:.80}); give one such as 0.1, or text such as 2/255") from None
        return not_below(Fraction(given)) if isfinite(given) else given

    def close(self) -> None:
        """Removes the compiled files."""
        self._live.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
