"""A recommendation as a TOML file: every value with its reason in front."""

from __future__ import annotations

import textwrap

import tomli_w

from vsparse.progress import duration
from vsparse.starter.choose import Recommendation

# Where editors (taplo, Even Better TOML) find keys, types and descriptions; `vsparse schema recipe` prints the same.
SCHEMA = "recipe.schema.json"
WIDTH = 100


def recipe_text(found: Recommendation) -> str:
    """Returns the recipe as commented TOML; it begins with the line that names its schema for editors."""
    data = found.survey
    counts = ", ".join(f"{count:,} {name}" for name, count in data.counts.items())
    classes = ", ".join(f"{name} {count:,}" for name, count in list(data.per_class.items())[:12])
    more = "" if len(data.per_class) <= 12 else f", and {len(data.per_class) - 12} more"
    lines = [f"#:schema ./{SCHEMA}"]
    lines += _comment(f"Written by `vsparse init` for target {found.target}; every value can be changed.")
    what = "with a number to predict" if data.regression else f"of {len(data.classes)} classes"
    lines += _comment(f"Found: {data.format}, {data.samples:,} samples ({counts}) {what}.")
    if data.regression:
        lines += _comment(f"A linear fit explains {100 * data.linear_explained:.0f} % of the variance of the validation numbers.")
    else:
        lines += _comment(f"Training samples by class: {classes}{more}.")
        lines += _comment(
            f"Naming the nearest class mean is right for {100 * data.centroid_accuracy:.0f} % of the validation samples: a test of labels."
        )
    lines += _comment(f"Training takes about {duration(found.seconds)} on one core, by arithmetic (an estimate).")
    for warning in found.warnings:
        lines += _comment(f"NOTE: {warning}.")
    section = ""
    for key, value in found.values.items():
        place, _, name = key.rpartition(".")
        if place != section:
            lines += ["", f"[{place}]"]
            section = place
        if found.reasons[key]:
            lines += _comment(found.reasons[key])
        lines.append(tomli_w.dumps({name: value}, multiline_strings=False).replace("\n    ", " ").replace(",\n]", " ]").strip())
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    """Returns a text as comment lines, whatever is in it: names of files may hold anything printable."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text)
    return textwrap.wrap(plain, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False)
