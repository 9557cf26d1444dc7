"""The live certificate in C: the bits of its simulation, nothing certified that an execution breaks, and what it refuses."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from c_nets import Builder, networks
from live_attack import Tally, attack_float, attack_int8, quantised_net, random_net

from vsparse.bounds import Rounding, interval
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError, UnavailableError
from vsparse.graph import Conv, Gemm, Graph, Relu
from vsparse.graph.ir import Tanh
from vsparse.stages.export.c_live import (
    CompiledLive,
    emit_live_c,
    emit_live_int8_c,
    require_live_form,
    simulate_live,
    simulate_live_int8,
    simulate_radius,
)
from vsparse.stages.export.c_live.simulation import UNKNOWN, bounds
from vsparse.stages.export.c_source import CompiledModel, emit_c, find_compiler
from vsparse.stages.export.c_source.costs import COSTS
from vsparse.stages.export.c_source.layers import GemmKernels
from vsparse.stages.export.c_source.literals import float_literals
from vsparse.stages.export.c_source.selection import select_kernels
from vsparse.stages.export.firmware import BOARDS, emulate
from vsparse.stages.export.firmware.emulate import find_emulator
from vsparse.stages.export.firmware.link import find_cross_compiler
from vsparse.stages.export.quantise import quantise

PLAIN = ("-O1", "-std=c99", "-ffp-contract=off")
STRICT = (*PLAIN, "-Wall", "-Wextra", "-Werror", "-pedantic")
NATIVE = ("-O3", "-std=c99", "-ffp-contract=off", "-march=native")
SCALAR = ("-O1", "-std=c99", "-ffp-contract=off", "-U__GNUC__")
RADII = (0.0, 1e-4, 0.01, 0.3, 1.0)


@pytest.fixture(autouse=True)
def compiler() -> str:
    try:
        return find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))


def _same(found, stated) -> None:
    for name in ("label", "certified", "margin"):
        np.testing.assert_array_equal(getattr(found, name), getattr(stated, name), name)


def _samples(graph: Graph, count: int = 4) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.random((count, *graph.input_shape), dtype=np.float32)
    return np.where(rng.random(x.shape) < 0.3, np.round(x), x).astype(np.float32)


def _dense(weight: np.ndarray, bias: np.ndarray | None = None) -> Graph:
    params = {"w": np.asarray(weight, np.float32), **({} if bias is None else {"b": np.asarray(bias, np.float32)})}
    node = Gemm(name="g", inputs=("x",), shape=(len(weight),), weight="w", bias=None if bias is None else "b")
    return Graph(input="x", input_shape=(np.shape(weight)[1],), nodes=(node,), output="g", params=params)


@pytest.mark.parametrize("options", [STRICT, NATIVE, SCALAR], ids=["strict", "native", "scalar"])
def test_float32_verdicts_are_those_of_the_simulation_bit_by_bit(tmp_path: Path, options: tuple[str, ...]) -> None:
    for graph in list(networks())[:: 1 if options is STRICT else 3]:
        x = _samples(graph)
        emit_live_c(graph).write(tmp_path)
        with CompiledModel(tmp_path / "model.c", graph.input_shape, int(np.prod(graph.shape_of(graph.output))), options) as model:
            live = CompiledLive(model)
            for epsilon in RADII:
                _same(live.certify(x, epsilon), simulate_live(graph, x, epsilon))
            radius = live.radius(x[:2])
            np.testing.assert_array_equal(radius, simulate_radius(graph, x[:2]))
            for i, found in enumerate(radius):
                assert live.certify(x[i : i + 1], float(found)).certified[0] == (found >= 0)


@pytest.mark.parametrize("options", [STRICT, NATIVE, SCALAR], ids=["strict", "native", "scalar"])
def test_last_layers_of_every_form_have_the_bits_of_the_simulation(tmp_path: Path, options: tuple[str, ...]) -> None:
    """All classes in one table, in several, in lists, and each with its own: margins read the rows of the last layer where they are."""
    forms = set()
    for classes, density in ((7, 1.0), (70, 1.0), (7, 0.5), (70, 0.5), (70, 0.03), (150, 0.02)):
        rng = np.random.default_rng(classes)
        b = Builder(rng, 40)
        b.gemm(65, density=0.6)
        b.add(Relu)
        b.gemm(classes)
        graph = b.graph()
        last = graph.nodes[-1]
        assert isinstance(last, Gemm)
        weight = graph.params[last.weight]
        kept = rng.random(weight.shape) < density
        if density == 0.5:
            kept[:, rng.random(weight.shape[1]) < 0.5] = False
        graph.params[last.weight] = np.where(kept, weight, 0).astype(np.float32)
        kernels = select_kernels(graph, COSTS)[last.name]
        assert isinstance(kernels, GemmKernels)
        forms.add((kernels.form, classes > kernels.block))
        x = _samples(graph, 3)
        emit_live_c(graph).write(tmp_path)
        with CompiledModel(tmp_path / "model.c", graph.input_shape, classes, options) as model:
            for epsilon in (0.0, 0.01, 1.0):
                _same(CompiledLive(model).certify(x, epsilon), simulate_live(graph, x, epsilon))
    assert {("dense", False), ("dense", True), ("listed", False), ("sparse", True)} <= forms, forms


@pytest.mark.parametrize("options", [STRICT, NATIVE], ids=["strict", "native"])
def test_int8_verdicts_are_those_of_the_simulation_bit_by_bit(tmp_path: Path, options: tuple[str, ...]) -> None:
    made = 0
    for seed in range(3):
        graph = quantised_net(np.random.default_rng(seed), "plain")
        if graph is None:
            continue
        made += 1
        x = _samples(graph)
        emit_live_int8_c(graph).write(tmp_path)
        source = tmp_path / "model.int8.c"
        with CompiledModel(source, graph.input_shape, int(np.prod(graph.shape_of(graph.output))), options, "vsparse_int8") as model:
            for epsilon in RADII:
                _same(CompiledLive(model, "vsparse_int8").certify(x, epsilon), simulate_live_int8(graph, x, epsilon))
    assert made >= 2


def test_nothing_else_changes_in_the_files_of_a_network_without_it() -> None:
    graph = next(networks())
    plain, live = emit_c(graph), emit_live_c(graph)
    assert "certify" not in plain.source + plain.header
    network = plain.source.index("VS_ONCE static void vs_network(")
    assert plain.source[network : plain.source.index("#else", network)].strip() in live.source


@pytest.mark.parametrize("kind", ["plain", "cancel", "subnormal"])
def test_no_execution_breaks_a_float32_verdict(kind: str) -> None:
    tally = Tally()
    attack_float(np.random.default_rng(7), random_net(np.random.default_rng(7), kind), tally, samples=1)
    assert not tally.broken
    assert tally.executions > 1000


def test_no_execution_breaks_an_int8_verdict() -> None:
    tally, rng = Tally(), np.random.default_rng(1)
    while tally.nets < 1:
        graph = quantised_net(rng, "plain")
        if graph is not None:
            attack_int8(rng, graph, tally, samples=1)
    assert not tally.broken
    assert tally.executions > 500


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 200, 20))
def test_two_hundred_networks_hold(start: int) -> None:
    tally, kinds = Tally(), ("plain", "cancel", "scales", "subnormal", "tie")
    for seed in range(start, start + 20):
        rng, kind = np.random.default_rng(seed), kinds[seed % 5]
        attack_float(rng, random_net(rng, kind), tally)
        graph = quantised_net(rng, kind)
        if graph is not None:
            attack_int8(rng, graph, tally)
    assert not tally.broken
    assert tally.certified > 100


def test_the_bounds_hold_those_of_float64_under_the_same_contract() -> None:
    """What the device certifies its host does: every live interval encloses the float64 interval, and is hardly wider."""
    for graph in networks():
        x = _samples(graph, 2)
        boxes, beyond = bounds(graph, x, np.float32(0.01), (0.0, 1.0))
        assert not beyond.any()
        rounding = Rounding(graph, CONTRACTS["sequential"])
        wide = torch.tensor(x).double()
        host = interval(graph, rounding.params, ((wide - 0.01).clamp(0, 1), (wide + 0.01).clamp(0, 1)), rounding)
        stored = {node.name: node.name for node in graph.nodes}
        for node in graph.nodes:  # an operator whose ReLU is applied at once is stored after it
            if isinstance(node, Relu) and boxes[node.inputs[0]][0] is boxes[node.name][0]:
                del stored[node.inputs[0]]
        for name in stored:
            if not np.isfinite(boxes[name][1]).all():
                continue  # the folded layer has no radius
            c, r = (one.astype(np.float64) for one in boxes[name])
            lower, upper = (end.numpy() for end in host[name])
            # ReLU of [l, u] is stored as [0, 2h]: both ends may be equal.
            assert (c - r <= lower + 1e-30).all(), name
            assert (c + r >= upper - 1e-30).all(), name
            assert (2 * r - (upper - lower)).max() <= 0.01 * (1 + np.abs(upper).max()), name


def test_cancellation_is_paid_for(tmp_path: Path) -> None:
    """2^24·x + x' − 2^24·x is 1·x' in real arithmetic, and on a device 0 or 2: nothing near zero may be certified."""
    graph = _dense([[2.0**24, 1, -(2.0**24)], [0, 0, 0]], [0, 0.4])
    x = np.ones((1, 3), np.float32)
    verdict = simulate_live(graph, x, 0.0)
    assert not verdict.certified[0]
    assert verdict.margin[0] < -1
    assert simulate_live(_dense([[2.0**24, 1, 1], [0, 0, 0]], [0, 0.4]), x, 0.0).certified[0]


def test_ties_huge_and_subnormal_weights_and_inputs(tmp_path: Path) -> None:
    x = np.full((1, 2), 0.5, np.float32)
    tie = simulate_live(_dense([[1, 2], [1, 2]]), x, 0.0)
    assert (tie.label[0], tie.certified[0]) == (0, False)
    assert tie.margin[0] <= 0
    with pytest.raises(InputError, match=r'"g".*2\^40'):
        emit_live_c(_dense([[1e13, 1], [0, 1]]))
    assert not simulate_live(_dense([[1e-40, 0], [0, 0]]), x, 0.1).certified[0]  # a device may read it as zero
    near = simulate_live(_dense([[2.0**39, 0], [0, 2.0**38]]), x, 0.1)
    assert near.certified[0]


@pytest.mark.parametrize("epsilon", [-1e-9, float("nan"), float("inf"), 1.0000001])
def test_no_radius_outside_of_the_range_certifies(tmp_path: Path, epsilon: float) -> None:
    graph = _dense([[9, 9], [0, 0]], [5, 0])
    emit_live_c(graph).write(tmp_path)
    with CompiledModel(tmp_path / "model.c", (2,), 2) as model:
        verdict = CompiledLive(model).certify(np.full((1, 2), 0.5, np.float32), epsilon)
    assert (verdict.label[0], verdict.certified[0], verdict.margin[0]) == (0, False, UNKNOWN)


def test_no_input_outside_of_the_range_certifies(tmp_path: Path) -> None:
    graph = _dense([[9, 9], [0, 0]], [5, 0])
    emit_live_c(graph).write(tmp_path)
    bad = [[np.nan, 0.5], [np.inf, 0.5], [-np.inf, 0.5], [1.0000001, 0.5], [-1e-30, 0.5], [3e38, 3e38]]
    with CompiledModel(tmp_path / "model.c", (2,), 2) as model:
        live = CompiledLive(model)
        verdict = live.certify(np.array([*bad, [-0.0, 1.0]], np.float32), 0.0)
        assert verdict.certified.tolist() == [False] * 6 + [True]
        assert verdict.label.tolist() == [-1, -1, -1, 0, 0, -1, 0]
        assert live.radius(np.array(bad, np.float32)).tolist() == [-1] * 6


def test_a_small_arena_does_nothing_and_calls_do_not_meet(tmp_path: Path, compiler: str) -> None:
    b = Builder(np.random.default_rng(0), 2, 6, 5)
    b.conv(5, pads=(1, 1, 1, 1), density=0.5)
    b.add(Relu)
    b.flatten()
    b.gemm(3)
    graph = b.graph()
    emit_live_c(graph, prefix="net").write(tmp_path)
    main = """#include "model.h"
#include <stdlib.h>
int main(void) {
    float *x = calloc(NET_INPUTS, 4), *a = malloc(4 * NET_LIVE_ARENA_FLOATS), *b = malloc(4 * NET_LIVE_ARENA_FLOATS);
    struct net_verdict v, w;
    if (net_certify_in(a, NET_LIVE_ARENA_FLOATS - 1, x, 0.0f, &v) != -1 || v.certified || v.label != -1) return 1;
    if (net_radius_in(a, NET_LIVE_ARENA_FLOATS - 1, x) != -1.0f) return 2;
    for (int i = 0; i < NET_LIVE_ARENA_FLOATS; i++) b[i] = 1e30f;
    if (net_certify_in(a, NET_LIVE_ARENA_FLOATS, x, 0.01f, &v) || net_certify_in(b, NET_LIVE_ARENA_FLOATS, x, 0.01f, &w)) return 3;
    if (v.label != w.label || v.certified != w.certified || v.margin != w.margin) return 4;
    return v.label == net_classify_in(a, NET_ARENA_FLOATS, x) ? 0 : 5;
}
"""
    (tmp_path / "main.c").write_text(main)
    options = ["-O1", "-std=c99", "-DNET_NO_STATIC_ARENA", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = subprocess.run([compiler, *options, "model.c", "main.c", "-o", "m"], cwd=tmp_path, capture_output=True, text=True, check=False)
    if built.returncode and "san" in built.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert built.returncode == 0, built.stderr[:2000]
    done = subprocess.run([tmp_path / "m"], capture_output=True, text=True, check=False, env={"ASAN_OPTIONS": "detect_leaks=0"})
    assert done.returncode == 0, done.stderr[:2000]


def test_what_has_no_interval_form_is_refused_by_name() -> None:
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(3)
    b.add(Tanh)
    b.gemm(2)
    with pytest.raises(InputError, match='"n1" is a Tanh, which has no interval form'):
        require_live_form(b.graph(), (0.0, 1.0))
    with pytest.raises(InputError, match="data range"):
        emit_live_c(_dense([[1, 0], [0, 1]]), data_range=(1.0, 0.0))
    with pytest.raises(InputError, match="no classes"):
        emit_live_c(_dense([[1, 0]]))
    b = Builder(np.random.default_rng(0), 2, 5, 5)
    b.conv(3)
    graph = quantise(b.graph(), np.random.default_rng(0).random((16, 2, 5, 5), dtype=np.float32))
    assert isinstance(graph.nodes[-1], Conv)
    with pytest.raises(InputError, match="fully connected layer"):
        emit_live_int8_c(graph)


def test_the_verdict_is_the_struct_that_the_header_declares() -> None:
    header = emit_live_c(next(networks()), prefix="net").header
    assert "struct net_verdict {\n    int label;\n    int certified;\n    float margin;\n};" in header
    assert ctypes.sizeof(ctypes.c_int) == 4


@pytest.mark.slow
@pytest.mark.parametrize("board", ["cortex-m3", "cortex-m4f", "cortex-m7", "cortex-m55"])
def test_microcontrollers_have_the_same_bits(tmp_path: Path, board: str) -> None:
    try:
        find_cross_compiler()
        find_emulator()
    except UnavailableError as error:
        pytest.skip(str(error))
    for quantised in (False, True):
        graph = quantised_net(np.random.default_rng(2), "plain") if quantised else next(networks())
        assert graph is not None
        x, name, stem = _samples(graph), "vsparse_int8" if quantised else "vsparse", "model.int8" if quantised else "model"
        (emit_live_int8_c if quantised else emit_live_c)(graph).write(tmp_path)
        for epsilon in (0.0, 2.0**-7):
            call = (
                f"struct {name}_verdict v; (void){name}_certify(x, {epsilon!r}f, &v); y[0] = v.label, y[1] = v.certified, y[2] = v.margin;"
            )
            (tmp_path / "wrap.c").write_text(f'#include "{stem}.h"\nvoid certify(const float *x, float *y)\n{{ {call} }}\n')
            found = emulate(BOARDS[board], [tmp_path / f"{stem}.c", tmp_path / "wrap.c"], x, 3, "certify").logits
            stated = (simulate_live_int8 if quantised else simulate_live)(graph, x, epsilon)
            np.testing.assert_array_equal(found, np.stack([stated.label, stated.certified, stated.margin], axis=1).astype(np.float32))


@pytest.mark.slow
def test_aarch64_and_clang_have_the_same_bits(tmp_path: Path) -> None:
    compilers = [one for one in ("clang", "aarch64-linux-gnu-gcc") if shutil.which(one)]
    if not compilers:
        pytest.skip("neither clang nor a compiler for aarch64 is on the path")
    for graph in networks():
        x, classes = _samples(graph), int(np.prod(graph.shape_of(graph.output)))
        emit_live_c(graph).write(tmp_path)
        stated = simulate_live(graph, x, 0.01)
        values = ",".join(float_literals(x))
        lines = f"static const float x[{len(x)}][VSPARSE_INPUTS] = {{{values}}};"
        loop = f"for (int i = 0; i < {len(x)}; i++) {{ vsparse_certify(x[i], 0.01f, &v); memcpy(&bits, &v.margin, 4);"
        text = '#include "model.h"\n#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n'
        text += f"{lines}\nint main(void) {{ struct vsparse_verdict v; uint32_t bits; {loop}"
        (tmp_path / "main.c").write_text(text + ' printf("%d %d %08x\\n", v.label, v.certified, (unsigned)bits); } return 0; }\n')
        for one in compilers:
            emulator = [] if one == "clang" else [shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static") or ""]
            if emulator == [""]:
                continue
            options = ["-O3", "-std=c99", "-ffp-contract=off", *(["-static"] if emulator else [])]
            subprocess.run([one, *options, "model.c", "main.c", "-o", "m"], cwd=tmp_path, check=True, capture_output=True)
            said = subprocess.run([*emulator, "./m"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()
            bits = stated.margin.view(np.uint32)
            assert said == [word for i in range(len(x)) for word in (str(stated.label[i]), str(int(stated.certified[i])), f"{bits[i]:08x}")]
        assert classes > 1
