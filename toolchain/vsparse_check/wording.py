"""What was found, in words: a line for all, one for each certificate, one for what is left."""

from __future__ import annotations

from collections.abc import Sequence

from vsparse_check.certificate import exact
from vsparse_check.features import FEATURES
from vsparse_check.live import LIVE, ReplayedVerdicts
from vsparse_check.records import ABSENT, CONFIRMED, REFUTED, CertificateRecord
from vsparse_check.refusal import plain

C_SOURCES = {
    "certificate/sequential": "model/model.c",
    "certificate/int8/c": "model/model.int8.c",
}
COLUMNS = "model/model_columns.h"
CERTIFYING = tuple(f"model/model.{name}certify.onnx" for name in ("", "fp16.", "int8."))
SHOWN = 3
REAL = " (exact arithmetic, of no device)"


def sentence(
    verdict: str,
    problem: str,
    certified: int,
    confirmed: int,
    records: Sequence[CertificateRecord],
    left: str,
    live: ReplayedVerdicts,
    device: str = "",
) -> str:
    """Returns the lines; text that comes from files is spelled out in ASCII."""
    count = f"{confirmed} of {certified} certified claims"
    if verdict == CONFIRMED:
        head = (
            f"confirmed: {count}, derived again from model and inputs; every hash, "
            "and all that follows from the claims"
        )
    elif verdict == REFUTED:
        head = f"refuted ({count} were derived again): {problem}"
    elif verdict == ABSENT:
        return plain(f"{ABSENT}: {problem}")
    else:
        head = f"cannot be checked ({count} were derived again): {problem}"
    lines = [head, *([device] if device else []), *map(line_of, records)]
    if live.frames:
        lines.append(
            f"  {LIVE}: {live.frames} live verdicts replayed, {live.certified} of them certified "
            f"({live.by_interval} margins derived again by interval bounds)"
        )
    if live.int8_frames:
        lines.append(
            f"  {LIVE}, int8: {live.int8_frames} live verdicts replayed, {live.int8_certified} of "
            f"them certified ({live.int8_by_interval} margins derived again by interval bounds)"
        )
    if left:
        lines.append(left)
    return "\n".join(plain(line) for line in lines)


def on_device(device: str, seen: Sequence[str]) -> str:
    """Returns a line about the device whose results there are; empty where it says nothing new."""
    if seen:
        more = f" (and {len(seen) - SHOWN} more)" if len(seen) > SHOWN else ""
        told = "; ".join(one[:200] for one in seen[:SHOWN])
        return f"  NOT CERTIFIED ON THIS DEVICE ({device}): {told}{more}"
    return f"  measured on {device}: no number is the target's" if "emulated" in device else ""


def line_of(record: CertificateRecord) -> str:
    """Returns what is known of one certificate: file, region, contract, samples, accuracies."""
    if not record.model:
        return f"  {record.name}: {record.verdict}"
    parts = [
        f"  {record.name}: {record.verdict}: {_file(record)}",
        region_of(record),
        f"contract {record.contract}{REAL if record.contract == 'real' else ''}",
        _samples(record),
        _certified(record),
    ]
    if record.verdict == CONFIRMED and record.delta:
        error = record.mean_absolute_error
        told = "none is finite" if error is None else f"{error:.4g}"
        parts.append(f"mean absolute error {told} (of answers that executions allow)")
    elif record.verdict == CONFIRMED:
        parts.append(f"clean accuracy {_clean(record)}")
        attacked = percent(record.attacked_stated)
        parts.append(f"attacked accuracy at most {attacked} (stated)")
    return ", ".join(parts)


def _file(record: CertificateRecord) -> str:
    """Returns the deployed file that a certificate is about."""
    source = C_SOURCES.get(record.name)
    return f"{source} (from {record.model})" if source else record.model


def region_of(record: CertificateRecord) -> str:
    """Returns the region of a record's claims: norm, radius, what else may change, data range.

    A narrow data range cuts off most of a ball; the default one need not be said.
    """
    text = f"{record.norm} epsilon {record.epsilon}"
    further = [
        f", {name} {value}"
        for name, value in (("brightness", record.brightness), ("contrast", record.contrast))
        if is_positive(value)
    ]
    if record.scales:
        moving = [scale for scale in record.scales if is_positive(scale)]
        fixed = len(record.scales) - len(moving)
        text += f" times {_between(moving)} stated for each of {len(record.scales)} inputs"
        text += f" ({fixed} may not change)" if fixed else ""
    if record.delta:
        further.append(f", the answer changes by at most {record.delta}")
    if not is_positive(record.epsilon) and not further:
        text += " (undisturbed samples only)"
    low, high = record.clip
    within = f", inputs from {low:g} to {high:g} alone"
    return text + "".join(further) + ("" if record.clip == (0.0, 1.0) else within)


def _between(factors: Sequence[str]) -> str:
    """Returns the least and the largest of positive factors: tiny ones make a radius nothing."""
    least, most = min(factors, key=exact), max(factors, key=exact)
    return f"a factor of {most}" if exact(least) == exact(most) else f"factors of {least} to {most}"


def is_positive(number: str) -> bool:
    """Returns whether an exact number, such as 0.10, 1e-3 or 0/255, is not 0."""
    digits = number.partition("/")[0].lower().partition("e")[0]
    return bool(set(digits) & set("123456789"))


def _samples(record: CertificateRecord) -> str:
    """Returns how many samples there are, duplicates told, and of which data they are."""
    count = f"{record.samples} samples"
    if record.distinct != record.samples:
        count = f"{record.distinct} distinct of {record.samples} samples"
    named = record.data or "data without a name"
    return f'{count} {"of the data given" if record.same_data else "said to be of"} "{named}"'


def _certified(record: CertificateRecord) -> str:
    """Returns the certified accuracy that was derived, and what the file claims beyond it."""
    claimed = ""
    if record.verdict != CONFIRMED:
        claimed = f", claimed by the file: {record.certified} certified"
    derived = f"{record.confirmed} derived again{claimed}"
    what = "certified of the answers" if record.delta else "certified accuracy"
    return f"{what} {percent(record.certified_accuracy)} ({derived})"


def _clean(record: CertificateRecord) -> str:
    """Returns clean accuracy as recomputed.

    Two numbers where not all inputs are there, or rounding leaves a class open.
    """
    low, high = record.clean
    if low == high:
        return f"{percent(low)} (recomputed)"
    stated = percent(record.clean_stated)
    return f"from {percent(low)} to {percent(high)} (recomputed; {stated} stated)"


def percent(fraction: float) -> str:
    """Returns a fraction as per cent."""
    return f"{100 * fraction:.1f} %"


def left_to_the_reader(files: set[str], records: Sequence[CertificateRecord], written: bool) -> str:
    """Returns one line about what does not follow from the artifact, as far as it is there.

    `written`: whether the files that the toolchain writes were compared.
    """
    left = ["attacked accuracy, which a better attack lowers", "what the classes are called"]
    if any(record.delta for record in records):
        left = ["targets, and samples that an attack did not break"]
    if not all(record.same_data for record in records):
        left.append("whether the samples are those of the data they name (--data compares)")
    scripts = ("device/run_on_device.py", "device/certify_on_device.py")
    written_again = ("device/agent.py", *C_SOURCES.values(), COLUMNS, *scripts)
    if FEATURES in files and not (written and all(record.same_data for record in records)):
        left.append(f"whether {FEATURES} is of the training rows (`vsparse check --data` compares)")
    drawn = [name for name in CERTIFYING if name in files]
    if drawn and not written:
        left.append(
            f"the margins of {' and '.join(drawn)} at inputs that were not drawn (`vsparse check` "
            "writes it again and compares)"
        )
    if LIVE in files:
        left.append(f"the curve of {LIVE}, and its counts beyond the verdicts replayed")
    sources = [name for name in written_again if name in files]
    if sources and not written:
        names = " and ".join(sources)
        left.append(f"{names}, which were not compared (`vsparse check` does)")
    if any(name.endswith(("audit.json", "cross_check.json")) for name in files):
        left.append("what audits and cross-checks executed")
    if any(name.endswith("curve.json") for name in files):
        left.append("the curve at other radii")
    if any(name.startswith(("profile/", "train/", "compress/")) for name in files):
        left.append("latency, training and layers")
    if "report.html" in files and not written:
        left.append("report.html")
    if any(name.endswith(".engine") for name in files):
        left.append("engines")
    return "  left to the reader: " + "; ".join(left)
