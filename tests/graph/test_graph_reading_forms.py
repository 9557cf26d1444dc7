"""Random QDQ, float16 and bfloat16 files: none is read as another network, and many are read."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from reading_forms import attack_form, form_file


def outcomes(indices: range) -> Counter[str]:
    found: Counter[str] = Counter()
    for i in indices:
        file = form_file(3, i)
        outcome = attack_form(file, np.random.default_rng(i))
        assert outcome.kind != "different", (i, outcome.why)
        form = "qdq" if file.quantised else "fp16" if file.half else "bf16"
        found[form if outcome.kind == "computed" else outcome.kind] += 1
    return found


def test_forms_are_read_and_executed_within_their_contracts():
    found = outcomes(range(36))
    assert min(found[form] for form in ("qdq", "fp16", "bf16")) >= 4
    assert found["refused by runtime"] == 0


@pytest.mark.slow
def test_forms_at_length():
    assert outcomes(range(36, 2000))["qdq"] > 500
