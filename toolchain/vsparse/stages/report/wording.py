"""How numbers become words: fractions, counts, bytes, times, and the table of key figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from vsparse.artifact.certified_forms import CertificateRow
from vsparse.artifact.curve import CurvePoint
from vsparse.artifact.document import Scalar
from vsparse.artifact.facts import Facts
from vsparse.artifact.outcome import NetworkOutcome
from vsparse.perturbation import PerturbationSet
from vsparse.stages.report.details import plain
from vsparse.stages.report.intervals import of_outcome, span


def fraction(value: float | None) -> str:
    """Returns 0.9312 as `93.1 %`; only all of it is `100 %` and only none of it is `0 %`."""
    if value is None:
        return "–"
    percent = value * 100
    if 0 < percent < 0.05 or 99.95 <= percent < 100:
        return "< 0.1 %" if percent < 1 else "> 99.9 %"
    return f"{percent:.1f}".removesuffix(".0") + " %"


def count(value: int | None) -> str:
    """Returns 12345 as `12,345`."""
    return "–" if value is None else f"{value:,}"


def size(value: int | None) -> str:
    """Returns bytes as `812 B`, `24.6 kB` or `1.32 MB` (powers of 1000)."""
    if value is None:
        return "–"
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}" if value / factor < 1000 else f"{value / factor:,.0f} {unit}"
    return f"{value} B"


def kib(value: int) -> str:
    """Returns bytes as `41.1 KiB` (1,024 bytes), in which memories of microcontrollers are counted."""
    return f"{value / 1024:,.1f} KiB"


def milliseconds(value: float | None) -> str:
    """Returns a time as `0.123 ms`, `12.3 ms`, `4.5 s` or `3.2 min`."""
    if value is None:
        return "–"
    if value >= 120_000:
        return f"{value / 60_000:.1f} min"
    return f"{value:.3g} ms" if value < 999.5 else f"{value / 1000:.3g} s"


def seconds(value: float | None) -> str:
    """Returns seconds as `0.31 s`, `12 s` or `3.2 min`."""
    if value is None:
        return "–"
    return f"{value / 60:.1f} min" if value >= 120 else f"{value:.3g} s"


def number(value: float | None) -> str:
    """Returns a number with at most four significant digits."""
    return "–" if value is None else f"{value:.4g}"


def epsilon(outcome_epsilon: str, value: float | None) -> str:
    """Returns `0.05` as it is and `8/255` with its decimal value."""
    return (
        f"{outcome_epsilon} (about {value:.4f})"
        if "/" in outcome_epsilon and value is not None
        else outcome_epsilon or "an ε that is not recorded"
    )


def disturbance(outcome: NetworkOutcome) -> str:
    """Returns what may happen to an image, as the subject of a sentence; empty for a plain l∞ ball, which has its own words."""
    if outcome.norm == "linf" and outcome.brightness == "0" and outcome.contrast == "0" and not outcome.scales:
        return ""
    keys = {name: getattr(outcome, name) for name in ("norm", "epsilon", "brightness", "contrast", "scales")}
    return PerturbationSet.parse("the certificate's property", **keys).sentence()


def sides(shape: Sequence[int] | None) -> str:
    """Returns the shape of a layer as `64 × 32`; of one that was merged away `gone`."""
    return "gone" if shape is None else " × ".join(str(side) for side in shape)


def quantity(value: Scalar, name: str) -> str:
    """Returns a recorded value in the unit that its name ends with; floats with at most six digits, bools as yes and no."""
    if isinstance(value, int | float) and not isinstance(value, bool) and name.endswith("bytes"):
        return size(int(value))
    return plain(value)


def words(name: str) -> str:
    """Returns `certified_accuracy` as `certified accuracy`; a name that has spaces already is left as it is."""
    return name if " " in name else name.replace("_", " ").replace(".", " · ")


METHODS = {
    "clean": "wrong already on the undisturbed image",
    "interval": "interval bounds",
    "crown-ibp": "CROWN-IBP (one backward pass over interval bounds)",
    "crown": "CROWN (all bounds by backward passes)",
    "attack": "attack found a counterexample",
    "alpha-crown": "α-CROWN (slopes searched for)",
    "photometric-split": "brightness and contrast in pieces, each by interval bounds or CROWN",
    "branch-and-bound": "branch and bound (cases told apart, each proved)",
    "none": "no method settled it",
}


def label(name: str) -> str:
    """Returns a key as words, without the unit that `quantity` shows."""
    return words(name.removesuffix("_bytes") if name.endswith("_bytes") else name)


def utc_time(text: str) -> str:
    """Returns an ISO time as `2026-01-02 03:04 UTC`; any other text as it is."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        return text
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if value.tzinfo else text


def method(name: str) -> str:
    """Returns a method of the cascade in words."""
    return METHODS.get(name, words(name))


SHORT = {
    "interval": "interval",
    "crown-ibp": "CROWN-IBP",
    "crown": "CROWN",
    "alpha-crown": "α-CROWN",
    "photometric-split": "pieces of brightness and contrast",
    "branch-and-bound": "branch and bound",
}


def settled(counts: Iterable[tuple[str, int]]) -> str:
    """Returns how many claims each method certified as `interval 300, branch and bound 2`; a dash where none is certified."""
    # A name and its number stay on one line.
    parts = (f"{SHORT.get(name, words(name))} {count(value)}".replace(" ", "\u00a0").replace("-", "\u2011") for name, value in counts)
    return ", ".join(parts) or "–"


def audited(row: CertificateRow) -> str:
    """Returns what the audit of a certificate found, in a few words."""
    if not row.form.audited:
        return "not audited: it is not deployed"
    if row.audit_passed is None:
        return row.audit_reason.partition(": ")[0] or "not on record"
    done = "" if row.audit_executions is None else f"{count(row.audit_executions)} executions, "
    if row.audit_passed:
        return done + "no violation"
    return done + (f"{count(row.audit_violations)} violations" if row.audit_violations else row.audit_reason)


def stripped(name: str) -> str:
    """Returns the first 12 digits of a hash, for reading."""
    return name.removeprefix("sha256:")[:12]


# The word alone: not in the name of a style, a type or a file.
_IMAGE = re.compile(r"(?<![\w:/.=\"-])([iI])mage(s?)(?![\w/=\"-])")


@dataclass(frozen=True)
class Figure:
    """One row of the key figures: its name, where report.json has it, both values as text, and how they compare."""

    title: str
    note: str
    dense: str
    sparse: str
    change: str
    better: bool | None
    dense_span: str = ""
    sparse_span: str = ""


def _ratio(dense: float | None, sparse: float | None) -> tuple[str, bool | None]:
    if dense is None or sparse is None or dense <= 0:
        return "", None
    if sparse <= 0:
        return "none left", True
    ratio = dense / sparse
    if 0.995 < ratio < 1.005:
        return "the same", None
    return (f"{ratio:.3g}× less", True) if ratio > 1 else (f"{1 / ratio:.3g}× more", False)


def _points(dense: float | None, sparse: float | None) -> tuple[str, bool | None]:
    if dense is None or sparse is None:
        return "", None
    points = round((sparse - dense) * 100, 1)
    return (f"{points:+.1f} points".replace("-", "−"), points > 0) if points else ("the same", None)


def key_figures(facts: Facts) -> list[Figure]:
    """Returns the rows of the side-by-side table; rows of which neither side is known are left out."""
    rows: list[Figure] = []

    def add(
        title: str,
        note: str,
        show: Callable[..., str],
        compare: Callable[..., tuple[str, bool | None]],
        dense: object,
        sparse: object,
        key: str = "",
    ) -> None:
        if dense is not None or sparse is not None:
            spans = [span(found[key]) if key in found else "" for found in (of_outcome(facts.dense), of_outcome(facts.sparse))]
            rows.append(Figure(title, note, show(dense), show(sparse), *compare(dense, sparse), *spans))

    totals = facts.compression.totals if facts.compression else None
    if totals:
        add("Weights", "numbers stored", count, _ratio, totals.weights_before, totals.weights_after)
        add("Multiplications", "multiply-accumulates for one input", count, _ratio, totals.macs_before, totals.macs_after)
        add("Size of the weights", "in memory", size, _ratio, totals.bytes_before, totals.bytes_after)
    dense, sparse = facts.dense, facts.sparse
    if any(outcome is not None and outcome.regression is not None for outcome in (dense, sparse)):
        rows += _of_regression(facts)
        dense = sparse = None
    clean = (dense and dense.clean_accuracy, sparse and sparse.clean_accuracy)
    add("Clean accuracy", "undisturbed inputs", fraction, _points, *clean, "clean_share")
    add(
        "Largest class",
        "what a constant answer has right",
        fraction,
        _points,
        dense and dense.majority_accuracy,
        sparse and sparse.majority_accuracy,
    )
    add(
        "Robust accuracy",
        "not broken by our attack: an upper limit",
        fraction,
        _points,
        dense and dense.robust_accuracy,
        sparse and sparse.robust_accuracy,
        "attacked_share",
    )
    proved = "claimed, but void: do not rely on it" if facts.void_reasons else "proved: a lower limit"
    certified = (dense and dense.certified_accuracy, sparse and sparse.certified_accuracy)
    add("Certified accuracy", proved, fraction, _points, *certified, "certified_share")
    for item in list(facts.latency.values())[:1]:
        add(
            "Median latency",
            facts.measured_elsewhere or "one run on the machine named below",
            milliseconds,
            _ratio,
            item.dense.p50 if item.dense else None,
            item.packed.p50,
        )
    return rows


def _of_regression(facts: Facts) -> list[Figure]:
    """Returns the rows of a regression: errors, that of a constant answer, and the share of samples that is certified."""
    found = (facts.dense, facts.sparse)
    errors = [None if outcome is None else outcome.regression for outcome in found]
    rows = []
    for title, note, key in (
        ("Mean absolute error", "in the unit of the target", "mean_absolute_error"),
        ("Root mean square error", "in the unit of the target", "rmse"),
        ("A constant answer", "mean absolute error of the mean", "constant_mean_absolute_error"),
    ):
        dense, sparse = (None if error is None else getattr(error, key) for error in errors)
        texts = ["–" if value is None else number(value) for value in (dense, sparse)]
        rows.append(Figure(title, note, texts[0], texts[1], *_ratio(dense, sparse)))
    proved = "claimed, but void: do not rely on it" if facts.void_reasons else "proved: a lower limit"
    dense, sparse = (None if outcome is None else outcome.certified_accuracy for outcome in found)
    return [*rows, Figure("Certified of the answers", proved, fraction(dense), fraction(sparse), *_points(dense, sparse))]


@dataclass(frozen=True)
class Radius:
    """One row of the curve's table: a radius with the sparse and the dense point there, each with its index in its list."""

    epsilon: str
    value: float
    sparse: tuple[int, CurvePoint] | None
    dense: tuple[int, CurvePoint] | None


def radii(facts: Facts) -> list[Radius]:
    """Returns the points of both curves side by side, by radius."""
    sparse = {point.epsilon_value: (i, point) for i, point in enumerate(facts.curve_sparse.points if facts.curve_sparse else ())}
    dense = {point.epsilon_value: (i, point) for i, point in enumerate(facts.curve_dense.points if facts.curve_dense else ())}
    values = sorted(sparse.keys() | dense.keys())
    return [Radius((sparse.get(value) or dense[value])[1].epsilon, value, sparse.get(value), dense.get(value)) for value in values]


def capitalised(text: str) -> str:
    """Returns a sentence with its first letter large and the others as they are."""
    return text[:1].upper() + text[1:]


def arrays_in_lines(toml: str) -> str:
    """Returns a TOML document with each array that takes a line for each element on one line."""

    def joined(found: re.Match[str]) -> str:
        return "= [" + ", ".join(line.strip().removesuffix(",") for line in found[1].splitlines()) + "]"

    return re.sub(r"= \[\n((?:    [^\n]*,\n)+)\]$", joined, toml, flags=re.MULTILINE)


FILTERS: dict[str, Callable[..., str]] = {
    "fraction": fraction,
    "count": count,
    "size": size,
    "kib": kib,
    "ms": milliseconds,
    "seconds": seconds,
    "number": number,
    "words": words,
    "quantity": quantity,
    "label": label,
    "method": method,
    "utc_time": utc_time,
    "short": stripped,
    "epsilon": epsilon,
    "disturbance": disturbance,
    "settled": settled,
    "audited": audited,
    "capitalised": capitalised,
    "sides": sides,
    "arrays_in_lines": arrays_in_lines,
}


def pictures(facts: Facts) -> bool:
    """Returns whether samples are images: neither rows of a table nor windows of a sensor, which have a height of 1."""
    of_table = any(outcome is not None and outcome.scales for outcome in (facts.sparse, facts.dense))
    shape = facts.data.shape if facts.data is not None else ()
    return facts.classes != 1 and not of_table and (len(shape) != 3 or shape[1] > 1)


def of_samples(page: str) -> str:
    """Returns the page with samples in place of images, where they are none. Attributes and styles stay."""
    page = page.replace("an image", "a sample").replace("An image", "A sample")
    return _IMAGE.sub(lambda found: f"{'S' if found[1] == 'I' else 's'}ample{found[2]}", page)
