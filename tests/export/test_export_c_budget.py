"""The second tier of the live certificate in C: the bits of its simulation, no verdict that an execution breaks, at most CROWN-IBP."""

from __future__ import annotations

import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from c_nets import Builder, networks
from live_attack import FUSED, Tally, flushed, judge_verdict, points_of, random_net

from vsparse.bounds import Rounding, ball, crown, interval, last_layer_folding, margin_rows
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError, UnavailableError
from vsparse.graph import Add, AveragePool, Gemm, Graph, MaxPool, Relu
from vsparse.graph.ir import Tanh
from vsparse.recipe import load_recipe
from vsparse.stages.export.c_live import CompiledLive, emit_live_c, simulate_budget, simulate_live
from vsparse.stages.export.c_live.backward_plan import plan_of
from vsparse.stages.export.c_live.backward_simulation import Kept, Pass
from vsparse.stages.export.c_live.simulation import UNKNOWN
from vsparse.stages.export.c_source import CompiledModel, find_compiler, simulate
from vsparse.stages.export.firmware import BOARDS, emulate
from vsparse.stages.export.firmware.emulate import find_emulator
from vsparse.stages.export.firmware.link import find_cross_compiler

PLAIN = ("-O1", "-std=c99", "-ffp-contract=off")
STRICT = (*PLAIN, "-Wall", "-Wextra", "-Werror", "-pedantic")
NATIVE = ("-O3", "-std=c99", "-ffp-contract=off", "-march=native")
SCALAR = (*PLAIN, "-U__GNUC__")
FIELDS = ("label", "certified", "margin")


@pytest.fixture(autouse=True)
def compiler() -> str:
    try:
        return find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))


def _same(found, stated) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(stated, name), name)


def _samples(graph: Graph, count: int = 3) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.random((count, *graph.input_shape), dtype=np.float32)
    return np.where(rng.random(x.shape) < 0.3, np.round(x), x).astype(np.float32)


def _compiled(graph: Graph, folder: Path, options: tuple[str, ...] = PLAIN) -> CompiledModel:
    emit_live_c(graph, second=True).write(folder)
    return CompiledModel(folder / "model.c", graph.input_shape, int(np.prod(graph.shape_of(graph.output))), options)


def _deep(seed: int = 0) -> Graph:
    """A network of three layers whose intervals are wide, with a branch and an average."""
    b = Builder(np.random.default_rng(seed), 2, 6, 5)
    b.conv(4, pads=(1, 1, 1, 1), density=1.0)
    b.add(Relu)
    skip = b.last
    b.conv(4, (3, 3), pads=(1, 1, 1, 1), density=0.5)
    b.add(Add, b.last, skip)
    b.add(Relu)
    b.add(AveragePool, kernel=(2, 2), stride=(2, 1))
    b.flatten()
    b.gemm(9)
    b.add(Relu)
    b.gemm(4)
    return b.graph()


@pytest.mark.parametrize("options", [STRICT, NATIVE, SCALAR], ids=["strict", "native", "scalar"])
def test_verdicts_are_those_of_the_simulation_bit_by_bit(tmp_path: Path, options: tuple[str, ...]) -> None:
    more = 0
    for graph in list(networks())[:: 2 if options is STRICT else 4]:
        x = _samples(graph)
        with _compiled(graph, tmp_path, options) as model:
            live = CompiledLive(model)
            for epsilon in (0.0, 0.01, 0.05):
                both, alone = live.certify(x, epsilon, 9), live.certify(x, epsilon)
                _same(both, simulate_budget(graph, x, epsilon, 9))
                _same(alone, simulate_live(graph, x, epsilon))
                assert not (alone.certified & ~both.certified).any()
                assert (both.margin >= alone.margin).all()
                more += int((both.margin > alone.margin).sum())
    assert more > 0


# Groups, channels of each, kernel, stride, dilation: of a map of one element, with every kind of list of taps.
ONE_ELEMENT = [
    (2, 4, (2, 2), (1, 1), (2, 2)),
    (2, 8, (3, 2), (1, 1), (1, 1)),
    (2, 4, (3, 3), (2, 2), (1, 1)),
    (3, 4, (1, 1), (1, 1), (1, 1)),
    (2, 5, (2, 2), (1, 2), (1, 1)),
    (1, 8, (2, 2), (1, 1), (2, 2)),
]


@pytest.mark.parametrize(("groups", "each", "kernel", "stride", "dilation"), ONE_ELEMENT)
def test_filters_of_a_map_of_one_element_read_no_other_channel(tmp_path: Path, groups, each, kernel, stride, dilation) -> None:
    height, width = ((size - 1) * apart + 1 for size, apart in zip(kernel, dilation, strict=True))
    b = Builder(np.random.default_rng(0), 2 * groups, height, width)
    b.conv(groups * each, kernel, groups=groups, stride=stride, dilation=dilation)
    b.add(Relu)
    b.flatten()
    b.gemm(7)
    b.add(Relu)
    b.gemm(4)
    graph = b.graph()
    x = _samples(graph, 8)
    for options in (NATIVE, SCALAR):
        with _compiled(graph, tmp_path, options) as model:
            for epsilon in (0.02, 0.1):
                _same(CompiledLive(model).certify(x, epsilon, 9), simulate_budget(graph, x, epsilon, 9))


def test_the_functions_of_the_first_tier_stay_as_they_are(tmp_path: Path) -> None:
    graph = _deep()
    with_it, without = emit_live_c(graph, second=True), emit_live_c(graph)
    assert "budget" not in without.source + without.header
    assert "vs_trace" not in without.source
    assert "int vsparse_certify_in(" in with_it.header
    assert without.header.split("_LIVE_ARENA_FLOATS ")[1].split("\n")[0] == with_it.header.split("_LIVE_ARENA_FLOATS ")[1].split("\n")[0]
    assert "At worst it takes one inference,\n   one interval pass (that of vsparse_certify and one more" in with_it.header
    with _compiled(graph, tmp_path) as model:
        x = _samples(graph)
        for budget in (0, -3):
            _same(simulate_budget(graph, x, 0.02, budget), CompiledLive(model).certify(x, 0.02, budget))


def test_no_execution_breaks_a_verdict() -> None:
    tally = Tally()
    for seed, kind in enumerate(("plain", "cancel", "subnormal")):
        _attack(np.random.default_rng(seed), random_net(np.random.default_rng(seed), kind), tally, samples=1)
    assert not tally.broken
    assert tally.executions > 3000
    assert tally.certified > 5


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 200, 20))
def test_two_hundred_networks_hold(start: int) -> None:
    tally, kinds = Tally(), ("plain", "cancel", "scales", "subnormal", "tie")
    for seed in range(start, start + 20):
        _attack(np.random.default_rng(seed), random_net(np.random.default_rng(seed), kinds[seed % 5]), tally, samples=2)
    assert not tally.broken
    assert tally.certified > 20


def _attack(rng: np.random.Generator, graph: Graph, tally: Tally, samples: int) -> None:
    """Attacks verdicts beyond what intervals certify, of the C with and without fused operations."""
    x = _samples(graph, samples)
    with tempfile.TemporaryDirectory() as name, _compiled(graph, Path(name)) as plain, _compiled(graph, Path(name), FUSED) as fused:
        lives = [CompiledLive(plain), CompiledLive(fused)]
        tally.nets += 1
        for i, radius in enumerate(lives[0].radius(x).tolist()):
            own = x[i : i + 1]
            for factor in (1.0, 1.2, 1.6, 3.0):
                epsilon = min(1.0, factor * max(radius, 1e-3))
                verdicts = [live.certify(own, epsilon, 9) for live in lives]
                with flushed():
                    verdicts.append(lives[1].certify(own, epsilon, 9))
                points = points_of(rng, graph, own, epsilon, int(max(verdicts[0].label[0], 0)))
                found = [simulate(graph, points)[graph.output].reshape(len(points), -1), fused.logits(points)]
                with flushed():
                    found.append(fused.logits(points))
                for verdict in verdicts:
                    judge_verdict(tally, verdict, found, epsilon)


@pytest.mark.parametrize("seed", range(4))
def test_each_margin_is_at_most_that_of_the_host_and_hardly_less(seed: int) -> None:
    graph = _deep(seed)
    x = _samples(graph, 2)
    label = simulate(graph, x)[graph.output].reshape(len(x), -1).argmax(axis=1)
    rounding, epsilon = Rounding(graph, CONTRACTS["sequential"]), np.float32(0.03)
    box = ball(torch.from_numpy(x), Fraction(float(epsilon)), (0.0, 1.0))
    boxes = interval(graph, rounding.params, box, rounding)
    rows = margin_rows(torch.from_numpy(label), 4)
    folded = last_layer_folding(graph, rounding.params, rows, boxes, rounding).numpy()
    linear = crown(graph, rounding.params, box, rows, boxes, rounding).numpy()
    for i in range(len(x)):
        kept = Kept(graph, x[i : i + 1], epsilon, (0.0, 1.0))
        for row, other in enumerate(j for j in range(4) if j != label[i]):
            for whole, host in ((False, folded[i, row]), (True, linear[i, row])):
                found = float(Pass(kept, int(label[i]), other).bound(whole))
                assert found <= host
                assert found >= host - 5e-3 * (1 + abs(host))


def test_a_pass_by_hand() -> None:
    """ReLU(x − ½) on [0, 1]: the chord x/2 bounds it from above, 0 from below; 0.6 − ReLU(x − ½) >= 0.6 − ½ by it, and exactly 0.1."""
    nodes = (
        Gemm(name="a", inputs=("x",), shape=(1,), weight="w", bias="b"),
        Relu(name="r", inputs=("a",), shape=(1,)),
        Gemm(name="z", inputs=("r",), shape=(2,), weight="v", bias="c"),
    )
    params = {"w": [[1]], "b": [-0.5], "v": [[0], [1]], "c": [0.6, 0]}
    graph = Graph("x", (1,), nodes, "z", {name: np.array(value, np.float32) for name, value in params.items()})
    kept = Kept(graph, np.array([[0.5]], np.float32), np.float32(0.5), (0.0, 1.0))
    assert [plan_of(graph).stop, plan_of(graph).head] == ["r", 1]
    for whole in (False, True):
        assert 0.0999 < Pass(kept, 0, 1).bound(whole) < np.float32(0.1)
    assert kept.flat("slope r")[0] >= 0.5


def test_a_budget_below_the_open_margins_spends_nothing(tmp_path: Path) -> None:
    graph = _deep(1)
    x = _samples(graph, 6)
    epsilon = next(e for e in np.linspace(0.005, 0.2, 40) if (_open(graph, x, float(e)) > 1).any())
    opened = _open(graph, x, float(epsilon))
    with _compiled(graph, tmp_path) as model:
        live = CompiledLive(model)
        for budget in (1, 2, 3):
            found = live.certify(x, float(epsilon), budget)
            _same(found, simulate_budget(graph, x, float(epsilon), budget))
            assert not found.certified[opened > budget].any()


def _open(graph: Graph, x: np.ndarray, epsilon: float) -> np.ndarray:
    label, classes = simulate_live(graph, x, 0.0).label, int(np.prod(graph.shape_of(graph.output)))
    found = []
    for i in range(len(x)):
        kept = Kept(graph, x[i : i + 1], np.float32(epsilon), (0.0, 1.0))
        found.append(sum(not Pass(kept, int(label[i]), j).bound(False) > 0 for j in range(classes) if j != label[i]))
    return np.array(found)


@pytest.mark.parametrize("epsilon", [-1e-9, float("nan"), float("inf"), 1.0000001])
def test_no_radius_outside_of_the_range_certifies(tmp_path: Path, epsilon: float) -> None:
    graph = _deep()
    with _compiled(graph, tmp_path) as model:
        verdict = CompiledLive(model).certify(_samples(graph, 1), epsilon, 3)
    assert (verdict.certified[0], verdict.margin[0]) == (False, UNKNOWN)


def test_no_input_outside_of_the_range_certifies(tmp_path: Path) -> None:
    graph = _deep()
    x = np.full((5, *graph.input_shape), 0.5, np.float32)
    x[:, 0, 0, 0] = [np.nan, np.inf, -np.inf, 1.0000001, -1e-30]
    with _compiled(graph, tmp_path) as model:
        verdict = CompiledLive(model).certify(x, 0.0, 3)
    assert not verdict.certified.any()
    assert (verdict.margin == UNKNOWN).all()


def test_coefficients_that_overflow_certify_nothing(tmp_path: Path) -> None:
    """Weights of 2^38 in five layers give coefficients beyond float32, while a dead layer keeps every activation small."""
    b = Builder(np.random.default_rng(0), 3)
    for _ in range(4):
        b.gemm(3)
        b.add(Relu)
    b.gemm(2)
    graph = b.graph()
    for name, value in graph.params.items():
        graph.params[name] = np.full_like(value, 2.0**38 if value.ndim == 2 else -(2.0**39))
    x = np.full((1, 3), 0.5, np.float32)
    with _compiled(graph, tmp_path) as model:
        _same(CompiledLive(model).certify(x, 0.5, 1), simulate_budget(graph, x, 0.5, 1))
        assert not CompiledLive(model).certify(x, 0.5, 1).certified[0]


def test_a_pool_of_maxima_passes_its_best_element(tmp_path: Path) -> None:
    b = Builder(np.random.default_rng(3), 2, 6, 6)
    b.conv(4, pads=(1, 1, 1, 1))
    b.add(Relu)
    b.add(MaxPool, kernel=(2, 2), stride=(2, 2))
    b.conv(3, (2, 2))
    b.add(Relu)
    b.flatten()
    b.gemm(3)
    graph = b.graph()
    plan = plan_of(graph)
    assert any(isinstance(node, MaxPool) for node in plan.walk)
    assert plan.ends == (plan.stop, "x")
    x = _samples(graph)
    with _compiled(graph, tmp_path) as model:
        for epsilon in (0.01, 0.05):
            _same(CompiledLive(model).certify(x, epsilon, 2), simulate_budget(graph, x, epsilon, 2))


def test_a_small_arena_does_nothing_and_nothing_is_undefined(tmp_path: Path, compiler: str) -> None:
    emit_live_c(_deep(), prefix="net", second=True).write(tmp_path)
    main = """#include "model.h"
#include <stdlib.h>
enum { FLOATS = NET_BACKWARD_ARENA_FLOATS + EXTRA };
int main(void) {
    float *x = calloc(NET_INPUTS, 4), *a = malloc(4 * FLOATS), *b = malloc(4 * FLOATS);
    struct net_verdict v, w;
    for (int i = 0; i < NET_INPUTS; i++) x[i] = (float)(i % 7) / 7.0f;
    if (net_certify_budget_in(a, 99, x, 0.0f, 1, &v) != -1 || v.certified || v.label != -1) return 1;
    for (int i = 0; i < FLOATS; i++) b[i] = 1e30f;
    for (int k = 0; k < 8; k++) {
        const float e = 0.02f * (float)k;
        if (net_certify_budget_in(a, FLOATS, x, e, 3, &v)) return 2;
        if (net_certify_budget_in(b, FLOATS, x, e, 3, &w)) return 3;
        if (v.label != w.label || v.certified != w.certified || v.margin != w.margin) return 4;
    }
    return v.label == net_classify_in(a, NET_ARENA_FLOATS, x) ? 0 : 5;
}
"""
    (tmp_path / "main.c").write_text(main)
    checked = ["-O1", "-std=c99", "-DNET_NO_STATIC_ARENA", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    for more in ((), ("-U__GNUC__",)):  # with vectors and without
        for command in (
            [*checked, *more, "-c", "model.c"],
            [*checked, f"-DEXTRA={0 if not more else 4096}", "model.o", "main.c", "-o", "m"],
        ):
            built = subprocess.run([compiler, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
            if built.returncode and "san" in built.stderr:
                pytest.skip("this compiler has no sanitizers")
            assert built.returncode == 0, built.stderr[:2000]
        done = subprocess.run([tmp_path / "m"], capture_output=True, text=True, check=False, env={"ASAN_OPTIONS": "detect_leaks=0"})
        assert done.returncode == 0, done.stderr[:2000]


def test_what_has_no_interval_form_has_no_second_tier() -> None:
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(3)
    b.add(Tanh)
    b.gemm(2)
    with pytest.raises(InputError, match='"n1" is a Tanh'):
        emit_live_c(b.graph(), second=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["deploy.live_budget=3"], "set deploy.live = true"),
        (["deploy.live=true", "deploy.live_budget=-1"], "live_budget"),
    ],
)
def test_a_budget_that_nothing_can_spend_is_refused_by_name(settings: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_recipe("digits", ['export.precisions=["int8"]', *settings])


@pytest.mark.slow
@pytest.mark.parametrize("board", ["cortex-m3", "cortex-m4f", "cortex-m7"])
def test_microcontrollers_have_the_same_bits(tmp_path: Path, board: str) -> None:
    try:
        find_cross_compiler()
        find_emulator()
    except UnavailableError as error:
        pytest.skip(str(error))
    graph = _deep()
    x = _samples(graph, 4)
    emit_live_c(graph, second=True).write(tmp_path)
    call = "struct vsparse_verdict v; (void)vsparse_certify_budget(x, 0.02f, 3, &v); y[0] = v.label, y[1] = v.certified, y[2] = v.margin;"
    (tmp_path / "wrap.c").write_text(f'#include "model.h"\nvoid certify(const float *x, float *y)\n{{ {call} }}\n')
    found = emulate(BOARDS[board], [tmp_path / "model.c", tmp_path / "wrap.c"], x, 3, "certify").logits
    stated = simulate_budget(graph, x, 0.02, 3)
    np.testing.assert_array_equal(found, np.stack([stated.label, stated.certified, stated.margin], axis=1).astype(np.float32))
