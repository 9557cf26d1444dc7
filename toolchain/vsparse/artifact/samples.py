"""train/data.json: the splits that a network was trained, chosen and certified on."""

from __future__ import annotations

from typing import Any

import numpy as np

from vsparse.artifact.document import Count, Document, Part
from vsparse.data import Splits


class SplitRecord(Part):
    """One split: its samples, how many of each class, and the file or folder that it comes from, or out of what it was drawn."""

    samples: Count
    classes: tuple[Count, ...]
    origin: str


class SplitRecords(Part):
    """The three splits."""

    train: SplitRecord
    validation: SplitRecord
    test: SplitRecord


class DataRecord(Document):
    """The data of an artifact; `notes` are what was left out, and the warnings of decoders."""

    name: str
    splits: SplitRecords
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Returns the splits as JSON values, a list in their order, with the notes and the number of classes."""
        splits = [{"name": name, "samples": split.samples, "origin": split.origin} for name, split in self.splits]
        return {"splits": splits, "notes": list(self.notes), "classes": self.classes}

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.splits.test.classes)


def record_of(splits: Splits) -> DataRecord:
    """Returns what the splits are, counted."""
    found = {}
    for name, data in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        counts = np.bincount(data.labels, minlength=len(data.classes)).tolist()
        found[name] = SplitRecord(samples=len(data), classes=tuple(counts), origin=splits.origins.get(name, ""))
    return DataRecord(name=splits.name, splits=SplitRecords(**found), notes=tuple(splits.notes))
