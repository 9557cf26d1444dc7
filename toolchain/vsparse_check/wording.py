"""What was found, in plain words: one line for all, one for each certificate, one about what is left to the reader."""

from __future__ import annotations

from collections.abc import Sequence

from vsparse_check.claims import CONFIRMED, REFUTED, Record
from vsparse_check.refusal import plain

REAL = " (exact arithmetic, of no device)"


def sentence(verdict: str, problem: str, certified: int, confirmed: int, records: Sequence[Record], left: str) -> str:
    """Returns the lines; text that comes from files is spelled out in ASCII."""
    count = f"{confirmed} of {certified} certified claims"
    if verdict == CONFIRMED:
        head = f"confirmed: {count}, derived again from model and inputs; every hash, and all that follows from the claims"
    elif verdict == REFUTED:
        head = f"refuted ({count} were derived again): {problem}"
    else:
        head = f"cannot be checked ({count} were derived again): {problem}"
    return "\n".join(plain(line) for line in [head, *map(line_of, records), *([left] if left else [])])


def line_of(record: Record) -> str:
    """Returns what is known of one certificate: file, region, contract, samples, accuracies."""
    if not record.model:
        return f"  {record.name}: {record.verdict}"
    confirmed = record.verdict == CONFIRMED
    result = "" if confirmed else f", claimed by the file: {record.certified} certified"
    certified = f"certified accuracy {_percent(record.certified_accuracy)} ({record.confirmed} derived again{result})"
    clean = f"clean accuracy {_clean(record)}, attacked accuracy at most {_percent(record.attacked_stated)} (stated)" if confirmed else ""
    file = f"model/model.c (from {record.model})" if record.name == "certificate/sequential" else record.model
    parts = [f"  {record.name}: {record.verdict}: {file}", region_of(record), _contract(record), _samples(record), certified, clean]
    return ", ".join(part for part in parts if part)


def region_of(record: Record) -> str:
    """Returns the region of a record's claims: the norm, the radius and what else may change."""
    more = "".join(
        f", {name} {value}" for name, value in (("brightness", record.brightness), ("contrast", record.contrast)) if _counts(value)
    )
    still = " (undisturbed samples only)" if not _counts(record.epsilon) and not more else ""
    # A narrow data range cuts off most of a ball, and the default need not be said.
    within = "" if record.clip == (0.0, 1.0) else f", inputs from {record.clip[0]:g} to {record.clip[1]:g} alone"
    return f"{record.norm} epsilon {record.epsilon}{still}{more}{within}"


def _counts(number: str) -> bool:
    return bool(set(number.partition("/")[0].lower().partition("e")[0]) & set("123456789"))


def _contract(record: Record) -> str:
    return f"contract {record.contract}{REAL if record.contract == 'real' else ''}"


def _samples(record: Record) -> str:
    """Returns how many samples there are, duplicates told, and of which data they are said to be."""
    count = f"{record.samples} samples" if record.distinct == record.samples else f"{record.distinct} distinct of {record.samples} samples"
    named = f"{record.data}" if record.data else "data without a name"
    return f'{count} {"of the data given" if record.same_data else "said to be of"} "{named}"'


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _clean(record: Record) -> str:
    """Returns clean accuracy as recomputed: one number, or two where not all inputs are there or rounding leaves a class open."""
    low, high = record.clean
    return (
        f"{_percent(low)} (recomputed)"
        if low == high
        else f"from {_percent(low)} to {_percent(high)} (recomputed; {_percent(record.clean_stated)} stated)"
    )


def left_to_the_reader(files: set[str], records: Sequence[Record], written: bool) -> str:
    """Returns one line about what does not follow from the artifact, as far as the artifact holds it."""
    left = ["attacked accuracy, which a better attack lowers"]
    if not all(record.same_data for record in records):
        left.append("whether the samples are those of the data they name (--data compares)")
    unread = [name for name in ("model/model.c", "device/run_on_device.py") if name in files and not written]
    left += [f"{' and '.join(unread)}, which were not compared (`vsparse check` does)"] if unread else []
    found = [
        ("what audits and cross-checks executed", any(name.endswith(("audit.json", "cross_check.json")) for name in files)),
        ("the curve at other radii", any(name.endswith("curve.json") for name in files)),
        ("latency, training and layers", any(name.startswith(("profile/", "train/", "compress/")) for name in files)),
        ("report.html", "report.html" in files and not written),
        ("engines", any(name.endswith(".engine") for name in files)),
    ]
    return "  left to the reader: " + "; ".join([*left, *(text for text, there in found if there)])
