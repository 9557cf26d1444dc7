"""Errors that a user meets: one sentence that names the thing, the reason and the way out, and the exit code it stands for."""

from __future__ import annotations


class VsparseError(Exception):
    """Base of all errors shown to a user without a traceback; `exit_code` is what the command line returns."""

    exit_code = 2
    shown = False  # whether what there is of a result was printed before it


class InputError(VsparseError):
    """Usage or bad input: a recipe, a dataset, a model, an artifact or an option that cannot be used (exit 2)."""

    exit_code = 2


class GateError(VsparseError):
    """A gate failed: certified accuracy, latency, size, audit or check (exit 1)."""

    exit_code = 1


class SoundnessError(GateError):
    """A proved bound and an execution of the network contradict each other: the run is void, whatever else it has found (exit 1)."""


class UnavailableError(VsparseError):
    """A device, runtime or tool is absent or unreachable (exit 3)."""

    exit_code = 3


class ClusterError(UnavailableError):
    """A cluster is not there, has no workers, or was lost in the middle; what was finished is kept (exit 3)."""


def nearest(word: str, known: list[str]) -> str:
    """Returns ' (did you mean "x"?)' for the known word closest to `word`, or an empty string."""
    from difflib import get_close_matches

    match = get_close_matches(word, known, n=1, cutoff=0.5)
    return f' (did you mean "{match[0]}"?)' if match else ""
