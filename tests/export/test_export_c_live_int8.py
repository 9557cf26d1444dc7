"""The error of one int8 sum by itself: the same bits in C and simulation, and no execution within the contract outside of its bounds."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import numpy as np
import pytest
from c_nets import Builder
from live_attack import quantised_net

from vsparse.errors import UnavailableError
from vsparse.graph import FakeQuant, Gemm, Graph, QuantisedParameter, Relu
from vsparse.stages.export.c_int8.fusion import steps_of
from vsparse.stages.export.c_live import CompiledLive, emit_live_int8_c, int8_constants, int8_simulation, simulate_live_int8
from vsparse.stages.export.c_live.int8_constants import is_refined, of_sum
from vsparse.stages.export.c_live.int8_simulation import bounds_int8
from vsparse.stages.export.c_source import CompiledModel, find_compiler
from vsparse.stages.export.quantise import quantise

INPUTS, ROWS = 768, 12
NATIVE = ("-O3", "-std=c99", "-ffp-contract=off", "-march=native")
STRICT = ("-O1", "-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pedantic")


def grouped(density: float) -> Graph:
    """Convolutions in groups and with strides, and linear layers, dense or so sparse that their weights are listed."""
    b = Builder(np.random.default_rng(3), 4, 7, 6)
    b.conv(8, (3, 2), pads=(1, 0, 1, 1), density=density)
    b.add(Relu)
    b.conv(8, (3, 3), pads=(1, 1, 1, 1), groups=4, density=density)
    b.add(Relu)
    b.conv(6, (2, 3), pads=(0, 0, 0, 0), density=density)
    b.flatten()
    b.gemm(9, density=density)
    b.add(Relu)
    b.gemm(3)
    graph = b.graph()
    return quantise(graph, np.random.default_rng(4).random((16, *graph.input_shape), dtype=np.float32))


def networks() -> list[Graph]:
    found = [quantised_net(np.random.default_rng(seed), "plain") for seed in range(3)]
    return [*[one for one in found if one is not None], grouped(1.0), grouped(0.1)]


@pytest.mark.parametrize("options", [NATIVE, STRICT], ids=["native", "strict"])
def test_sums_that_are_looked_at_have_the_bits_of_the_simulation(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With errors made so large that nearly every sum is looked at."""
    try:
        find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(int8_constants, "SMALL", 0)
    monkeypatch.setattr(int8_constants, "ROUNDINGS", 20_000)
    texts = ""
    for graph in networks():
        x = np.random.default_rng(1).random((3, *graph.input_shape), dtype=np.float32)
        source = emit_live_int8_c(graph)
        source.write(tmp_path)
        texts += (tmp_path / "model.int8.c").read_text()
        with CompiledModel(tmp_path / "model.int8.c", graph.input_shape, graph.shape_of(graph.output)[0], options, "vsparse_int8") as model:
            for epsilon in (0.0, 0.004, 0.1):
                found, stated = CompiledLive(model, "vsparse_int8").certify(x, epsilon), simulate_live_int8(graph, x, epsilon)
                for name in ("label", "certified", "margin"):
                    np.testing.assert_array_equal(getattr(found, name), getattr(stated, name), name)
    assert "const int8_t *weight, int count)" in texts  # listed
    assert "int row, int column)" in texts
    assert "int o)" in texts


def wide(rng: np.random.Generator, scale: float, low: int, x: np.ndarray) -> Graph:
    """One wide linear layer on a grid from `low` on, whose sums for x are near halves of its own grid's `scale`, and another layer."""
    q = rng.integers(-64, 65, (ROWS, INPUTS)).astype(np.int8)
    scales = np.full(ROWS, 2.0**-9, np.float32)
    step, zero = np.float32(1 / 255), -128 - low
    halves = np.rint((rng.integers(-90, 90, ROWS) + 0.5) * scale / (float(step) * 2.0**-9))
    bias = halves - q.astype(np.int64) @ np.clip(np.rint(x / step), low, low + 255).astype(np.int64)
    integers = {
        "w": QuantisedParameter(q, scales),
        "b": QuantisedParameter(bias.astype(np.int32), scales * step),
        "v": QuantisedParameter(rng.integers(-64, 65, (2, ROWS)).astype(np.int8), scales[:2]),
        "c": QuantisedParameter(np.zeros(2, np.int32), scales[:2] * np.float32(scale)),
    }
    nodes = (
        FakeQuant(name="xq", inputs=("x",), shape=(INPUTS,), scale=float(step), zero_point=zero, lowest=-128, highest=127),
        Gemm(name="wide", inputs=("xq",), shape=(ROWS,), weight="w", bias="b"),
        FakeQuant(name="wq", inputs=("wide",), shape=(ROWS,), scale=float(np.float32(scale)), zero_point=0, lowest=-128, highest=127),
        Gemm(name="last", inputs=("wq",), shape=(2,), weight="v", bias="c"),
    )
    params = {name: one.floats() for name, one in integers.items()}
    return Graph(input="x", input_shape=(INPUTS,), nodes=nodes, output="last", params=params, integers=integers)


def executions(graph: Graph, steps: np.ndarray) -> list[list[Fraction]]:
    """The results of the wide layer for steps [inputs] of its grid: exact, in integers, and in float32 in orders that err much."""
    stored, bias = graph.integers["w"], graph.integers["b"]
    s = np.float32(graph.nodes[0].scale)
    values, found = (steps * s).astype(np.float32), []
    for row in range(ROWS):
        w = (stored.scale[row] * stored.values[row].astype(np.float32)).astype(np.float32)
        b = np.float32(bias.scale[row] * np.float32(bias.values[row]))
        total = int(stored.values[row].astype(np.int64) @ steps) + int(bias.values[row])
        factor = np.float32(s * stored.scale[row])
        one = [Fraction(total) * Fraction(float(s)) * Fraction(float(stored.scale[row])), Fraction(float(np.float32(total) * factor))]
        products = w * values
        for order in (np.argsort(products), np.argsort(-products), np.argsort(np.abs(products)), np.argsort(-np.abs(products))):
            one.append(Fraction(float(np.add.accumulate(np.concatenate([[b], products[order]]), dtype=np.float32)[-1])))
        found.append(one)
    return found


def attack(low: int, scales: tuple[float, ...]) -> tuple[int, int, int]:
    """Returns how many bounds executions left, how many sums an order of adding decided, and how many bounds are below those by δ."""
    rng = np.random.default_rng(2)
    broken = decided = tighter = 0
    for scale in scales:
        for _ in range(6):
            x = ((rng.random(INPUTS) < 0.3) * rng.random(INPUTS)).astype(np.float32)
            graph = wide(rng, scale, low, x)
            (step,) = (one for one in steps_of(graph) if one.result == "wq")
            grid = graph.nodes[0]
            assert isinstance(grid, FakeQuant)
            assert is_refined(graph, step, grid)
            most = Fraction(float(of_sum(graph, step, grid)))
            for epsilon in (0.0, 2.0**-12):
                boxes, _ = bounds_int8(graph, x[None], np.float32(epsilon), (0.0, 1.0))
                (k_low, k_high), (below, above) = boxes["xq"], boxes["wq"]
                for steps in (k_low[0], k_high[0], rng.integers(k_low[0], k_high[0] + 1)):
                    for row, results in enumerate(executions(graph, np.asarray(steps))):
                        least, greatest = min(results) / Fraction(scale), max(results) / Fraction(scale)
                        first, last = (min(127, max(-128, k)) for k in (ceil(least - HALF - TAU), floor(greatest + HALF + TAU)))
                        broken += not below[0][row] <= first <= last <= above[0][row]
                        decided += ceil(least - HALF) != ceil(greatest - HALF)
                        tighter += epsilon == 0 and min(127, floor(results[0] / Fraction(scale) + most + HALF)) > above[0][row]
    return broken, decided, tighter


@pytest.mark.parametrize("low", [0, -100], ids=["from zero on", "of both signs"])
def test_no_order_of_adding_leaves_the_bounds_where_half_a_step_is_met(low: int) -> None:
    """Where x / s lies near half a step an order of adding decides the step, and all of them must be within the bounds."""
    broken, decided, tighter = attack(low, (2.0**-7, 2.0**-10, 2.0**-14))
    assert not broken
    assert decided > 20
    assert tighter > 20


def test_the_attack_notices_an_error_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_simulation, "of_one_sum", lambda graph, node: np.float32(0))
    assert attack(0, (2.0**-14,))[0] > 0


HALF, TAU = Fraction(1, 2), Fraction(1, 2**10)
