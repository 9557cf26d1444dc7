"""A curve against the claims: only where both are about the same samples do they have to agree at the radius of the claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vsparse_check.documents import _is_whole, check_curve
from vsparse_check.refusal import Refuted

DATA = "train/data.json"


@pytest.mark.parametrize(
    ("most", "split", "whole"),
    [(0, 40, True), (40, 40, True), (40, 1000, False), (500, 40, True), (40, None, True), (None, 1000, True)],
    ids=["all samples", "as many as there are", "the first of more", "fewer than asked for", "no record of the data", "no limit is told"],
)
def test_claims_are_about_a_whole_split_unless_it_is_said_to_have_more(
    most: int | None, split: int | None, whole: bool, tmp_path: Path
) -> None:
    files = set() if split is None else {DATA}
    (tmp_path / "train").mkdir()
    (tmp_path / DATA).write_text(json.dumps({"splits": {"test": {"samples": split}}}))
    recipe: dict[str, Any] = {} if most is None else {"property": {"samples": most}}
    assert _is_whole(tmp_path, files, recipe, 40) is whole


@pytest.mark.parametrize(("samples", "whole", "passes"), [(40, True, False), (40, False, True), (10, True, True)])
def test_the_first_samples_and_as_many_spaced_ones_need_not_agree(samples: int, whole: bool, passes: bool) -> None:
    accuracies = {"clean_accuracy": 0.5, "attacked_accuracy": 0.5, "certified_accuracy": 0.5}
    curve = {"samples": samples, "sparse": [{"epsilon": "0.01", "epsilon_value": 0.01, **accuracies}]}
    summary = dict.fromkeys(accuracies, 0.75)
    content: dict[str, Any] = {"property": {"epsilon": "0.01"}, "claims": [{}] * 40, "summary": summary}
    if passes:
        check_curve("curve.json", curve, content, whole)
        return
    with pytest.raises(Refuted, match="contradicts the claims at radius 1/100"):
        check_curve("curve.json", curve, content, whole)
