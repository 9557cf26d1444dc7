"""The checker's own bounds: against search, against the toolchain's bounds, and against arithmetic that rounding breaks."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from check_artifacts import graph_of, samples

from vsparse.bounds import Rounding, crown, interval, last_layer_folding, lowest_margin, margin_rows, refine
from vsparse.bounds import ball as reference_ball
from vsparse.bounds.region import box_of, region
from vsparse.contract import contract
from vsparse.graph import Add, Gemm, Graph, Relu, run, to_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.stages.compress.rational import evaluate
from vsparse_check.bounds import Bounds
from vsparse_check.contracts import CONTRACTS
from vsparse_check.errors import ErrorTerms
from vsparse_check.model import Model
from vsparse_check.region import ClaimedRegion, SampleRegions

METHODS = ("interval", "crown-ibp", "crown")


def property_of(epsilon, norm="linf", brightness="0", contrast="0"):
    return ClaimedRegion(norm, Fraction(epsilon), Fraction(brightness), Fraction(contrast), (0.0, 1.0))


def derive(graph, x, labels, epsilon, method, rounded=True, rules=None, **further):
    network = Model(to_onnx(graph))
    rounding, found = ErrorTerms(network, CONTRACTS[rules or ("fp32" if rounded else "real")]), []
    with np.errstate(all="ignore"):
        for one, label in zip(x.reshape(len(x), -1).astype(np.float64), labels, strict=True):
            bounds = Bounds(network, rounding, SampleRegions(property_of(epsilon, **further), one[None]), method == "crown")
            found.append(bounds.margins(np.array([label]), method == "interval")[1].min())
    return np.array(found)


def test_claims_that_are_derived_together_have_the_bounds_of_each_alone():
    graph = graph_of("residual", 3)
    x, labels = samples(graph, 7, 3)
    network = Model(to_onnx(graph))
    region = SampleRegions(property_of("1/50"), x.reshape(7, -1).astype(np.float64))
    together = Bounds(network, ErrorTerms(network, CONTRACTS["fp32"]), region, refine=False).margins(labels, fold_only=True)[1]
    alone = derive(graph, x, labels, "1/50", "interval")
    assert np.isfinite(alone).all()
    np.testing.assert_allclose(together.reshape(7, -1).min(axis=1), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epsilon", ["0", "1/50", "1/5"])
def test_no_point_found_by_search_has_a_smaller_margin(kind, method, epsilon):
    graph = graph_of(kind, 3)
    x, labels = samples(graph, 6, 3)
    lower = derive(graph, x, labels, epsilon, method)
    rng, radius = np.random.default_rng(0), float(Fraction(epsilon))
    for i in range(len(x)):
        noise = rng.uniform(-radius, radius, (400, *x[i].shape))
        noise[::2] = np.where(noise[::2] > 0, radius, -radius)
        points = np.clip(x[i] + noise * 0.999999, 0, 1).astype(np.float32)
        logits = run(graph, graph.tensors(), torch.from_numpy(points)).double().numpy()
        margins = logits[:, [labels[i]]] - np.delete(logits, labels[i], axis=1)
        assert lower[i] <= margins.min()
        if epsilon == "0":
            assert lower[i] > margins.min() - 1e-3


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("rules", ["fp32", "real"])
@pytest.mark.parametrize("epsilon", ["1/100", "1/10"])
def test_two_derivations_of_a_margin_agree_far_below_the_tolerance(kind, rules, epsilon):
    graph = graph_of(kind, 1)
    x, labels = samples(graph, 12, 1)
    rounding, params = Rounding(graph, contract(rules)), graph.tensors(torch.float64)
    box = reference_ball(torch.from_numpy(x), Fraction(epsilon))
    boxes, rows = interval(graph, params, box, rounding), margin_rows(torch.from_numpy(labels), 4)
    refined = refine(graph, params, box, boxes, rounding)

    def larger(of):
        return lowest_margin(
            torch.fmax(last_layer_folding(graph, params, rows, of, rounding), crown(graph, params, box, rows, of, rounding))
        )

    expected = {
        "interval": lowest_margin(last_layer_folding(graph, params, rows, boxes, rounding)),
        "crown-ibp": larger(boxes),
        "crown": larger(refined),
    }
    for method, values in expected.items():
        assert np.allclose(derive(graph, x, labels, epsilon, method, rules == "fp32"), values.numpy(), rtol=1e-7, atol=1e-7)


def by_the_toolchain(graph, x, labels, rules, perturbation):
    """Returns the margins of the three methods, as the toolchain bounds them."""
    rounding, params = Rounding(graph, contract(rules)), graph.tensors(torch.float64)
    around = region(torch.from_numpy(x), perturbation)
    boxes, rows = interval(graph, params, box_of(around), rounding), margin_rows(torch.from_numpy(labels), 4)
    refined = refine(graph, params, around, boxes, rounding)
    of = {"interval": boxes, "crown-ibp": boxes, "crown": refined}
    folded = {method: last_layer_folding(graph, params, rows, of[method], rounding) for method in of}
    whole = {method: crown(graph, params, around, rows, of[method], rounding) for method in of}
    return {method: lowest_margin(folded[method] if method == "interval" else torch.fmax(folded[method], whole[method])) for method in of}


def rounded_to_bf16(graph):
    """Returns the graph with parameters that every format has."""
    params = {name: torch.from_numpy(value).to(torch.bfloat16).float().numpy() for name, value in graph.params.items()}
    return replace(graph, params=params)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("rules", ["tf32", "fp16", "fp16-accumulate", "fp16-chain", "bf16", "sequential"])
def test_low_precision_contracts_cost_what_they_cost_the_toolchain(kind, rules):
    graph = rounded_to_bf16(graph_of(kind, 1))
    x, labels = samples(graph, 6, 1)
    for method, values in by_the_toolchain(graph, x, labels, rules, PerturbationSet(epsilon=Fraction(1, 100))).items():
        found, real = (derive(graph, x, labels, "1/100", method, rules=name) for name in (rules, "real"))
        assert (found < real).all()
        # Claims state 2e-5 less than was proved, so the checker may not lose more; less is as good.
        assert (found > values.numpy() - 2e-6).all()


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize(
    ("norm", "epsilon", "brightness", "contrast"),
    [
        ("l2", "1/10", "0", "0"),
        ("l1", "1/4", "0", "0"),
        ("linf", "0", "1/20", "0"),
        ("linf", "1/100", "1/50", "1/10"),
        ("l2", "1/20", "0", "1/5"),
    ],
)
def test_other_regions_are_bounded_as_the_toolchain_bounds_them_and_hold_for_members(kind, norm, epsilon, brightness, contrast):
    graph = graph_of(kind, 2)
    x, labels = samples(graph, 4, 2)
    allowed = PerturbationSet(norm=norm, epsilon=Fraction(epsilon), brightness=Fraction(brightness), contrast=Fraction(contrast))
    further = {"norm": norm, "brightness": brightness, "contrast": contrast}
    for method, values in by_the_toolchain(graph, x, labels, "fp32", allowed).items():
        found = derive(graph, x, labels, epsilon, method, **further)
        assert np.allclose(found, values.numpy(), rtol=1e-6, atol=1e-6)
    rng = np.random.default_rng(0)
    for i in range(len(x)):
        noise = rng.normal(size=(300, *x[i].shape))
        if norm == "l1":
            noise = noise * (rng.random(noise.shape) < 0.1)
        order = {"l2": 2, "l1": 1, "linf": np.inf}[norm]
        size = np.linalg.norm(noise.reshape(300, -1), order, axis=1).reshape(-1, 1, 1, 1)
        noise = noise / np.maximum(size, 1e-9) * float(Fraction(epsilon)) * 0.9999
        b, c = (rng.choice([-1, 1], (300, 1, 1, 1)) * float(Fraction(text)) for text in (brightness, contrast))
        points = np.clip(x[i] + b + c * (x[i] - 0.5) + noise, 0, 1).astype(np.float32)
        logits = run(graph, graph.tensors(), torch.from_numpy(points)).double().numpy()
        margins = logits[:, [labels[i]]] - np.delete(logits, labels[i], axis=1)
        assert found[i] <= margins.min()


@pytest.mark.parametrize("seed", range(4))
def test_bounds_at_a_point_enclose_the_exact_rational_margin(seed):
    graph = graph_of("plain", seed)
    x, labels = samples(graph, 2, seed)
    lower = derive(graph, x, labels, "0", "crown", rounded=False)
    for i in range(len(x)):
        logits = evaluate(graph, x[i])
        exact = min(logits[labels[i]] - value for j, value in enumerate(logits) if j != labels[i])
        assert Fraction(float(lower[i])) <= exact
        assert float(exact) - lower[i] < 1e-9


def chain(*layers) -> Graph:
    nodes, params, source = [], {}, "input"
    for i, (weight, bias) in enumerate(layers):
        params |= {f"w{i}": np.array(weight, dtype=np.float32), f"b{i}": np.array(bias, dtype=np.float32)}
        nodes.append(Gemm(name=f"z{i}", inputs=(source,), shape=(len(bias),), weight=f"w{i}", bias=f"b{i}"))
        source = f"z{i}"
        if i + 1 < len(layers):
            nodes.append(Relu(name=f"a{i}", inputs=(source,), shape=(len(bias),)))
            source = f"a{i}"
    return Graph("input", (len(layers[0][0][0]),), tuple(nodes), source, params)


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_exploits_the_order_of_summation_is_proved_in_real_arithmetic_only(method):
    # z0 = x + 2^26 - 2^26: x exactly in real arithmetic, 0 or a multiple of 4 in fp32 when 2^26 is added first.
    big = 2.0**26
    graph = chain(([[1, 1, -1]], [0]), ([[1], [0]], [0, 0.25]))
    graph.params["w0"] *= np.array([1, big, big], dtype=np.float32)
    x, labels = np.array([[0.75, 1, 1]], dtype=np.float32), np.array([0])
    assert derive(graph, x, labels, "0", method, rounded=False)[0] == pytest.approx(0.5, abs=1e-3)
    assert derive(graph, x, labels, "0", method, rounded=True)[0] < 0


@pytest.mark.parametrize("method", METHODS)
def test_a_residual_that_swallows_what_a_fused_kernel_adds_to_it_proves_nothing(method):
    # Exactly: z0 = 2^24 + 64, z1 = 2^24 + 32. A kernel that starts with 2^24 and adds 64 ones loses every one of them.
    ones, big = np.zeros((2, 65), dtype=np.float32), np.zeros((2, 65), dtype=np.float32)
    ones[0, :64] = 1
    big[:, 64] = 2.0**24
    nodes = (
        Gemm(name="ones", inputs=("input",), shape=(2,), weight="ones", bias=None),
        Gemm(name="big", inputs=("input",), shape=(2,), weight="big", bias="b"),
        Add(name="sum", inputs=("ones", "big"), shape=(2,)),
    )
    graph = Graph("input", (65,), nodes, "sum", {"ones": ones, "big": big, "b": np.array([0, 32], dtype=np.float32)})
    x, labels = np.ones((1, 65), dtype=np.float32), np.array([0])
    total = np.float32(2.0**24)
    for _ in range(64):
        total = np.float32(total + np.float32(1))
    assert total == 2.0**24
    assert derive(graph, x, labels, "0", method, rounded=False)[0] == pytest.approx(32, abs=0.1)
    assert derive(graph, x, labels, "0", method)[0] < -32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e20, 3e38])
def test_sums_that_may_overflow_prove_nothing(method, size):
    graph = chain(([[size], [size]], [0, 0]), ([[size, 0], [0, -size]], [1, 0]))
    found = derive(graph, np.array([[1]], dtype=np.float32), np.array([0]), "0.001", method)
    assert found[0] == -np.inf


@pytest.mark.parametrize("method", METHODS)
def test_a_margin_below_the_smallest_normal_number_is_not_proved(method):
    graph = chain(([[2.0**-130], [0]], [0, 0]))
    x, labels = np.array([[1]], dtype=np.float32), np.array([0])
    assert derive(graph, x, labels, "0", method)[0] <= 0


@pytest.mark.parametrize("method", METHODS)
def test_an_impossible_region_proves_nothing(method):
    graph = chain(([[1], [0]], [1, 0]))
    assert derive(graph, np.array([[np.nan]]), np.array([0]), "0", method)[0] == -np.inf


def test_the_ball_holds_every_member_and_stays_in_the_range():
    x = np.array([0.1, 0.999, 0.0, 0.5])
    for radius in (Fraction(1, 10), Fraction(8, 255), Fraction(0)):
        lower, upper = SampleRegions(property_of(radius), x[None]).box
        for value, l, u in zip(x, lower[0], upper[0], strict=True):
            assert Fraction(l) <= max(Fraction(value) - radius, 0)
            assert Fraction(u) >= min(Fraction(value) + radius, 1)
            assert 0 <= l <= u <= 1
