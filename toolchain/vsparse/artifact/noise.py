"""Why times are noisy, as whoever measured them says: typed, and told once where it is said of several forms."""

from __future__ import annotations

from collections.abc import Iterable

from vsparse.artifact.document import Part


class NoiseReason(Part):
    """One reason why times are noisy: its name, the value that was found, the limit that it is over, and the same in words."""

    name: str
    value: float
    limit: float
    detail: str


Noise = tuple[NoiseReason, ...]


def told_once(found: Iterable[tuple[str, Noise | None]]) -> list[str]:
    """Returns the reasons of several forms by their labels, in sentences: what is said of all of them without their labels, and first."""
    forms = [(label, noise) for label, noise in found if noise is not None]
    labels: dict[str, list[str]] = {}
    for label, noise in forms:
        for reason in noise:
            labels.setdefault(reason.detail, []).append(label)
    everyone = [detail for detail, named in labels.items() if len(named) == len(forms)]
    some = [f"{', '.join(named)}: {detail}" for detail, named in labels.items() if len(named) < len(forms)]
    return [*everyone, *some]
