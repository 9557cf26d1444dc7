"""compress/layers.json: each layer before and after compression, what was removed, and how the two networks compare."""

from __future__ import annotations

from pydantic import Field

from vsparse.artifact.document import Count, Document, Fraction01, Part

Sides = tuple[Count, ...]


class LayerRow(Part):
    """A layer before and after; `nonzero` counts the weights of the packed layer that are not zero; merged layers end at 0.

    Counts are for one sample, bytes for float32 storage. The row of the totals has no name, type or shape.
    """

    name: str
    type: str
    shape_before: Sides
    shape_after: Sides | None
    weights_before: Count
    weights_after: Count
    nonzero: Count
    macs_before: Count
    macs_after: Count
    bytes_before: Count
    bytes_after: Count


class Removal(Part):
    """A kind of removal in one layer: how many units, and in which arithmetic the result is the same."""

    layer: str
    kind: str
    count: Count
    exactness: str


class Equality(Part):
    """The packed network beside the masked one: exact rationals, then float32 and float64 (`double`) against what rounding allows."""

    rational_inputs: Count
    rational_equal: bool
    float_inputs: Count
    outputs: Count
    identical: Count
    max_difference: float
    bound: float
    double_difference: float
    double_bound: float
    within_bound: bool

    @property
    def contradictions(self) -> tuple[str, ...]:
        """The comparisons that say that the two networks differ."""
        return tuple(name for name in ("rational_equal", "within_bound") if not getattr(self, name))


class LayerTable(Document):
    """The account of a compression; `removed_share` is 1 − weights after / weights before."""

    rows: tuple[LayerRow, ...]
    totals: LayerRow
    removed_share: float = Field(le=1)
    density: Fraction01
    reductions: tuple[Removal, ...]
    exactness: str
    proof: str
    equality: Equality
