"""The page's words on data and samples: origin and independence of the splits, preprocessing, confusions, which samples are certified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from vsparse.artifact.facts import Facts
from vsparse.artifact.outcome import Confusion
from vsparse.artifact.samples import DataRecord, SplitRecord
from vsparse.data.load import DRAWN
from vsparse.schema import parse_document

# More classes make a matrix that nobody reads; the pairs that are mistaken most are listed instead.
MATRIX, PAIRS, RUNS = 16, 20, 12
# How to list the samples of a certificate: shown on the page, and tested as it is shown.
READ_IDS = (
    "import json; claims = json.load(open('certificate/certificate.json'))['claims']; "
    "print([c['id'] for c in claims if c['verdict'] == 'certified' and c['predicted'] == c['label']])"
)


def independence(record: DataRecord) -> list[str]:
    """Returns what is known of how independent validation and test are of training, in sentences."""
    found = [_independence(name, split) for name, split in (("validation", record.splits.validation), ("test", record.splits.test))]
    return [*found, _repeated(record)]


def _independence(name: str, split: SplitRecord) -> str:
    title = name.capitalize()
    if not split.origin:
        return f"{title}: where its samples come from is not on record."
    if not split.origin.startswith(DRAWN):
        return (
            f"{title} is a split of the source itself ({split.origin}): it is as independent of training as whoever made the source saw to."
        )
    if split.groups is None:
        together = "no groups (tracks, patients, devices) are on record, so that near-copies of one object may be on both sides"
    else:
        together = "samples of one group (a track, a patient) are all on one side"
    return (
        f"{title} is {split.origin}; {together}. It is of the same source as training: it says nothing about another camera, place or time."
    )


def _repeated(record: DataRecord) -> str:
    splits = record.splits
    found = [(name, split.repeated) for name, split in (("validation", splits.validation), ("test", splits.test))]
    if any(count is None for _, count in found):
        return "Whether samples are in two splits was not examined by the version that built this."
    told = [f"{count} of {name}" for name, count in found if count]
    if not told:
        return "No sample of validation or test is, to the last bit, in a split before it."
    return f"Repeated to the last bit in a split before it (training, then validation): {' and '.join(told)}; these are not independent."


def preprocessing(facts: Facts) -> list[str]:
    """Returns what is done with a sample before the network sees it, and in training alone, in sentences, from the recipe."""
    if not facts.recipe_toml:
        return []
    data = parse_document(facts.recipe_toml).get("data", {})
    data = data if isinstance(data, dict) else {}
    mean, std = data.get("mean") or (), data.get("std") or ()
    normal = f"mean {_numbers(mean)} is taken off and the rest divided by {_numbers(std)}, inside the model file" if mean else "none"
    found = [
        "Stored integers are divided by their greatest value, one float32 division each, so that inputs lie in [0, 1].",
        f"Normalisation: {normal}.",
    ]
    augmented = [f"{name} {data[name]}" for name in ("shift", "crop") if data.get(name)] + (["flip"] if data.get("flip") else [])
    more = [name for name in data if name not in KNOWN and data[name] not in (None, "", 0, False, [], {})]
    found.append(f"Augmentation, in training alone: {', '.join(augmented) or 'none'}.")
    if more:
        found.append("Further keys of the recipe on data: " + ", ".join(f"{name} = {str(data[name])[:80]}" for name in more) + ".")
    return found


KNOWN = ("name", "format", "path", "validation", "test", "mean", "std", "shift", "flip", "crop")


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, int | float) else str(value) for value in values) if values else "1"


def class_names(facts: Facts) -> tuple[str, ...]:
    """Returns the names of the classes, numbers where none are on record."""
    named = facts.data.class_names if facts.data else ()
    return named or facts.class_names or tuple(str(number) for number in range(facts.classes))


def name_of(facts: Facts, label: int) -> str:
    """Returns the name of a class by its number."""
    names = class_names(facts)
    return names[label] if 0 <= label < len(names) else "no class" if label < 0 else str(label)


@dataclass(frozen=True)
class Matrix:
    """Counts by true class (rows) and answer (columns); `answers` are the numbers of the columns, `right` counts the diagonal."""

    labels: tuple[int, ...]
    answers: tuple[int, ...]
    counts: dict[tuple[int, int], int]


def matrix(facts: Facts) -> Matrix | None:
    """Returns the confusion matrix of undisturbed samples; None for more classes than can be read."""
    if facts.sparse is None or len(facts.sparse.classes) > MATRIX:
        return None
    labels = tuple(range(len(facts.sparse.classes)))
    counts = {(pair.label, pair.predicted): pair.samples for pair in facts.sparse.confusions}
    counts |= {(label, label): row.correct for label, row in enumerate(facts.sparse.classes)}
    others = sorted({answer for _, answer in counts} - set(labels))
    return Matrix(labels, (*labels, *others), counts)


def attacked(facts: Facts) -> tuple[Confusion, ...]:
    """Returns, of samples that are right undisturbed, which class the change that was found turns them into; the most frequent first."""
    found = facts.counterexamples
    if found is None:
        return ()
    triples = zip(found.ids.tolist(), found.labels.tolist(), found.predictions.tolist(), strict=True)
    pairs = Counter((label, answer) for sample, label, answer in triples if sample not in facts.misclassified)
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Confusion(label=label, predicted=answer, samples=count) for (label, answer), count in ordered)


def runs(ids: Sequence[int]) -> list[str]:
    """Returns ids as runs, `0–5` and `7`."""
    if not ids:
        return []
    ends = [place for place, (one, other) in enumerate(pairwise(ids)) if other != one + 1]
    starts, stops = [0, *(end + 1 for end in ends)], [*ends, len(ids) - 1]
    return [f"{ids[a]}" if a == b else f"{ids[a]}–{ids[b]}" for a, b in zip(starts, stops, strict=True)]


def first_runs(facts: Facts) -> str:
    """Returns the first runs of the ids of certified samples as text."""
    found = runs(facts.certified_ids)
    return ", ".join(found[:RUNS]) + (", …" if len(found) > RUNS else "")
