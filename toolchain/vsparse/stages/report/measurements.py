"""What was measured: layers before and after compression, latency, the training's epochs, the curve against epsilon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vsparse.stages.profile.latency import percentile
from vsparse.stages.report.reading import Part, damaged

Value = bool | int | float | str
# Keys of a latency file that are results or bookkeeping; all others say how and where it was measured.
NOT_CONDITIONS = (
    "schema_version",
    "dense",
    "packed",
    "sparse",
    "samples_ms",
    "block_ratios",
    "content_sha256",
    "runs",
    "model",
    "speedup_of_medians",
    "ratio",
    "ratio_p50",
    "ratio_packed_to_dense_of_medians",
    "ratio_packed_to_dense_median_of_blocks",
    "latency_ms_p50",
    "latency_ms_p90",
    "latency_ms_p99",
    "latency_ms_mean",
    "latency_ms_min",
    "latency_ms_max",
)


@dataclass(frozen=True)
class Size:
    """Weights, multiply-accumulates for one input, and bytes of weights, before and after (None: not recorded)."""

    weights_before: int | None
    weights_after: int | None
    nonzero_after: int | None
    macs_before: int | None
    macs_after: int | None
    bytes_before: int | None
    bytes_after: int | None


@dataclass(frozen=True)
class LayerRow:
    """One layer before and after."""

    name: str
    type: str
    shape_before: str
    shape_after: str
    size: Size


@dataclass(frozen=True)
class Reduction:
    """One kind of removal in one layer, and how exact it is."""

    layer: str
    kind: str
    count: int | None
    exactness: str


@dataclass(frozen=True)
class Compression:
    """The layer table, its totals, the removed share of the weights, and how the packed network compares with the masked one.

    `proof` says in a sentence why the two are the same; `unequal` names the comparisons that say they are not.
    """

    rows: tuple[LayerRow, ...]
    totals: Size
    removed_share: float | None
    reductions: tuple[Reduction, ...]
    equality: tuple[tuple[str, Value], ...]
    proof: str
    unequal: tuple[str, ...]


@dataclass(frozen=True)
class Latency:
    """Raw samples of one network in milliseconds, and the percentiles."""

    samples_ms: tuple[float, ...]
    latency_ms_p50: float
    latency_ms_p90: float
    latency_ms_p99: float


@dataclass(frozen=True)
class LatencyComparison:
    """Dense and packed, measured under the same conditions."""

    file: str
    dense: Latency | None
    sparse: Latency | None
    ratio_p50: float | None
    conditions: tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Epoch:
    """One epoch of training (None: not recorded); `measure` says what the certified share is by: interval, crown, or an attack."""

    epoch: int
    loss: float | None
    clean_share: float | None
    certified_share: float | None
    density: float | None
    epsilon: float | None
    seconds: float | None
    measure: str = "interval"
    phase: str = "train"


@dataclass(frozen=True)
class CurvePoint:
    """Accuracies at one radius, as shares of the curve's samples."""

    epsilon: str
    epsilon_value: float
    clean_share: float | None
    attacked_share: float | None
    certified_share: float


def _shape(part: Part, name: str) -> str:
    value = part.find((name,))[1]
    if isinstance(value, list):
        return " × ".join(str(int(side)) for side in part.numbers(name))
    return part.text(name)


def read_size(part: Part) -> Size:
    """Reads the before-and-after numbers of a layer or of the whole."""
    return Size(**{name: part.count(name, name.removesuffix("_after")) for name in Size.__dataclass_fields__})


def read_compression(part: Part) -> Compression:
    """Reads compress/layers.json; totals that are not recorded are summed from the rows."""
    rows = [
        LayerRow(row.text("name"), row.text("type", "kind", "op"), _shape(row, "shape_before"), _shape(row, "shape_after"), read_size(row))
        for row in part.parts("rows", "layers")
    ]
    recorded = part.part("totals", "total")
    totals = (
        read_size(recorded)
        if recorded
        else Size(**{name: _sum([getattr(row.size, name) for row in rows]) for name in Size.__dataclass_fields__})
    )
    removed = part.share("removed_share")
    if removed is None and totals.weights_before and totals.weights_after is not None:
        removed = 1 - totals.weights_after / totals.weights_before
    reductions = [
        Reduction(item.text("layer", "name"), item.text("kind", "reason"), item.count("count"), item.text("exactness", "proof"))
        for item in part.parts("reductions")
    ]
    compared = part.part("equality")
    equality = flat_facts(compared) if compared else ()
    unequal = tuple(name for name, value in equality if value is False)
    return Compression(tuple(rows), totals, removed, tuple(reductions), equality, part.text("proof"), unequal)


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def flat_facts(part: Part, skip: Sequence[str] = (), prefix: str = "") -> tuple[tuple[str, Value], ...]:
    """Returns the plain values of an object as (name, value), objects inside it dotted, long lists by their length."""
    facts: list[tuple[str, Value]] = []
    for name, value in part.content.items():
        if name in skip or value is None or value in ("", []):
            continue
        label = f"{prefix}{name}"
        if isinstance(value, dict):
            inner = part.part(name) if prefix.count(".") < 3 else None
            facts.extend(flat_facts(inner, skip, f"{label}.") if inner else ())
        elif isinstance(value, list):
            short = len(value) <= 8 and all(isinstance(item, str | int | float) for item in value)
            facts.append((label, ", ".join(plain(item) for item in value) if short else f"{len(value)} entries"))
        elif isinstance(value, bool | int | float | str):
            facts.append((label, value))
    return tuple(facts)


def plain(value: object) -> str:
    """Returns a value as text for people: yes and no, at most six significant digits, at most 300 characters."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 300 else text[:300] + "…"


def read_latency(part: Part) -> Latency:
    """Reads raw samples and derives the percentiles from them, or takes recorded ones where no samples are; InputError for neither."""
    samples = part.numbers("samples_ms")
    if any(sample < 0 for sample in samples):
        raise part.wrong("samples_ms", "times of at least 0")
    ranks = {"latency_ms_p50": 50, "latency_ms_p90": 90, "latency_ms_p99": 99}
    values: dict[str, float] = {}
    for name, rank in ranks.items():
        recorded = part.number(name)
        if recorded is None and not samples:
            raise damaged(part.path, f"{part.place or 'it'} has neither samples_ms nor {name}")
        values[name] = percentile(samples, rank) if samples else float(recorded or 0.0)
    return Latency(tuple(samples), **values)


def read_comparison(part: Part) -> LatencyComparison:
    """Reads a comparison of dense and packed with the conditions of the measurement."""
    dense, packed = part.part("dense"), part.part("packed", "sparse")
    if packed is None and dense is None and part.find(("samples_ms", "latency_ms_p50"))[1] is not None:
        packed = part
    one, two = (read_latency(item) if item else None for item in (dense, packed))
    conditions = list(flat_facts(part, NOT_CONDITIONS))
    if packed is not None and packed is not part:
        known = {name for name, _ in conditions}
        conditions += [(name, value) for name, value in flat_facts(packed, NOT_CONDITIONS) if name not in known]
    ratio = part.number("ratio_packed_to_dense_of_medians", "ratio_p50", "ratio")
    if ratio is None and one and two and one.latency_ms_p50:
        ratio = two.latency_ms_p50 / one.latency_ms_p50
    return LatencyComparison(part.path.name, one, two, ratio, tuple(conditions))


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _listed(role: str, sources: Sequence[Part | None]) -> list[Part]:
    """Returns the objects listed under the role's name in the first document that has any (a document of one role may call them points)."""
    for place, part in enumerate(sources):
        if part is not None:
            found = part.parts(role) or (part.parts("points") if place == 0 else [])
            if found:
                return found
    return []


def read_history(role: str, *sources: Part | None) -> tuple[Epoch, ...]:
    """Reads the epochs of one network from the first document that has them."""
    return tuple(
        Epoch(
            epoch=_or(item.integer("epoch"), i),
            loss=item.number("loss"),
            clean_share=item.share("clean", "clean_accuracy"),
            certified_share=item.share("certified", "certified_accuracy"),
            density=item.share("density"),
            epsilon=item.number("epsilon"),
            seconds=item.number("seconds"),
            measure=item.text("measure", default="interval"),
            phase=item.text("phase", default="train"),
        )
        for i, item in enumerate(_listed(role, sources))
    )


def read_curve(role: str, *sources: Part | None) -> tuple[CurvePoint, ...]:
    """Reads the curve of one network, sorted by radius; InputError for a point without a radius or a certified share."""
    points = []
    for item in _listed(role, sources):
        radius, certified = item.number("epsilon_value"), item.share("certified", "certified_accuracy")
        if radius is None or certified is None or radius < 0:
            raise damaged(item.path, f"{item.place} lacks its epsilon_value or certified share")
        clean, attacked = item.share("clean", "clean_accuracy"), item.share("attacked", "attacked_accuracy")
        points.append(CurvePoint(item.text("epsilon", default=f"{radius:g}"), radius, clean, attacked, certified))
    return tuple(sorted(points, key=lambda point: point.epsilon_value))
