"""The pieces of a run that is shared with other machines: a batch as far as its samples are judged together, then each open sample alone.

What a piece takes and what it answers are files, so that its bits are the same wherever it is judged; put together, the answers are those
of `CascadeRun.judge`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.artifact.counterexamples import npz_bytes
from vsparse.artifact.proofs import pack
from vsparse.bounds import Box
from vsparse.bounds.region import Region
from vsparse.stages.verify.answers import BatchAnswer, Settled
from vsparse.stages.verify.batches import METHODS, PROOF, UNREADABLE, packed, proofs_of, unpacked
from vsparse.stages.verify.cascade import Cascade
from vsparse.stages.verify.searched import OpenSample

REGION, SCALARS, RELAXATION = "region_", ("radius", "brightness", "contrast", "rounding"), "relaxation_"
BOXES = ("lower_", "upper_")


def samples_name(batch: int) -> str:
    """The file of a batch's inputs and labels."""
    return f"samples-{batch:06d}.npz"


def together_name(batch: int) -> str:
    """The file of an answer to a batch whose open samples are not searched yet."""
    return f"together-{batch:06d}.npz"


def open_name(batch: int, position: int) -> str:
    """The file of what the search of an open sample takes."""
    return f"open-{batch:06d}-{position:06d}.npz"


def settled_name(batch: int, position: int) -> str:
    """The file of what that search found."""
    return f"settled-{batch:06d}-{position:06d}.npz"


def judge_together(cascade: Cascade, key: str, batch: int, first: int, samples: bytes) -> dict[str, bytes]:
    """Judges a batch as far as its samples are judged together; `samples` are its inputs and labels, `first` the id of the first.

    Returns files by name: the answer so far, and what the search of each open sample takes.
    """
    given = _loaded(samples)
    inputs, labels = given["inputs"].copy(), given["labels"].copy()
    answer, left = cascade.judge_together(inputs, labels, range(first, first + len(labels)))
    files = {open_name(batch, position): _sample_bytes(sample) for position, sample in left.items()}
    arrays = {**packed(answer, key, inputs.shape[1:]), "open": np.array(sorted(left), dtype=np.int64)}
    return {**files, together_name(batch): npz_bytes(arrays)}


def settle(cascade: Cascade, key: str, batch: int, position: int, sample: bytes) -> dict[str, bytes]:
    """Searches one open sample; returns the file of what was found."""
    settled = cascade.settle(_sample(_loaded(sample)))
    arrays: dict[str, NDArray[Any]] = {"key": np.array(key), "decided": np.array(settled is not None)}
    if settled is not None:
        point = settled.counterexample
        arrays["method"] = np.array(METHODS.index(settled.method))
        arrays["margin"] = np.array(settled.margin, dtype=np.float64)
        if point is not None:
            arrays["point"], arrays["predicted"] = point[0], np.array(point[1], dtype=np.int64)
        proof = {} if settled.proof is None else {0: settled.proof}
        arrays |= {PROOF + name: value for name, value in pack(proof).items()}
    return {settled_name(batch, position): npz_bytes(arrays)}


def read_together(path: Path, key: str, samples: int) -> tuple[BatchAnswer, list[int]] | None:
    """Returns the answer to a batch so far and the positions left to search, or None where there is none for the plan of that key."""
    try:
        arrays = _loaded(path.read_bytes())
        answer, left = unpacked(arrays, key, samples), [int(position) for position in arrays["open"]]
    except UNREADABLE:
        return None
    return None if answer is None or not all(0 <= position < samples for position in left) else (answer, left)


def read_settled(path: Path, key: str) -> tuple[Settled | None] | None:
    """Returns, in a tuple, what a search found, or None where there is no answer for the plan of that key."""
    try:
        arrays = _loaded(path.read_bytes())
        if str(arrays["key"]) != key:
            return None
        if not bool(arrays["decided"]):
            return (None,)
        point = (arrays["point"], int(arrays["predicted"])) if "point" in arrays else None
        return (Settled(METHODS[int(arrays["method"])], float(arrays["margin"]), proofs_of(arrays).get(0), point),)
    except UNREADABLE:
        return None


def samples_bytes(inputs: NDArray[np.float32], labels: NDArray[np.int64]) -> bytes:
    """Returns the file of a batch's inputs and labels."""
    return npz_bytes({"inputs": inputs, "labels": labels})


def _loaded(data: bytes) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _sample_bytes(sample: OpenSample) -> bytes:
    arrays: dict[str, Tensor] = {"rows": sample.rows, "plain": sample.plain, "points": sample.points}
    names = list(sample.boxes)
    for index, name in enumerate(names):
        for prefix, end in zip(BOXES, sample.boxes[name], strict=True):
            arrays[f"{prefix}{index}"] = end
    around = sample.region
    ends: Sequence[Tensor] = around.box if isinstance(around, Region) else around
    arrays |= {f"{REGION}{prefix}": end for prefix, end in zip(BOXES, ends, strict=True)}
    plain: dict[str, NDArray[Any]] = {"label": np.array(sample.label), "names": np.array(names)}
    if isinstance(around, Region):
        arrays[f"{REGION}centre"] = around.centre
        arrays |= {f"{RELAXATION}{index}": value for index, value in enumerate(around.relaxation or ())}
        plain |= {f"{REGION}{name}": np.array(getattr(around, name), dtype=np.float64) for name in SCALARS}
        plain[f"{REGION}norm"] = np.array(around.norm)
    return npz_bytes({**plain, **{name: value.numpy() for name, value in arrays.items()}})


def _sample(arrays: Mapping[str, NDArray[Any]]) -> OpenSample:
    def tensor(name: str) -> Tensor:
        return torch.from_numpy(arrays[name]).clone()  # in memory that is aligned as torch aligns it

    boxes: dict[str, Box] = {
        str(name): (tensor(f"{BOXES[0]}{index}"), tensor(f"{BOXES[1]}{index}")) for index, name in enumerate(arrays["names"])
    }
    lower, upper = (tensor(f"{REGION}{prefix}") for prefix in BOXES)
    around: Box | Region = (lower, upper)
    if f"{REGION}norm" in arrays:
        found = [tensor(f"{RELAXATION}{index}") for index in range(4) if f"{RELAXATION}{index}" in arrays]
        relaxation = (found[0], found[1], found[2], found[3]) if found else None
        scalars = {name: float(arrays[f"{REGION}{name}"]) for name in SCALARS}
        norm: Any = str(arrays[f"{REGION}norm"])
        around = Region(norm, lower, upper, tensor(f"{REGION}centre"), relaxation, **scalars)
    return OpenSample(around, int(arrays["label"]), boxes, tensor("rows"), tensor("plain"), tensor("points"))
