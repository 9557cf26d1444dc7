"""The gallery of counterexamples: original, perturbed and magnified difference as PNG data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsparse.artifact.counterexamples import Counterexamples
from vsparse.artifact.facts import Facts

SHOWN = 12
MAX_SIDE = 512


@dataclass(frozen=True)
class Picture:
    """One counterexample; the images are PNG data URIs, empty where the input is no image."""

    id: int
    label: str
    predicted: str
    largest_change: float
    original_png: str = field(repr=False)
    perturbed_png: str = field(repr=False)
    difference_png: str = field(repr=False)


@dataclass(frozen=True)
class Gallery:
    """How many counterexamples there are, those that are shown, and by how much differences are magnified (None: each by its own)."""

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


def make_gallery(facts: Facts) -> Gallery | None:
    """Returns pictures of counterexamples.npz; None where an artifact has none.

    The file also holds the samples that are wrong without any change: they are left out.
    """
    if facts.counterexamples is None:
        return None
    found, epsilon = facts.counterexamples, None if facts.sparse is None else facts.sparse.epsilon_value
    indices = [index for index, sample in enumerate(found.ids.tolist()) if sample not in facts.misclassified]
    magnification = 0.5 / epsilon if epsilon else None
    pictures = tuple(_picture(found, index, facts.class_names, magnification) for index in _spread(found.labels, indices))
    return Gallery(len(indices), magnification if len(found) else None, pictures)


def _picture(found: Counterexamples, index: int, names: Sequence[str], magnification: float | None) -> Picture:
    original, perturbed = found.originals[index], found.inputs[index]
    change = float(np.abs(perturbed.astype(np.float64) - original).max(initial=0.0))
    return Picture(
        id=int(found.ids[index]),
        label=_name(int(found.labels[index]), names),
        predicted=_name(int(found.predictions[index]), names),
        largest_change=change,
        original_png=png(original),
        perturbed_png=png(perturbed),
        difference_png=difference(original, perturbed, magnification or (0.5 / change if change else 1.0)),
    )


def _spread(labels: NDArray[np.int64], indices: Sequence[int]) -> list[int]:
    """Returns up to SHOWN of the indices, one of each class first, so that the gallery is no list of one class."""
    seen: dict[int, int] = {}
    ranked = []
    for index in indices:
        turn = seen.get(int(labels[index]), 0)
        seen[int(labels[index])] = turn + 1
        ranked.append((turn, index))
    return sorted(index for _, index in sorted(ranked)[:SHOWN])


def _name(number: int, names: Sequence[str]) -> str:
    return names[number] if 0 <= number < len(names) else str(number)
