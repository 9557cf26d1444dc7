"""Drawn networks over every operator, many in one program: the bits of their simulations, and what the comparison would find."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "c"
if not (BENCHMARK / "same_bits.py").is_file():
    pytest.skip("the benchmarks are not beside this copy", allow_module_level=True)
sys.path.append(str(BENCHMARK))

import same_bits  # noqa: E402

INPUTS = 32  # each kind four times


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc on this machine")
def test_drawn_networks_have_the_stated_bits_and_another_bit_is_found(tmp_path: Path) -> None:
    one = same_bits.program(same_bits.drawn(20, 23), INPUTS, tmp_path)
    written = same_bits.execute(same_bits.configurations()["gcc -O2"], one, INPUTS)
    assert written is not None
    counts, wrong = same_bits.compare(one, written, INPUTS, True)
    assert wrong == []
    assert counts["fp32"]["bounded"] > 0
    assert counts["int8"]["refused_classes"] > 0  # NaN
    words = np.frombuffer(written, np.int32).copy()
    words[1] ^= 1  # the last bit of the first logit
    counts, wrong = same_bits.compare(one, words.tobytes(), INPUTS, True)
    assert (counts["fp32"]["other_bits"], len(wrong)) == (1, 1)
    words[1] = np.float32(1e30).view(np.int32)
    assert same_bits.compare(one, words.tobytes(), INPUTS, False)[0]["fp32"]["outside"] == 1
    words[1 + 3 * one.words()[0] - 1] ^= 1  # the class of the fourth input, which is asked
    assert same_bits.compare(one, words.tobytes(), INPUTS, True)[0]["fp32"]["wrong_classes"] == 1


def test_drawn_networks_have_every_operator() -> None:
    kinds = {type(node).__name__ for net in same_bits.drawn(0, 60) for node in net.graph.nodes}
    assert kinds == {"Add", "AddConstant", "AveragePool", "Conv", "Gemm", "MaxPool", "MulConstant", "Relu", "Reshape"}


@pytest.mark.skipif(not shutil.which("clang"), reason="no clang on this machine")
def test_nan_stays_visible_where_a_compiler_was_told_that_there_is_none(tmp_path: Path) -> None:
    how = same_bits.configurations()["clang -O3 -march=native -fno-honor-nans"]
    one = same_bits.program(same_bits.drawn(0, 1), INPUTS, tmp_path)
    written = same_bits.execute(how, one, INPUTS)
    assert written is not None
    counts, wrong = same_bits.compare(one, written, INPUTS, True)
    assert wrong == []
    assert counts["int8"]["refused_classes"] > 0
