"""train/data.json: the splits that a network was trained, chosen and certified on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field

from vsparse.artifact.document import Count, Document, Part
from vsparse.data import Dataset, Splits


class SplitRecord(Part):
    """One split: its samples, how many of each class, and the file or folder that it comes from, or out of what it was drawn.

    `groups` is how many groups (tracks, patients) its samples come in, None where they come in none. `repeated` counts the samples that
    are, to the last bit, also in a split named before: train, validation, test. Both are None in records of older versions.
    """

    samples: Count
    classes: tuple[Count, ...]
    origin: str
    groups: Count | None = Field(None, exclude_if=lambda value: value is None)
    repeated: Count | None = Field(None, exclude_if=lambda value: value is None)

    @property
    def majority_share(self) -> float:
        """The fraction of the samples that are of the largest class: what a constant answer has right."""
        return max(self.classes, default=0) / self.samples if self.samples else 0.0


class SplitRecords(Part):
    """The three splits."""

    train: SplitRecord
    validation: SplitRecord
    test: SplitRecord


class DataRecord(Document):
    """The data of an artifact; `notes` are what was left out, and the warnings of decoders.

    `sha256` covers all samples, labels, groups, class names and which sample is in which split; `class_names` are in the order of the
    counts, `shape` is that of one sample. All three are empty in records of older versions.
    """

    name: str
    splits: SplitRecords
    notes: tuple[str, ...]
    sha256: str = Field("", exclude_if=("").__eq__)
    class_names: tuple[str, ...] = Field((), exclude_if=().__eq__)
    shape: tuple[Count, ...] = Field((), exclude_if=().__eq__)

    def summary(self) -> dict[str, Any]:
        """Returns the splits as JSON values, a list in their order, with the notes, the classes, and the hash of all samples."""
        splits = [
            {
                "name": name,
                "samples": split.samples,
                "origin": split.origin,
                "class_counts": list(split.classes),
                "majority_share": split.majority_share,
                "groups": split.groups,
                "repeated": split.repeated,
            }
            for name, split in self.splits
        ]
        more = {"class_names": list(self.class_names), "shape": list(self.shape), "sha256": self.sha256}
        return {"splits": splits, "notes": list(self.notes), "classes": self.classes, **more}

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.splits.test.classes)


def record_of(splits: Splits) -> DataRecord:
    """Returns what the splits are, counted."""
    found, seen = {}, set[bytes]()
    for name, data in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        own = list(_digests(data))
        found[name] = SplitRecord(
            samples=len(data),
            classes=tuple(np.bincount(data.labels, minlength=len(data.classes)).tolist()),
            origin=splits.origins.get(name, ""),
            groups=None if data.groups is None else len(np.unique(data.groups)),
            repeated=sum(digest in seen for digest in own),
        )
        seen |= set(own)
    return DataRecord(
        name=splits.name,
        splits=SplitRecords(**found),
        notes=tuple(splits.notes),
        sha256=splits.sha256,
        class_names=splits.test.classes,
        shape=tuple(splits.test.pixels.shape[1:]),
    )


def _digests(data: Dataset) -> Iterator[bytes]:
    """Yields a hash of the values of each sample."""
    for pixels in data.pixels:
        yield hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
