"""The pieces that a run is shared out in: put together, their answers are those of the whole, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.perturbation import PerturbationSet
from vsparse.stages.verify.answers import enter
from vsparse.stages.verify.batches import one_thread, packed
from vsparse.stages.verify.cascade import Cascade, Question
from vsparse.stages.verify.deployed import read_model
from vsparse.stages.verify.pieces import (
    judge_together,
    open_name,
    read_settled,
    read_together,
    samples_bytes,
    settle,
    settled_name,
    together_name,
)

SETS = (
    PerturbationSet(epsilon="0.08"),
    PerturbationSet(norm="l2", epsilon="0.3"),
    PerturbationSet(epsilon="0.02", brightness="0.05", contrast="0.03"),
)


@pytest.mark.parametrize("perturbation", SETS, ids=("box", "l2", "photometric"))
def test_pieces_put_together_are_the_whole(digits_conv: Path, digits: Dataset, tmp_path: Path, perturbation: PerturbationSet) -> None:
    question = Question(perturbation, CONTRACTS["fp32"], ("alpha-crown", "branch-and-bound"), 4, 5, 1, 0)
    inputs, labels = digits.inputs(slice(0, 6)), digits.labels[:6]
    model = read_model(digits_conv)
    with one_thread():
        whole = Cascade(model, question).judge(inputs.copy(), labels.copy(), range(30, 36))
        there = Cascade(model, question)  # another process knows the model and the question alone
        files = judge_together(there, "key", 3, 30, samples_bytes(inputs, labels))
        opened = sorted(set(files) - {together_name(3)})
        assert opened, "nothing was left to search"
        for name in opened:
            files |= settle(there, "key", 3, int(name[12:18]), files[name])
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    found = read_together(tmp_path / together_name(3), "key", 6)
    assert found is not None
    answer, positions = found
    assert [open_name(3, position) for position in positions] == opened
    for position in positions:
        settled = read_settled(tmp_path / settled_name(3, position), "key")
        assert settled is not None
        enter(answer, position, settled[0])
    assert "certified" in answer.verdict
    mine, theirs = (packed(one, "key", (1, 8, 8)) for one in (answer, whole))
    assert mine.keys() == theirs.keys()
    for name in mine.keys() - {"time_ms"}:
        assert mine[name].dtype == theirs[name].dtype, name
        assert np.array_equal(mine[name], theirs[name]), name
    # The answer to another question, and one that is damaged, are no answers.
    assert read_together(tmp_path / together_name(3), "other", 6) is None
    assert read_settled(tmp_path / settled_name(3, positions[0]), "other") is None
    (tmp_path / together_name(3)).write_bytes(files[together_name(3)][:-30])
    assert read_together(tmp_path / together_name(3), "key", 6) is None
