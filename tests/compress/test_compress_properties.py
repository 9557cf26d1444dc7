"""Packed equals masked, exactly, on random networks with random masks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from compress_nets import FAMILIES, random_masks

from vsparse.errors import GateError
from vsparse.graph import run, to_torch
from vsparse.graph.cost import weight_count
from vsparse.stages.compress import compress
from vsparse.stages.compress.pack import pack
from vsparse.stages.compress.rational import evaluate
from vsparse.stages.compress.reduced_graph import apply_masks


def inputs_of(graph, count, seed):
    return np.random.default_rng(seed).random((count, *graph.input_shape)).astype(np.float32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(6))
def test_rational_evaluation_is_the_function_that_torch_runs(family, seed):
    graph = FAMILIES[family](seed)
    x = inputs_of(graph, 1, seed)
    expected = run(graph, graph.tensors(torch.float64), torch.from_numpy(x).double())[0].tolist()
    assert np.allclose([float(value) for value in evaluate(graph, x[0])], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(12))
def test_packed_equals_masked_in_rationals(family, seed, exact):
    graph = FAMILIES[family](seed)
    masks = random_masks(graph, seed + 100)
    result = compress(graph, masks, exact=exact, rational_inputs=3)
    assert result.evidence.rational_inputs == 3
    assert result.evidence.rational_equal
    assert result.evidence.within_bound
    assert result.removed_share > 0
    assert result.removed_share == 1 - weight_count(result.packed) / weight_count(graph)
    masked = apply_masks(graph, masks)
    for x in inputs_of(graph, 3, seed):
        before, after = evaluate(masked, x), evaluate(result.packed, x)
        if result.exactness == "real":
            assert max(abs(a - b) for a, b in zip(before, after, strict=True)) <= Fraction(1, 10**4)
        else:
            assert before == after


def test_small_multiples_of_an_eighth_fold_without_any_rounding():
    exact_everywhere = 0
    for seed in range(12):
        graph = FAMILIES["plain"](seed)
        masks = random_masks(graph, seed, rows=0.3)
        result = compress(graph, masks, exact=False)
        if any(reduction.kind == "constant" for reduction in result.reductions):
            x = inputs_of(graph, 1, seed)[0]
            assert evaluate(apply_masks(graph, masks), x) == evaluate(result.packed, x)
            exact_everywhere += 1
    assert exact_everywhere > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_graph_is_a_valid_module(family):
    graph = FAMILIES[family](3)
    packed = compress(graph, random_masks(graph, 3)).packed
    x = torch.from_numpy(inputs_of(graph, 4, 3))
    assert torch.allclose(to_torch(packed)(x), run(packed, packed.tensors(), x), atol=1e-5)


@pytest.mark.parametrize("family", ["plain", "residual"])  # a depthwise convolution left with one group becomes a plain one
def test_compressing_twice_removes_nothing_more(family):
    graph = FAMILIES[family](5)
    once = compress(graph, random_masks(graph, 5), exact=False)
    twice = compress(once.packed, {}, exact=False)
    assert twice.total.weights_after == once.total.weights_after


def test_float32_difference_stays_within_its_bound_and_is_zero_for_small_numbers():
    graph = FAMILIES["residual"](1)
    result = compress(graph, random_masks(graph, 1), exact=False, inputs=inputs_of(graph, 70, 0))
    evidence = result.evidence
    assert evidence.float_inputs == 86
    assert evidence.outputs == 86 * 3
    assert 0 <= evidence.max_difference <= evidence.bound < 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_units_proved_dead_really_are(family):
    dead = 0
    for seed in range(6):
        graph = FAMILIES[family](seed)
        for name, value in graph.params.items():
            if name.endswith("bias"):
                value -= 4
        result = compress(graph, {}, rational_inputs=4, seed=seed)
        assert result.evidence.rational_equal
        assert result.evidence.within_bound
        dead += sum(reduction.count for reduction in result.reductions if reduction.kind == "dead")
        corners = (inputs_of(graph, 3, seed) > 0.5).astype(np.float32)
        if result.exactness != "real":
            assert all(evaluate(graph, x) == evaluate(result.packed, x) for x in corners)
    assert dead > 0


def test_a_defect_in_packing_is_a_failed_gate(monkeypatch):
    from vsparse.stages.compress import compression

    def damaged(*arguments):
        packed, biases = pack(*arguments)
        name = next(name for name in packed.params if name.endswith("weight"))
        packed.params[name] = packed.params[name] * np.float32(1.01)
        return packed, biases

    monkeypatch.setattr(compression, "pack", damaged)
    with pytest.raises(GateError, match="differ"):
        compress(FAMILIES["residual"](1), {}, exact=False)


def test_large_networks_skip_the_rational_check_and_say_so(monkeypatch):
    from vsparse.stages.compress import evidence

    monkeypatch.setattr(evidence, "RATIONAL_BUDGET", 10)
    result = compress(FAMILIES["plain"](1), {}, exact=False)
    assert result.evidence.rational_inputs == 0
    assert "rational" not in result.proof
