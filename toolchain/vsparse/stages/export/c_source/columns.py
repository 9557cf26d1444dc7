"""model_columns.h: from the columns of a table, in their own units, to the input of a network in C; as model/features.json says."""

from __future__ import annotations

from vsparse.artifact.features import FeatureList, FeatureRecord
from vsparse.c_prefix import require_prefix
from vsparse.stages.export.c_source.literals import comment

# A value counts as outside of the data range where clipping moves it by more than this.
BEYOND = 1e-9


def columns_header(features: FeatureList, prefix: str, title: str) -> str:
    """Returns the text of model_columns.h; `prefix` begins its names as it does those of model.h.

    The function computes in double what `vsparse.data.features.scaled` does in float64: one subtraction, one division, clipping, one
    rounding to float. Where double is IEEE 754 binary64, without excess precision, both have the same bits.
    """
    capitals = require_prefix(prefix).upper()
    columns = list(dict.fromkeys(one.column for one in features.features))
    categories = {name: [one for one in features.features if one.column == name and one.category is not None] for name in columns}
    told = [line for number, name in enumerate(columns) for line in _told(number, name, features, categories[name])]
    rows = [_row(one, columns.index(one.column), categories[one.column]) for one in features.features]
    return f"""/* {comment(title)}: from the columns of a table to the input of the network in model.h, as model/features.json says.

   columns[i], in the column's own unit; of a category its number in the list. The certificate is about the input that comes out: a change
   of a column by up to its epsilon, within the data range, is certified where the claim is; computing the input rounds each value once.
{chr(10).join(told)} */
#ifndef {capitals}_MODEL_COLUMNS_H
#define {capitals}_MODEL_COLUMNS_H

#ifdef __FAST_MATH__
#error "model_columns.h divides and compares as written: compile it without -ffast-math"
#endif

#define {capitals}_COLUMNS {len(columns)}
#define {capitals}_FEATURES {len(rows)} /* values of the input, {capitals}_INPUTS of model.h */

/* Fills input[{capitals}_FEATURES] from columns[{capitals}_COLUMNS]: (value - low) / span within [0, 1], of a category 1 or 0 as the value.
   Returns how many values lay outside of the data range of the training data and were clipped to it, or -1, with the input unfinished,
   where a number is not finite or a category is not one of the list. */
static inline int {prefix}_from_columns(const double *columns, float *input)
{{
    /* Of each value of the input: its column, its category or -1 for a number, how many categories there are. */
    static const short which[{capitals}_FEATURES][3] = {{
{chr(10).join(f"        {{{column}, {category}, {count}}}," for column, category, count, _, _ in rows)}
    }};
    static const double map[{capitals}_FEATURES][2] = {{ /* low and span */
{chr(10).join(f"        {{{low}, {span}}}," for _, _, _, low, span in rows)}
    }};
    int i, clipped = 0;
    for (i = 0; i < {capitals}_FEATURES; i++) {{
        double value = columns[which[i][0]], x, inside;
        if (!(value - value == 0.0)) return -1; /* not finite */
        if (which[i][1] >= 0) {{
            if (!(value >= 0.0 && value < (double)which[i][2]) || (double)(int)value != value) return -1;
            value = (int)value == which[i][1] ? 1.0 : 0.0;
        }}
        x = (value - map[i][0]) / map[i][1];
        inside = x < 0.0 ? 0.0 : (x > 1.0 ? 1.0 : x);
        if (x - inside > {BEYOND!r} || inside - x > {BEYOND!r}) clipped++;
        input[i] = (float)inside;
    }}
    return clipped;
}}
#endif
"""


def _told(number: int, name: str, features: FeatureList, categories: list[FeatureRecord]) -> list[str]:
    """Returns what a column is, in lines of a comment."""
    if categories:
        listed = ", ".join(f"{index} {comment(one.category or '')}" for index, one in enumerate(categories))
        return [f"   {number}  {comment(name)}, a category: {listed}"]
    one = next(one for one in features.features if one.column == name)
    fixed = "may not change" if not one.epsilon else f"epsilon {one.epsilon:.6g}"
    return [f"   {number}  {comment(name)}, from {one.low:.6g} to {one.low + one.span:.6g}, {fixed}"]


def _row(one: FeatureRecord, column: int, categories: list[FeatureRecord]) -> tuple[int, int, int, str, str]:
    category = categories.index(one) if one.category is not None else -1
    return column, category, len(categories), _double(one.low), _double(one.span)


def _double(value: float) -> str:
    """Returns a C constant of type double: the shortest decimal that only this number is nearest to."""
    text = repr(value)
    return text if {".", "e"} & set(text) else f"{text}.0"
