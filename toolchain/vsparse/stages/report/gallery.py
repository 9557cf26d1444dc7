"""The gallery of counterexamples: original, perturbed and magnified difference as PNG data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsparse.stages.report.reading import damaged, load_arrays

SHOWN = 12
MAX_SIDE = 512


@dataclass(frozen=True)
class Picture:
    """One counterexample; the images are PNG data URIs, empty where the input is no image or the original is not on record."""

    id: int
    label: str
    predicted: str
    largest_change: float | None
    original_png: str = field(repr=False)
    perturbed_png: str = field(repr=False)
    difference_png: str = field(repr=False)


@dataclass(frozen=True)
class Gallery:
    """How many counterexamples there are, those that are shown, and by how much differences are magnified."""

    total: int
    magnification: float | None
    pictures: tuple[Picture, ...]


def png(pixels: NDArray[Any]) -> str:
    """Returns [C, H, W] values in [0, 1] as a PNG data URI: one channel as grey, three as RGB; empty for anything else."""
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not all(2 <= side <= MAX_SIDE for side in pixels.shape[1:]):
        return ""
    levels = np.round(np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8)
    image = Image.fromarray(levels[0] if levels.shape[0] == 1 else np.ascontiguousarray(np.moveaxis(levels, 0, -1)))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def difference(original: NDArray[Any], perturbed: NDArray[Any], magnification: float) -> str:
    """Returns the magnified change as a PNG data URI: mid-grey is no change, brighter is more, darker is less."""
    return png(0.5 + (perturbed.astype(np.float64) - original.astype(np.float64)) * magnification)


def _first(arrays: dict[str, NDArray[Any]], *names: str) -> NDArray[Any] | None:
    return next((arrays[name] for name in names if name in arrays), None)


def _originals(directory: Path, ids: NDArray[Any], arrays: dict[str, NDArray[Any]]) -> list[NDArray[Any] | None]:
    """Returns the unperturbed inputs: those stored beside the counterexamples, or those of certificate/inputs.npz by sample id."""
    stored = _first(arrays, "originals", "original")
    if stored is not None:
        return list(stored) if len(stored) == len(ids) else [None] * len(ids)
    path = directory / "certificate" / "inputs.npz"
    if not path.exists():
        return [None] * len(ids)
    inputs = load_arrays(path)
    values, known = _first(inputs, "inputs", "pixels"), _first(inputs, "ids", "id")
    if values is None:
        return [None] * len(ids)
    scale = float(_scalar(_first(inputs, "scale"))) if "scale" in inputs else 255.0 if values.dtype == np.uint8 else 1.0
    places = {int(number): place for place, number in enumerate(known if known is not None and known.ndim == 1 else range(len(values)))}
    rows = [places.get(int(number), -1) for number in ids]
    return [values[row].astype(np.float64) / scale if 0 <= row < len(values) else None for row in rows]


def _scalar(value: NDArray[Any] | None) -> float:
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 and float(value.reshape(-1)[0]) > 0 else 1.0


def read_gallery(
    directory: Path, names: Sequence[str], epsilon: float | None, misclassified: frozenset[int] = frozenset()
) -> Gallery | None:
    """Reads certificate/counterexamples.npz; None where it is absent. InputError where its arrays do not belong together.

    The file also holds the samples of `misclassified`, which are wrong without any change: they are left out.
    """
    path = directory / "certificate" / "counterexamples.npz"
    if not path.exists():
        return None
    arrays = load_arrays(path)
    ids, inputs = _first(arrays, "ids", "id"), _first(arrays, "inputs", "perturbed")
    labels, predicted = _first(arrays, "labels", "label"), _first(arrays, "predictions", "predicted")
    if ids is None or inputs is None:
        if not arrays:
            return Gallery(0, None, ())
        raise damaged(path, "it lacks ids or inputs")
    if ids.ndim != 1 or any(array is not None and (array.ndim == 0 or len(array) != len(ids)) for array in (inputs, labels, predicted)):
        raise damaged(path, "its arrays have different lengths")
    originals = _originals(directory, ids, arrays)
    places = [place for place in range(len(ids)) if int(ids[place]) not in misclassified]
    magnification = 0.5 / epsilon if epsilon else None
    pictures = []
    for place in _spread(labels, places):
        number, perturbed, original = int(ids[place]), inputs[place], originals[place]
        if original is not None and original.shape != perturbed.shape:
            original = None
        change = None if original is None else float(np.abs(perturbed.astype(np.float64) - original).max(initial=0.0))
        factor = magnification or (0.5 / change if change else 1.0)
        pictures.append(
            Picture(
                id=number,
                label=_name(labels, place, names),
                predicted=_name(predicted, place, names),
                largest_change=change,
                original_png="" if original is None else png(original),
                perturbed_png=png(perturbed),
                difference_png="" if original is None else difference(original, perturbed, factor),
            )
        )
    return Gallery(len(places), magnification, tuple(pictures))


def _spread(labels: NDArray[Any] | None, places: Sequence[int]) -> list[int]:
    """Returns up to SHOWN of the places, one of each class first, so that the gallery is no list of one class."""
    if labels is None or labels.ndim != 1:
        return list(places[:SHOWN])
    seen: dict[int, int] = {}
    ranked = []
    for place in places:
        turn = seen.get(int(labels[place]), 0)
        seen[int(labels[place])] = turn + 1
        ranked.append((turn, place))
    return sorted(place for _, place in sorted(ranked)[:SHOWN])


def _name(values: NDArray[Any] | None, place: int, names: Sequence[str]) -> str:
    if values is None or values.ndim != 1:
        return "not recorded"
    number = int(values[place])
    return names[number] if 0 <= number < len(names) else str(number)
