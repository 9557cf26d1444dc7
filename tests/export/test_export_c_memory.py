"""The memory of model.c: an arena planned by liveness, the caller's or the file's own, and names that let networks share a program."""

from __future__ import annotations

import ctypes
import itertools
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_nets import Builder, networks

from vsparse.c_prefix import KEYWORDS, require_prefix
from vsparse.errors import InputError, UnavailableError
from vsparse.graph import Graph, Relu
from vsparse.recipe import load_recipe
from vsparse.stages.export.c_source import CompiledModel, emit_c, find_compiler, simulate
from vsparse.stages.export.c_source.arena import Lifetime, plan_arena
from vsparse.stages.export.c_source.literals import float_literals
from vsparse.stages.export.c_source.tables import narrowest

PLAIN = ("-O1", "-std=c99", "-ffp-contract=off")
WITHOUT_VECTORS = (*PLAIN, "-U__GNUC__")


@pytest.fixture
def compiler() -> str:
    try:
        return find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))


def _lifetimes(rng: np.random.Generator) -> list[Lifetime]:
    spans = [sorted(rng.integers(0, 6, 2).tolist()) for _ in range(int(rng.integers(1, 7)))]
    return [Lifetime(f"t{i}", int(rng.integers(1, 20)), first, last) for i, (first, last) in enumerate(spans)]


def _least(lifetimes: list[Lifetime]) -> int:
    """Returns the least arena: some order in which each goes to the lowest free offset has it."""
    best = sum(one.size for one in lifetimes)
    for order in itertools.permutations(lifetimes):
        placed: list[tuple[Lifetime, int]] = []
        for one in order:
            offsets = [0, *(start + other.size for other, start in placed)]
            fits = [
                offset
                for offset in offsets
                if all(not one.meets(other) or offset + one.size <= start or start + other.size <= offset for other, start in placed)
            ]
            placed.append((one, min(fits)))
        best = min(best, max(start + one.size for one, start in placed))
    return best


def test_no_two_tensors_that_live_at_one_time_overlap_and_the_arena_is_near_the_least() -> None:
    rng = np.random.default_rng(0)
    optimal = 0
    for _ in range(60):
        lifetimes, unit = _lifetimes(rng), int(rng.choice([1, 1, 4]))
        plan = plan_arena(lifetimes, unit)
        for one, other in itertools.combinations(lifetimes, 2):
            apart = (
                plan.offsets[one.name] + one.size <= plan.offsets[other.name]
                or plan.offsets[other.name] + other.size <= plan.offsets[one.name]
            )
            assert apart or not one.meets(other)
        assert all(offset % unit == 0 for offset in plan.offsets.values())
        at_once = max(sum(one.size for one in lifetimes if one.first <= step <= one.last) for step in range(6))
        assert at_once <= plan.size <= sum(one.size + unit for one in lifetimes)
        if unit == 1:
            optimal += plan.size == _least(lifetimes)
    assert optimal >= 30


def test_a_chain_needs_two_maps_and_no_copies() -> None:
    """A convolution's padding lies around its input, so the arena of the text without vectors is input and output of the widest layer."""
    b = Builder(np.random.default_rng(0), 1, 28, 28)
    b.conv(16, (4, 4), stride=(2, 2), pads=(1, 1, 1, 1))
    b.add(Relu)
    b.conv(32, (4, 4), stride=(2, 2), pads=(1, 1, 1, 1))
    b.add(Relu)
    b.flatten()
    b.gemm(100)
    source = emit_c(b.graph())
    first = 15 * (16 * 15 - 1) + 15 + 1 + 16 + 14 + 1  # 16 maps of 14 x 14, padding shared between rows and maps, some bytes at the end
    assert source.scalar.arena_bytes <= 4 * (first + 32 * 49)
    assert source.scalar.arena_bytes < 21_000
    assert source.vector.arena_bytes == 4 * (16 * 14 * 14 + 16 * 8 * 8 * 7)  # with vectors, input and shifted copies live at one time


def test_arrays_that_overlap_in_one_operator_are_not_restrict() -> None:
    """An operator that copies its input may write its result over it: C forbids to reach one object by two restrict pointers there."""
    shared = 0
    for graph in networks():
        for block in re.findall(r"\n    {\n(.*?)\n    }", emit_c(graph).source, re.DOTALL):
            starts = re.findall(r"float \*(restrict )?const (\w+) = arena \+ (\d+);", block)
            for (_, one, at), (_, other, to) in itertools.combinations(starts, 2):
                if at == to:
                    shared += 1
                    assert not any(restrict for restrict, name, _ in starts if name in (one, other)), block
    assert shared


@pytest.mark.parametrize("options", [PLAIN, WITHOUT_VECTORS], ids=["vectors", "scalar"])
def test_two_networks_share_a_program_and_an_arena(tmp_path: Path, compiler: str, options: tuple[str, ...]) -> None:
    rng = np.random.default_rng(1)
    graphs = dict(zip(("first", "second_net"), list(networks())[1:3], strict=True))
    inputs = {name: rng.normal(size=(2, *graph.input_shape)).astype(np.float32) for name, graph in graphs.items()}
    for name, graph in graphs.items():
        (tmp_path / name).mkdir()
        emit_c(graph, "", name, name).write(tmp_path / name)
    main = """#include "first/model.h"
#include "second_net/model.h"
#define LARGER (FIRST_ARENA_FLOATS > SECOND_NET_ARENA_FLOATS ? FIRST_ARENA_FLOATS : SECOND_NET_ARENA_FLOATS)
static float arena[LARGER];
int both(const float *x, float *a, const float *y, float *b)
{
    int failed = first_logits_in(arena, LARGER, x, a);
    failed |= second_net_logits_in(arena, LARGER, y, b);
    return failed | (first_logits_in(arena, FIRST_ARENA_FLOATS - 1, x, a) != -1) | (second_net_classify_in(arena, 0, y) != -1);
}
"""
    (tmp_path / "main.c").write_text(main)
    only = ("-DFIRST_NO_STATIC_ARENA", "-DSECOND_NET_NO_STATIC_ARENA")
    files = ["main.c", "first/model.c", "second_net/model.c"]
    command = [
        compiler,
        *options,
        *only,
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-shared",
        "-fPIC",
        *files,
        "-o",
        "both.so",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    both = ctypes.CDLL(str(tmp_path / "both.so")).both
    pointer = ctypes.POINTER(ctypes.c_float)
    for i in range(2):
        out = {name: np.zeros(int(np.prod(graph.shape_of(graph.output))), np.float32) for name, graph in graphs.items()}
        given = [array.ctypes.data_as(pointer) for name in graphs for array in (inputs[name][i], out[name])]
        assert both(*given) == 0
        for name, graph in graphs.items():
            np.testing.assert_array_equal(out[name], simulate(graph, inputs[name][i : i + 1])[graph.output].reshape(-1))
    sizes = subprocess.run(["nm", "both.so"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "vs_arena" not in sizes  # the arenas of the files' own were left out


def test_calls_with_arenas_of_their_own_may_run_at_one_time(tmp_path: Path, compiler: str) -> None:
    """Nothing is kept outside of the arena: what another call left in it, or does meanwhile in another one, changes nothing."""
    graph = next(iter(networks()))
    emit_c(graph).write(tmp_path)
    x = np.random.default_rng(2).normal(size=(4, *graph.input_shape)).astype(np.float32)
    expected = simulate(graph, x)[graph.output].reshape(4, -1)
    with CompiledModel(tmp_path / "model.c", graph.input_shape, expected.shape[1], PLAIN) as compiled:
        function = compiled.library.vsparse_logits_in
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
        floats = emit_c(graph).vector.arena_bytes // 4
        arena = np.full(floats + 2, np.nan, np.float32)
        for i in range(4):
            out = np.zeros(expected.shape[1], np.float32)
            assert function(arena[1:].ctypes.data, floats, x[i].ctypes.data, out.ctypes.data) == 0
            np.testing.assert_array_equal(out, expected[i])
            assert np.isnan(arena[[0, -1]]).all()  # nothing beyond its ends was written
            arena[1:-1] = np.nan
    text = (tmp_path / "model.c").read_text()
    statics = [line for line in text.splitlines() if line.startswith("static") and "(" not in line and "const" not in line]
    assert statics == ["static float vs_arena[VSPARSE_ARENA_FLOATS] VS_ALIGNED;"]


@pytest.mark.parametrize("prefix", ["", "2nd", "a-b", "_x", "naïve", "int", "class", "vs", "x" * 32, "a b", 'a"\n#error'])
def test_a_prefix_that_is_no_identifier_is_refused_by_name(prefix: str) -> None:
    with pytest.raises(InputError, match=r"no C identifier|keyword of C|inside of model\.c") as caught:
        require_prefix(prefix)
    assert caught.value.exit_code == 2
    with pytest.raises(InputError):
        emit_c(next(iter(networks())), prefix=prefix)
    if prefix and "\n" not in prefix:
        with pytest.raises(InputError, match=r"export\.c_prefix"):
            load_recipe("digits", [f"export.c_prefix={prefix}"])


def test_a_prefix_is_a_key_of_the_recipe() -> None:
    assert {"int", "restrict", "class", "xor_eq"} <= KEYWORDS
    assert require_prefix("vsparse") == "vsparse"
    assert load_recipe("digits", ["export.c_prefix=digits_v2"]).export.c_prefix == "digits_v2"


def test_weights_stand_in_a_file_of_their_own_in_at_most_fourteen_characters() -> None:
    b = Builder(np.random.default_rng(0), 200)
    b.gemm(150)
    graph: Graph = b.graph()
    source = emit_c(graph)
    assert "static const float" not in source.source
    assert len(source.weights) <= 14 * 200 * 150


def test_the_narrowest_format_holds_every_value() -> None:
    for low, high, kind in ((0, 255, "uint8_t"), (0, 256, "uint16_t"), (-1, 3, "int16_t"), (0, 65536, "uint32_t"), (-40000, 0, "int32_t")):
        assert narrowest(np.array([low, high], np.int64))[0] == kind


def test_literals_are_the_shortest_that_are_exact() -> None:
    values = np.array([0.1, -0.25, 1, 0, -0.0, 1e-20, 3.4028235e38, 1e10, 2.0**-149], np.float32)
    assert float_literals(values) == [".1f", "-.25f", "1.f", "0.f", "-0.f", "1e-20f", "3.4028235e38f", "1e10f", "1e-45f"]
