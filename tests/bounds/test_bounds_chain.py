"""Contract `fp16-chain`: by hand, against executions in float16 of the stated order, and against every order's bound."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from vsparse.bounds import Rounding, interval
from vsparse.bounds.chain import any_order, leading_power
from vsparse.contract import CONTRACTS
from vsparse.graph.ir import Conv, Gemm, Graph

U = 2.0**-11
ANY, CHAIN = CONTRACTS["fp16-accumulate"], CONTRACTS["fp16-chain"]


def row(weight, bias):
    params = {"w": np.array([weight], np.float32), "b": np.array([bias], np.float32)}
    node = Gemm(name="g", inputs=("x",), shape=(1,), weight="w", bias="b")
    return Graph(input="x", input_shape=(len(weight),), nodes=(node,), output="g", params=params, storage="fp16")


def errors(graph, contract, x):
    """Returns E of the last node at points x [n, *shape] of float16 numbers."""
    rounding = Rounding(graph, contract)
    at = torch.from_numpy(np.asarray(x, np.float64))
    box = interval(graph, rounding.params, (at, at), rounding)[graph.output]
    return rounding.error(graph.nodes[-1], {graph.input: (at, at)}, box).numpy()


def test_powers_of_two_by_hand():
    value = torch.tensor([0.0, 1.0, 1.5, 4.0, 3.999, 0.75, 2.0**-30], dtype=torch.float64)
    assert leading_power(value).tolist() == [0.0, 1.0, 1.0, 4.0, 2.0, 0.5, 2.0**-30]


def test_the_error_of_a_chain_by_hand():
    """Partial sums 1, 3, −1 and 5.5: half a unit in the last place of each but the first, or of the power of two below what e adds."""
    found = errors(row([2.0, -4.0, 6.5], 1.0), CHAIN, [[1.0, 1.0, 1.0]])[0, 0]
    by_hand = U * (2 + 1 + 4)
    assert by_hand <= found <= by_hand + 3 * 2.0**-24 + 1e-9
    assert errors(row([2.0, 0.0, 0.0], 1.0), CHAIN, [[1.0, 9.0, 9.0]])[0, 0] <= U * 2 + 2.0**-24 + 1e-9


def test_small_terms_lose_no_more_than_themselves():
    """A sum of 1024 and 1,000 terms of 2^-12, each of which vanishes in it: at most themselves are lost."""
    graph = row([2.0**-12] * 1000, 1024.0)
    found = errors(graph, CHAIN, np.ones((1, 1000)))[0, 0]
    assert 1000 * 2.0**-12 <= found <= 1000 * (2.0**-12 + 2.0**-24) * (1 + 1e-6)


def test_sums_of_any_length_have_a_finite_bound_in_any_order():
    """2,048 terms of 1 in float16: 2,049 is no number of the format, so that an order may lose half of a longer sum."""
    graph = row([1.0] * 8192, 0.0)
    x = np.ones((1, 8192))
    found = errors(graph, ANY, x)[0, 0]
    assert np.isfinite(found)
    assert found >= 8192 - 2048  # one after the other they stop at 2,048
    assert errors(graph, CHAIN, x)[0, 0] >= 8192 - 2048
    assert any_order(8193, U) * 8192 <= found


def in_chain(w, x, b):
    """Executes s_j = fl(s_{j−1} + w_j·x_j) in float16 for rows w [outputs, terms]; float64 holds each sum before it is rounded."""
    total = np.asarray(b, np.float16)
    for j in range(w.shape[1]):
        total = (total.astype(np.float64) + w[:, j].astype(np.float64) * np.float64(x[j])).astype(np.float16)
    return total.astype(np.float64)


@pytest.mark.parametrize("positive", [True, False])
def test_no_chain_errs_by_more(positive):
    rng = np.random.default_rng(3 + positive)
    worst, smaller = 0.0, []
    for length in (1, 2, 7, 30, 200, 1500):
        for _ in range(6):
            w = rng.normal(size=(8, length)).astype(np.float16)
            w[rng.random(w.shape) < 0.3] = 0
            w = np.abs(w) if positive else w
            b = rng.normal(size=8).astype(np.float16)
            x = (rng.random((1, length)) * 2.0 ** rng.integers(-12, 2)).astype(np.float16)
            params = {"w": w.astype(np.float32), "b": b.astype(np.float32)}
            node = Gemm(name="g", inputs=("x",), shape=(8,), weight="w", bias="b")
            graph = Graph(input="x", input_shape=(length,), nodes=(node,), output="g", params=params, storage="fp16")
            chain, whole = errors(graph, CHAIN, x)[0], errors(graph, ANY, x)[0]
            done = in_chain(w, x[0], b)
            for o in range(8):
                exact = sum((Fraction(float(p)) * Fraction(float(q)) for p, q in zip(w[o], x[0], strict=True)), Fraction(float(b[o])))
                off = abs(Fraction(float(done[o])) - exact)
                assert off <= Fraction(float(chain[o])), (length, o)
                worst = max(worst, float(off) / chain[o])
            smaller.append((chain <= whole).all())
    assert all(smaller)
    assert worst > 0.3


def test_a_convolution_adds_position_by_position_and_then_channels():
    """Two channels and two positions: in this order the large terms cancel at once, in row-major order they do not."""
    weight = np.zeros((1, 2, 1, 2), np.float32)
    weight[0, :, 0, 0], weight[0, :, 0, 1] = (1024.0, -1024.0), (1.0, 1.0)
    node = Conv(name="c", inputs=("x",), shape=(1, 1, 1), weight="w", bias=None)
    graph = Graph(input="x", input_shape=(2, 1, 2), nodes=(node,), output="c", params={"w": weight}, storage="fp16")
    found = errors(graph, CHAIN, np.ones((1, 2, 1, 2))).reshape(-1)[0]
    by_hand = U * (1024 + 1 + 1 + 2)
    assert found <= by_hand + 1e-3
    assert found >= U * (1024 + 0 + 1 + 2)
    assert errors(graph, ANY, np.ones((1, 2, 1, 2))).reshape(-1)[0] > 2 * found


def test_grouped_padded_strided_convolutions_against_executions():
    rng = np.random.default_rng(8)
    for groups, stride, pads, dilation in (
        (1, (1, 1), (1, 1, 1, 1), (1, 1)),
        (2, (2, 1), (0, 1, 2, 0), (1, 2)),
        (4, (1, 2), (1, 0, 0, 1), (1, 1)),
    ):
        w = rng.normal(size=(4, 4 // groups, 3, 2)).astype(np.float16)
        b = rng.normal(size=4).astype(np.float16)
        x = rng.random((2, 4, 6, 7)).astype(np.float16)
        top, left, bottom, right = pads
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        height = (padded.shape[2] - dilation[0] * 2 - 1) // stride[0] + 1
        width = (padded.shape[3] - dilation[1] - 1) // stride[1] + 1
        node = Conv(
            name="c",
            inputs=("x",),
            shape=(4, height, width),
            weight="w",
            bias="b",
            stride=stride,
            pads=pads,
            dilation=dilation,
            groups=groups,
        )
        params = {"w": w.astype(np.float32), "b": b.astype(np.float32)}
        graph = Graph(input="x", input_shape=(4, 6, 7), nodes=(node,), output="c", params=params, storage="fp16")
        allowed = errors(graph, CHAIN, x)
        each = 4 // groups
        for sample in range(2):
            for o in range(4):
                first = o // (4 // groups) * each
                for r in range(height):
                    for c in range(width):
                        window = padded[sample, first : first + each, r * stride[0] :, c * stride[1] :][
                            :, : 2 * dilation[0] + 1 : dilation[0]
                        ]
                        window = window[:, :, : dilation[1] + 1 : dilation[1]]
                        terms, values = w[o].transpose(1, 2, 0).reshape(1, -1), window.transpose(1, 2, 0).reshape(-1)
                        done = in_chain(terms, values, b[o : o + 1])[0]
                        exact = float((terms.astype(np.float64) @ values.astype(np.float64))[0]) + float(b[o])
                        assert abs(done - exact) <= allowed[sample, o, r, c]
