"""Bounds that are wrong on purpose: an attack that finds nothing in them is no attack."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from vsparse.bounds.float64 import gamma
from vsparse.bounds.rounding import Rounding
from vsparse.contract import SMALLEST_SUBNORMAL

# The package offers functions under the names of some of its modules.
additions, crown, error_model, linear, piecewise, rounding = (
    import_module(f"vsparse.bounds.{name}") for name in ("additions", "crown", "error_model", "linear", "operators.piecewise", "rounding")
)

# What each mutation breaks, and a contract under which that must show: bounds that are wrong on purpose, to see that the attack finds it.
# On networks of the kind DETECTORS alone, as others hide it behind the rounding of stored results.
DETECTORS = ("half the rounding, matrix unit",)
MUTATIONS: dict[str, tuple[str, str]] = {
    "no error term": ("fp32", "E = 0"),
    "half the rounding": ("fp32", "γ of half the unit roundoff"),
    "half the rounding, fp16": ("fp16-accumulate", "γ of half the unit roundoff"),
    "no error term of the input": ("bf16", "the input is taken as stored exactly"),
    "storage is not rounded": ("bf16", "the rounding of stored results is left out"),
    "half the rounding, matrix unit": ("bf16", "half a unit roundoff for each term of a sum on a matrix unit, not four"),
    "tf32 is rounded": ("tf32", "operands are rounded to tf32, never truncated"),
    "fused sums are ignored": ("fp32", "an addition costs one rounding, whatever it is fused with"),
    "subnormals are kept": ("fp32", "the cost of underflow is the smallest subnormal"),
    "subnormals are kept, fp16": ("fp16", "the cost of underflow is the smallest subnormal"),
    "overflow is not looked for": ("fp16", "E stays finite where a format overflows"),
    "CROWN without costs": ("bf16", "E is left out of backward bounds"),
    "ReLU's upper line too low": ("fp32", "its intercept is nine tenths of what is needed"),
}


def mutated(name: str, patch: Callable[[Any, str, Any], None]) -> None:
    """Breaks the bounds by the mutation of that name; `patch` is `setattr`, or undoes itself."""
    error, storing, relaxation, costs = Rounding.error, Rounding.relative_to_result, piecewise.relu_relaxation, crown._costs
    if name == "no error term":
        patch(Rounding, "error", lambda self, *a: error(self, *a) * 0)
    elif name == "half the rounding, matrix unit":
        patch(error_model, "MATRIX_UNIT_SLACK", 0.5)
    elif name.startswith("half the rounding"):
        for module in (linear, additions):
            patch(module, "gamma", lambda n, u: gamma(n, u / 2 if u > 2.0**-50 else u))
        patch(Rounding, "relative_to_result", lambda self, *a: storing(self, *a) / 2)
    elif name == "no error term of the input":
        patch(Rounding, "input_error", lambda self, box: torch.zeros_like(box[0]))
    elif name == "storage is not rounded":
        patch(Rounding, "relative_to_result", lambda self, *a: storing(self, *a) * 0)
    elif name == "tf32 is rounded":
        patch(error_model, "TF32_TRUNCATES", 1)
    elif name == "fused sums are ignored":
        patch(rounding, "one_sums", lambda graph: {})
    elif name.startswith("subnormals are kept"):
        patch(Rounding, "floor", lambda self, fmt: SMALLEST_SUBNORMAL[fmt])
    elif name == "overflow is not looked for":
        patch(Rounding, "_checked", lambda self, e, size: e)
    elif name == "CROWN without costs":
        patch(crown, "_costs", lambda *a: {key: cost * 0 for key, cost in costs(*a).items()})
    elif name == "ReLU's upper line too low":
        patch(piecewise, "relu_relaxation", lambda *a, **named: (*relaxation(*a, **named)[:2], relaxation(*a, **named)[2] * 0.9))
    else:
        raise KeyError(name)
