"""What model.h declares of the live certificate (docs/c.md, docs/numerics.md, section 14)."""

from __future__ import annotations

from vsparse.stages.export.c_source.literals import float_literal

# Evaluations of NAME_radius at most, each of them the interval pass of NAME_certify.
RADIUS_PASSES = 10


def declarations(prefix: str, arena: str, data_range: tuple[float, float]) -> str:
    """Returns the declarations, to stand inside of `extern "C"`; `arena` is the C expression of the floats that an arena must have."""
    capitals = prefix.upper()
    low, high = (float_literal(end) for end in data_range)
    return f"""/* The live certificate. A verdict is about every input within epsilon of this one in each element, and in the data range:
   `label` is what {prefix}_classify returns; `certified` is 1 where no such input has another label, on any device that honours the
   contract, and 0 where that is not known; `margin` is a lower bound of the logit of the label minus the largest other one over all these
   inputs (-FLT_MAX where none was found), positive exactly where `certified` is 1. */
struct {prefix}_verdict {{
    int label;
    int certified;
    float margin;
}};

#define {capitals}_LOWEST {low} /* the data range */
#define {capitals}_HIGHEST {high}
#define {capitals}_LIVE_ARENA_FLOATS {arena}

/* Fills in the verdict; in an arena of the caller's, as {prefix}_logits_in does. Returns 0, or -1 where `floats` is below
   {capitals}_LIVE_ARENA_FLOATS: the verdict is then that nothing is known. An epsilon that is negative, not a number or above the data
   range, and an input that is not a number or outside of the data range, are never certified. */
int {prefix}_certify_in(float *arena, size_t floats, const float *input, float epsilon, struct {prefix}_verdict *verdict);

/* Returns a radius that {prefix}_certify certifies, the largest of at most {RADIUS_PASSES} that it tries; -1 where not even 0 is, or the
   arena is too small. */
float {prefix}_radius_in(float *arena, size_t floats, const float *input);

#ifndef {capitals}_NO_STATIC_ARENA
int {prefix}_certify(const float *input, float epsilon, struct {prefix}_verdict *verdict);
float {prefix}_radius(const float *input);
#endif
"""
