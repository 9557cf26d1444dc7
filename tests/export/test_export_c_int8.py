"""The quantised network as C: the bits of its simulation everywhere, roundings that the contract allows, and what it refuses."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from c_nets import Builder, networks

from vsparse.bounds import Rounding, interval
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError, UnavailableError
from vsparse.graph import Add, AveragePool, Conv, FakeQuant, Gemm, Graph, MaxPool, Relu, Reshape, validate
from vsparse.graph.ir import QuantisedParameter, Sigmoid
from vsparse.stages.export.c_int8 import emit_int8_c, simulate_integers, sums
from vsparse.stages.export.c_int8.text import _KERNELS
from vsparse.stages.export.c_source import CompiledModel, find_compiler
from vsparse.stages.export.c_source.text import kernel_text
from vsparse.stages.export.firmware import BOARDS, emulate, footprint
from vsparse.stages.export.firmware.emulate import find_emulator
from vsparse.stages.export.firmware.link import OPTIONS, find_cross_compiler
from vsparse.stages.export.quantise import quantise

STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Werror")


@pytest.fixture(autouse=True)
def compiler() -> str:
    try:
        return find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def tools() -> None:
    try:
        find_cross_compiler()
        find_emulator()
    except UnavailableError as error:
        pytest.skip(str(error))


def _quantised(graph: Graph, seed: int = 0) -> Graph:
    return quantise(graph, np.random.default_rng(seed).normal(size=(16, *graph.input_shape)).astype(np.float32))


def _points(graph: Graph, count: int) -> np.ndarray:
    """Inputs of which some leave every grid."""
    rng = np.random.default_rng(1)
    return (rng.normal(size=(count, *graph.input_shape)) * rng.choice([0.3, 1, 4], size=(count, *[1] * len(graph.input_shape)))).astype(
        np.float32
    )


def _logits(graph: Graph, x: np.ndarray, folder: Path, *options: str) -> np.ndarray:
    emit_int8_c(graph).write(folder)
    classes = int(np.prod(graph.shape_of(graph.output)))
    source = folder / "model.int8.c"
    with CompiledModel(source, graph.input_shape, classes, (*options, "-std=c99", "-ffp-contract=off"), "vsparse_int8") as compiled:
        return compiled.logits(x)


def _residual(rng: np.random.Generator) -> Graph:
    """A residual net of maps: depthwise, dilated, pooled both ways, and a rest of one channel and one position."""
    b = Builder(rng, 3, 9, 7)
    skip = b.conv(8, pads=(1, 1, 1, 1))
    b.conv(8, groups=8, pads=(1, 1, 1, 1))
    b.add(Relu)
    b.conv(8, (3, 2), dilation=(2, 2), pads=(2, 1, 2, 1), density=0.3)
    b.add(Add, b.last, skip)
    b.add(Relu)
    b.add(MaxPool, kernel=(2, 2), stride=(2, 2), pads=(0, 0, 0, 0))
    b.conv(8, (1, 1), groups=2)
    b.add(Relu)
    b.add(AveragePool, kernel=(4, 3), stride=(1, 1))
    b.flatten()
    b.gemm(1)
    b.gemm(4)
    return b.graph()


def _graphs() -> list[Graph]:
    rng = np.random.default_rng(5)
    b = Builder(rng, 2000)  # gaps of more than 255 inputs, and of more than 2 · 255
    b.gemm(7, density=0.002)
    b.add(Relu)
    b.gemm(3)
    return [*networks(), _residual(rng), b.graph()]


@pytest.mark.parametrize(
    "options", [("-O0", *STRICT), ("-O2", "-fsanitize=undefined", "-fno-sanitize-recover=all"), ("-O3", "-march=native")]
)
def test_every_operator_has_the_bits_of_the_integers(tmp_path: Path, options: tuple[str, ...]) -> None:
    for graph in map(_quantised, _graphs()):
        x = _points(graph, 40)
        np.testing.assert_array_equal(_logits(graph, x, tmp_path, *options), simulate_integers(graph, x))


@pytest.mark.slow
def test_every_compiler_gives_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    for seed in range(12):
        b = Builder(rng, int(rng.integers(1, 5)), int(rng.integers(5, 9)), int(rng.integers(5, 9)))
        for _ in range(3):
            kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
            pads = tuple(int(v) for v in rng.integers(0, 2, size=4))
            stride = (int(rng.integers(1, 3)), 1)
            b.conv(int(rng.integers(1, 9)), kernel, stride=stride, pads=pads, density=float(rng.choice([0.05, 0.4, 1])))
            b.add(Relu)
        b.flatten()
        b.gemm(int(rng.integers(1, 9)), density=0.5)
        b.gemm(5)
        graph = _quantised(b.graph(), seed)
        x = _points(graph, 50)
        expected = simulate_integers(graph, x)
        for options in (("-O0",), ("-O2",), ("-Os",), ("-O3", "-march=native")):
            np.testing.assert_array_equal(_logits(graph, x, tmp_path, *options), expected)
        for name in ("clang", "gcc"):
            if shutil.which(name):
                subprocess.run(
                    [
                        name,
                        "-O2",
                        "-std=c99",
                        "-ffp-contract=off",
                        *STRICT,
                        "-c",
                        str(tmp_path / "model.int8.c"),
                        "-o",
                        str(tmp_path / "o"),
                    ],
                    check=True,
                )


def test_layers_in_float32_and_a_quantised_output(tmp_path: Path) -> None:
    b = Builder(np.random.default_rng(2), 3, 6, 5)
    b.conv(4, stride=(2, 1), pads=(1, 1, 0, 1), dilation=(1, 2))
    b.add(Relu)
    b.conv(3, (2, 2), groups=1)
    b.flatten()
    b.gemm(4)
    whole = b.graph()
    graph = _quantised(whole)
    first = next(node for node in graph.nodes if isinstance(node, Conv))
    nodes = [replace(node, inputs=("x",), weight="p0", bias="p1") if node is first else node for node in graph.nodes[1:]]
    end = FakeQuant(name="end", inputs=(graph.output,), shape=(4,), scale=0.25, zero_point=3, lowest=-128, highest=127)
    params = {**graph.params, "p0": whole.params["p0"], "p1": whole.params["p1"]}
    used = {name for node in nodes for name in node.params}
    params = {name: value for name, value in params.items() if name in used}
    integers = {name: value for name, value in graph.integers.items() if name in used and name not in ("p0", "p1")}
    mixed = validate(replace(graph, nodes=(*nodes, end), output="end", params=params, integers=integers))
    x = _points(mixed, 60)
    expected = simulate_integers(mixed, x)
    np.testing.assert_array_equal(_logits(mixed, x, tmp_path, "-O2"), expected)
    assert set(np.unique(expected / 0.25 % 1)) == {0}
    x[3, 0, 0, 0] = np.nan  # in front of a float32 layer
    assert np.isnan(_logits(mixed, x, tmp_path, "-O2")[3]).all()


def test_every_logit_lies_in_its_enclosure() -> None:
    """The bounds of the contract hold for the simulation, whose bits the C has: at points, where they are narrowest."""
    for graph in map(_quantised, _graphs()):
        x = _points(graph, 30)
        rounding = Rounding(graph, CONTRACTS["int8"])
        point = torch.from_numpy(x).double()
        lower, upper = interval(graph, rounding.params, (point, point), rounding)[graph.output]
        found = simulate_integers(graph, x).reshape(lower.shape)
        assert ((found >= lower.numpy()) & (found <= upper.numpy())).all()


def _one_product(s_x: float, s_w: float, s_y: float, weight: int, bias: int) -> Graph:
    """One input on a grid, one product, one rounding; and the steps as they are."""
    f = [float(np.float32(v)) for v in (s_x, s_w, s_y)]
    nodes = (
        FakeQuant(name="q", inputs=("x",), shape=(1,), scale=f[0], zero_point=100, lowest=0, highest=255),
        Gemm(name="g", inputs=("q",), shape=(1,), weight="w", bias="b"),
        FakeQuant(name="out", inputs=("g",), shape=(1,), scale=f[2], zero_point=7, lowest=-128, highest=127),
    )
    stored = {
        "w": QuantisedParameter(np.array([[weight]], np.int8), np.array([f[1]], np.float32)),
        "b": QuantisedParameter(np.array([bias], np.int32), np.array([np.float32(f[0]) * np.float32(f[1])], np.float32)),
    }
    params = {name: value.floats() for name, value in stored.items()}
    return validate(Graph(input="x", input_shape=(1,), nodes=nodes, output="out", params=params, integers=stored))


@pytest.mark.parametrize("reach", [1, 30, 40])
def test_one_rounding_is_one_that_the_contract_allows(tmp_path: Path, reach: int) -> None:
    """Against exact rational arithmetic (docs/numerics.md, sections 6.3, 7.2 and 7.3): near ties, at both ends, with scales at the rims."""
    rng = np.random.default_rng(reach)
    u, classes = Fraction(1, 2**24), 0
    for trial in range(12):
        s_x, s_w = (2.0 ** rng.uniform(-reach, reach) for _ in range(2))
        weight, bias = int(rng.integers(-64, 65)), int(rng.integers(-(2**20), 2**20)) if trial % 3 else 0
        s_y = float(np.clip(s_x * s_w * max(abs(weight), 1) * rng.choice([2.0, 2.0 / 255, 0.37, 1000.0, 2**-14]), 2.0**-40, 2.0**40))
        graph = _one_product(s_x, s_w, s_y, weight, bias)
        s_x, s_w, s_y = graph.nodes[0].scale, float(graph.integers["w"].scale[0]), graph.nodes[2].scale
        k = np.arange(-100, 156)
        x = (k.astype(np.float64) * s_x).astype(np.float32)[:, None]
        found = _logits(graph, x, tmp_path, "-O1")
        np.testing.assert_array_equal(found, simulate_integers(graph, x))
        for step, got in zip(k.tolist(), found[:, 0].tolist(), strict=True):
            exact = Fraction(s_x) * Fraction(s_w) * (weight * step + bias) / Fraction(s_y)
            slack = 11 * u * abs(exact) + 8 * u * (abs(exact) + 512)
            first, last = graph.nodes[2].steps
            ends = [max(first, min(last, round(exact + sign * slack))) for sign in (-1, 1)]
            q = Fraction(got) / Fraction(s_y)
            assert ends[0] <= round(q) <= ends[1]
            classes += ends[0] != ends[1]
    assert classes < 12 * len(k) / 2  # the contract leaves most of them no choice


def test_the_rounding_to_a_step_is_that_of_exact_arithmetic(tmp_path: Path) -> None:
    source = tmp_path / "steps.c"
    text = "#define VS_VECTORS 0\n" + kernel_text("prelude") + (_KERNELS / "prelude8.c").read_text(encoding="utf-8")
    text += "int far(float v, float l, float h, int f) { return vs_step(v, l, h, f); }\n"
    text += "int near(float v, int l, int f) { return vs_near(v, l, f); }\n"
    source.write_text(text)
    subprocess.run([find_compiler(), "-O2", "-shared", "-fPIC", "-Wno-unused", str(source), "-o", str(tmp_path / "s.so")], check=True)
    library = ctypes.CDLL(str(tmp_path / "s.so"))
    library.far.argtypes = [ctypes.c_float, ctypes.c_float, ctypes.c_float, ctypes.c_int]
    library.near.argtypes = [ctypes.c_float, ctypes.c_int, ctypes.c_int]
    halves = np.arange(-300, 300, dtype=np.float32) / 2
    around = np.concatenate([halves, np.nextafter(halves, np.float32(-9e9)), np.nextafter(halves, np.float32(9e9))])
    rims = np.array([2.0**22, -(2.0**22), 2.0**22 - 0.5, -(2.0**22) + 0.5, 1e-45, -1e-45, 0.0, -0.0], np.float32)
    far = np.array([np.inf, -np.inf, 3e38, -3e38, 2.0**31, -(2.0**31)], np.float32)
    for first in (-255, -128, -100, 0):
        for value in (*around.tolist(), *rims.tolist(), *far.tolist()):
            for low in {first, max(first, 0)}:
                exact = first + 255 if value == np.inf else low if value == -np.inf else round(Fraction(value))
                wanted = min(max(exact, low), first + 255) - first - 128
                assert library.far(value, low, first + 255, first) == wanted
                if abs(value) <= 2**22:
                    assert library.near(value, low - first - 128, first) == wanted


def test_values_without_a_small_bound_are_clamped_first(tmp_path: Path) -> None:
    graph = _one_product(1.0, 1.0, 2.0**-20, 64, 0)
    assert "vs_step((float)s0_0" in emit_int8_c(graph).source
    assert "vs_near((float)s0_0" in emit_int8_c(_one_product(1.0, 1.0, 1.0, 64, 0)).source
    x = np.arange(-120, 170, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(_logits(graph, x, tmp_path, "-O2"), simulate_integers(graph, x))


def test_what_is_not_a_number_stays_visible(tmp_path: Path) -> None:
    graph = _quantised(_residual(np.random.default_rng(0)))
    x = np.zeros((4, *graph.input_shape), np.float32)
    x[1, 0, 3, 3], x[2, 0, 0, 0] = np.nan, np.inf
    far = x[2:3].copy()
    far[far == np.inf] = 1e30
    found = _logits(graph, np.concatenate([x, far]), tmp_path, "-O2")
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2, 3]]).all()
    np.testing.assert_array_equal(found[2], found[4])  # an infinite input is the end of its grid
    with CompiledModel(tmp_path / "model.int8.c", graph.input_shape, 4, ("-O2",), "vsparse_int8") as compiled:
        pointer = ctypes.POINTER(ctypes.c_float)
        classes = [compiled.library.vsparse_int8_classify(row.ctypes.data_as(pointer)) for row in np.ascontiguousarray(x)]
        assert classes[1] == -1
        assert classes[0] == int(found[0].argmax())
        arena = np.zeros(1, np.float32)
        assert compiled.library.vsparse_int8_classify_in(arena.ctypes.data_as(pointer), 1, x[0].ctypes.data_as(pointer)) == -1


def test_lists_and_tiles_by_cost_and_both_lengths_of_a_way() -> None:
    b = Builder(np.random.default_rng(3), 4, 10, 10)
    b.conv(8, density=0.05)
    b.conv(8, density=1.0)
    text = emit_int8_c(_quantised(b.graph()))
    assert "n1_delta" in text.weights or "n2_delta" in text.weights
    assert text.weights.count("_delta[") == 1
    weight = np.zeros((2, 1000), np.int64)
    weight[0, [0, 300, 999]], weight[1, [999]] = (3, -4, 5), 6
    offsets = np.arange(1000)
    layer = sums.Layer(weight, *[np.zeros(2)] * 2, offsets, 0 * offsets, offsets, (1, 1), (0, 0), 1000, (1, 1), (0, 0), 0, 1, 0, 1.0)
    found = sums.lists_of(layer)
    assert found.kind == "uint16_t"  # 4 entries of three bytes, and with bytes 4 + 1 + 2 + 3 of two
    assert found.delta.tolist() == [0, 300, 699, 999]
    dense = sums.lists_of(replace(layer, weight=np.where(np.arange(1000) % 200 == 0, 1, 0)[None].repeat(2, axis=0)))
    assert dense.kind == "uint8_t"


def test_what_has_no_form_is_refused_by_name() -> None:
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(3)
    b.add(Sigmoid)
    with pytest.raises(InputError, match="Sigmoid"):
        emit_int8_c(b.graph())
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(3)
    with pytest.raises(InputError, match="no QuantizeLinear"):
        emit_int8_c(b.graph())
    with pytest.raises(InputError, match="int8"):
        emit_int8_c(quantise(b.graph(), np.ones((1, 4), np.float32), "int8-tensorrt"))
    with pytest.raises(InputError, match="no C identifier"):
        emit_int8_c(_quantised(b.graph()), prefix="1x")


def test_both_networks_in_one_program_with_one_arena(tmp_path: Path) -> None:
    graph = _quantised(_residual(np.random.default_rng(4)))
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(3)
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, net in ((one, graph), (other, _quantised(b.graph()))):
        folder.mkdir()
        emit_int8_c(net, prefix=folder.name).write(folder)
    (tmp_path / "main.c").write_text(
        '#include "one/model.int8.h"\n#include "other/model.int8.h"\n'
        "static float arena[ONE_INT8_ARENA_FLOATS + OTHER_INT8_ARENA_FLOATS], x[ONE_INT8_INPUTS + OTHER_INT8_INPUTS];\n"
        "int main(void) { return one_int8_classify_in(arena, sizeof arena / sizeof *arena, x) < 0 || "
        "other_int8_classify_in(arena, sizeof arena / sizeof *arena, x) < 0; }\n"
    )
    flags = ["-O1", "-std=c99", "-ffp-contract=off", "-DONE_INT8_NO_STATIC_ARENA"]
    files = [str(tmp_path / "main.c"), str(one / "model.int8.c"), str(other / "model.int8.c")]
    subprocess.run([find_compiler(), *flags, *files, "-o", str(tmp_path / "program")], check=True)
    assert subprocess.run([str(tmp_path / "program")], check=False).returncode == 0


def _digits(rng: np.random.Generator) -> Graph:
    b = Builder(rng, 1, 8, 8)
    b.conv(6, (4, 4), stride=(2, 2), pads=(1, 1, 1, 1))
    b.add(Relu)
    b.conv(13, (4, 4), stride=(2, 2), pads=(1, 1, 1, 1))
    b.add(Relu)
    b.flatten()
    b.gemm(40)
    b.add(Relu)
    b.gemm(10)
    return b.graph()


def _taken(graph: Graph, board: str, folder: Path, optimise: str) -> int:
    emit_int8_c(graph).write(folder)
    x = _points(graph, 2)
    expected = simulate_integers(graph, x)
    done = emulate(BOARDS[board], [folder / "model.int8.c"], x, expected.shape[1], "vsparse_int8_logits", (optimise, *OPTIONS[1:]))
    np.testing.assert_array_equal(done.logits, expected)
    return int(done.instructions.max())


@pytest.mark.parametrize(("board", "each"), [("cortex-m4f", 2.3), ("cortex-m55", 1.4)])
def test_firmware_has_the_same_bits_in_few_instructions(tools: None, tmp_path: Path, board: str, each: float) -> None:
    graph = _quantised(_digits(np.random.default_rng(0)))
    assert _taken(graph, board, tmp_path, "-O2") < each * 9_008  # instructions for each of its products, all else included
    taken = footprint(BOARDS[board].options, tmp_path / "model.int8.c", "vsparse_int8")
    memory = emit_int8_c(graph).memory
    assert abs(taken.constant_bytes - memory.constant_bytes) <= 100
    assert memory.arena_bytes <= taken.ram_bytes <= memory.arena_bytes + 16
    assert 0 < taken.stack_bytes < 600


def test_mnist_with_a_twentieth_of_its_weights_fits_a_small_processor(tools: None, tmp_path: Path) -> None:
    b = Builder(np.random.default_rng(0), 1, 28, 28)
    b.conv(16, (4, 4), stride=(2, 2), pads=(1, 1, 1, 1), density=0.05)
    b.add(Relu)
    b.conv(32, (4, 4), stride=(2, 2), pads=(1, 1, 1, 1), density=0.05)
    b.add(Relu)
    b.flatten()
    b.gemm(100, density=0.05)
    b.add(Relu)
    b.gemm(10, density=0.05)
    emit_int8_c(_quantised(b.graph())).write(tmp_path)
    taken = footprint(BOARDS["cortex-m4f"].options, tmp_path / "model.int8.c", "vsparse_int8")
    assert taken.flash_bytes <= 24 * 1024
    assert taken.ram_bytes <= 16 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("board", list(BOARDS))
@pytest.mark.parametrize("optimise", ["-O0", "-O2", "-O3", "-Os"])
def test_every_operator_has_the_same_bits_on_every_board(tools: None, tmp_path: Path, board: str, optimise: str) -> None:
    for graph in map(_quantised, _graphs()):
        _taken(graph, board, tmp_path, optimise)


def test_a_reshaped_map_is_read_where_it_lies(tmp_path: Path) -> None:
    """Sums take their inputs from a map with margins; a further reshaping puts them in order."""
    b = Builder(np.random.default_rng(6), 2, 4, 4)
    b.conv(3, pads=(1, 1, 1, 1))
    b.add(Relu)
    kept = b.last
    b.conv(3, pads=(1, 1, 1, 1))
    b.add(Add, b.last, kept)
    b.flatten()
    flat = b.last
    shape = (6, 4, 2)
    b.last = b.add(Reshape, flat, shape=shape)
    b.conv(2, (2, 2), pads=(1, 0, 0, 1))
    b.flatten()
    b.gemm(3)
    graph = _quantised(b.graph())
    x = _points(graph, 40)
    np.testing.assert_array_equal(_logits(graph, x, tmp_path, "-O2"), simulate_integers(graph, x))
