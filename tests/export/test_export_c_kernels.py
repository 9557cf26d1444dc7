"""The kernels of model.c: random networks number for number, under threads, and against options that would move a bit."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from c_nets import Builder, mask, random_network
from c_options import FLAGS
from test_export_c_source import NATIVE, PLAIN, SCALAR

from vsparse.graph import AveragePool, MaxPool, Relu
from vsparse.stages.export.c_source import CompiledModel, emit_c, simulate
from vsparse.stages.export.c_source.costs import COSTS, KernelCosts, point_tiles
from vsparse.stages.export.c_source.partition import by_kernel, tiles_of
from vsparse.stages.export.c_source.tiles import MOST_POINTS, MOST_ROWS

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "c" / "kernels.json"
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
pytestmark = pytest.mark.skipif(not COMPILERS, reason="no C compiler on this machine")


@pytest.fixture(autouse=True)
def keep_subnormals():
    """What is linked with clang's or gcc's options for unsafe mathematics makes the process that loads it flush subnormals."""
    yield
    torch.set_flush_denormal(False)


def vector_text(source):
    """Returns the statements of the text with vectors."""
    return source.source.split("static void vs_network(")[1]


def check(graph, folder, options, inputs=3, costs=COSTS):
    x = np.random.default_rng(1).normal(size=(inputs, *graph.input_shape)).astype(np.float32)
    expected = simulate(graph, x)[graph.output].reshape(inputs, -1)
    source = emit_c(graph, "00" * 32, "net", costs=costs)
    source.write(folder)
    with CompiledModel(folder / "model.c", graph.input_shape, expected.shape[1], options) as compiled:
        np.testing.assert_array_equal(compiled.logits(x), expected)
        np.testing.assert_array_equal(compiled.logits(x[::-1])[::-1], expected)  # nothing is left over from the input before
    return vector_text(source)


def test_random_networks_compute_the_stated_order(tmp_path):
    options = [("-O2", *NATIVE[1:]), PLAIN, SCALAR, ("-Os", *NATIVE[1:])]
    called = "".join(check(random_network(seed), tmp_path, options[seed % len(options)]) for seed in range(8))
    for kernel in ("vs_positions1(", "vs_positions6(", "vs_rows(", "vs_sparse_slices(", "vs_listed_rows(", "vs_planes("):
        assert kernel in called, kernel


@pytest.mark.parametrize("options", [NATIVE, SCALAR], ids=["native", "scalar"])
def test_maps_of_few_positions_have_lanes_of_channels(tmp_path, options):
    called = ""
    costs = replace(COSTS, point=dict.fromkeys(range(1, MOST_POINTS + 1), 1e-3), store=0.0)
    for shape, kernels in (((4, 3, 3), ((2, 1), (2, 1), (1, 2), (1, 2))), ((24, 1, 6), ((1, 2), (1, 2)))):
        b = Builder(np.random.default_rng(0), *shape)
        for i, kernel in enumerate(kernels):
            b.conv(30 + i, kernel, density=(1.0, 0.7)[i % 2])
            b.add(Relu)
        called += check(b.graph(), tmp_path, options, costs=costs)
    for points in range(1, MOST_POINTS + 1):
        assert f"vs_channels{points}(" in called
    assert "memcpy(copy" in called  # whole vectors are read beyond the end of a small input


@pytest.mark.slow
def test_many_random_networks_compute_the_stated_order(tmp_path):
    options = [NATIVE, ("-O2", *NATIVE[1:]), PLAIN, SCALAR, ("-O0", *PLAIN[1:]), ("-O3", *PLAIN[1:], "-mavx2", "-mfma")]
    called = "".join(check(random_network(seed), tmp_path, options[seed % len(options)]) for seed in range(100, 300))
    for rows in range(1, MOST_ROWS + 1):
        assert f"vs_positions{rows}(" in called


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "emulator", "options"),
    [
        ("aarch64-linux-gnu-gcc", "qemu-aarch64-static", ("-O3",)),
        ("arm-linux-gnueabihf-gcc", "qemu-arm-static", ("-O3", "-mfpu=neon-vfpv4")),
        ("arm-linux-gnueabihf-gcc", "qemu-arm-static", ("-O2",)),
        ("clang", "qemu-aarch64-static", ("-O3", "--target=aarch64-linux-gnu")),
        ("clang", "qemu-aarch64-static", ("-O3", "--target=aarch64-linux-gnu", "-freciprocal-math")),
        ("clang", "qemu-aarch64-static", ("-O3", "--target=aarch64-linux-gnu", "-funsafe-math-optimizations")),
    ],
)
def test_other_processors_compute_the_same_numbers(tmp_path, compiler, emulator, options):
    if not shutil.which(compiler) or not shutil.which(emulator):
        pytest.skip(f"needs {compiler} and {emulator}")
    for seed in range(100, 115):
        graph = random_network(seed)
        x = np.random.default_rng(1).normal(size=(3, *graph.input_shape)).astype(np.float32)
        expected = simulate(graph, x)[graph.output].reshape(3, -1)
        emit_c(graph).write(tmp_path)
        (tmp_path / "main.c").write_text(
            '#include "model.h"\n#include <stdio.h>\nint main(void){static float x[VSPARSE_INPUTS],y[VSPARSE_CLASSES];'
            "while(fread(x,sizeof x,1,stdin)==1){vsparse_logits(x,y);fwrite(y,sizeof y,1,stdout);}return 0;}\n"
        )
        exact = ("-std=c99", "-ffp-contract=off")
        subprocess.run([compiler, *options, *exact, "-c", "model.c"], cwd=tmp_path, check=True, capture_output=True)
        target = [one for one in options if one.startswith("--target")]
        linked = [compiler, *target, *exact, "-static", "model.o", "main.c", "-o", "main"]
        subprocess.run(linked, cwd=tmp_path, check=True, capture_output=True)
        done = subprocess.run([emulator, str(tmp_path / "main")], input=x.tobytes(), check=True, capture_output=True)
        np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32).reshape(expected.shape), expected)


@pytest.mark.skipif("clang" not in COMPILERS, reason="no clang on this machine")
@pytest.mark.parametrize("flag", ["-freciprocal-math", "-funsafe-math-optimizations"])
def test_clang_for_arm_divides_where_its_pragmas_do_not_make_it(tmp_path, flag):
    b = Builder(np.random.default_rng(0), 2, 6, 6)
    b.add(AveragePool, kernel=(3, 3), stride=(1, 1))
    b.flatten()
    emit_c(b.graph()).write(tmp_path)
    # Without headers of another processor's library: what the file takes of them is declared here.
    (tmp_path / "string.h").write_text(
        "typedef __SIZE_TYPE__ size_t;\nvoid *memcpy(void *, const void *, size_t);\nvoid *memset(void *, int, size_t);\n"
    )
    command = [
        "clang",
        "--target=aarch64-none-elf",
        "-ffreestanding",
        "-O3",
        "-std=c99",
        "-Wall",
        "-Werror",
        flag,
        "-I.",
        "-S",
        "model.c",
        "-o",
        "model.s",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    assert re.search(r"\bfdiv\b", (tmp_path / "model.s").read_text())


def test_threads_change_no_bit(tmp_path):
    b = Builder(np.random.default_rng(0), 3, 24, 24)
    b.conv(20, pads=(1, 1, 1, 1))
    b.add(Relu)
    b.conv(8, pads=(1, 1, 1, 1), stride=(2, 2), density=0.4)
    b.flatten()
    b.gemm(80)
    b.gemm(3000, density=0.1)
    b.gemm(10)
    graph = b.graph()
    try:
        check(graph, tmp_path, (*NATIVE, "-fopenmp", "-DVS_THREADS=3"), inputs=2)
    except Exception as error:
        if "does not compile" in str(error) or "libgomp" in str(error):
            pytest.skip("this compiler has no OpenMP")
        raise
    for options, threads in ((("-DVS_THREADS=3",), True), ((), False)):  # -fopenmp alone starts none
        subprocess.run([COMPILERS[0], "-O1", "-fopenmp", *options, "-S", "model.c", "-o", "model.s"], cwd=tmp_path, check=True)
        assert bool(re.search("GOMP_parallel|__kmpc_fork", (tmp_path / "model.s").read_text())) is threads


def graph_with_everything():
    b = Builder(np.random.default_rng(3), 3, 12, 12)
    b.conv(9, pads=(1, 1, 1, 1))
    b.add(Relu)
    b.add(AveragePool, kernel=(3, 3), stride=(3, 3))
    b.conv(7, (2, 2), density=0.3)
    b.conv(20, (3, 3))
    b.flatten()
    b.gemm(24, density=0.1)
    b.gemm(5)
    return b.graph()


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("processor", ["haswell", "skylake-avx512"])
def test_no_vectoriser_fuses_what_may_not_be_fused(tmp_path, compiler, processor):
    """gcc 12.2 turned neighbouring a·b + c and a·b − c of scalar code into vfmaddsub, -ffp-contract=off or not."""
    emit_c(graph_with_everything()).write(tmp_path)
    for level in ("-O2", "-O3"):
        command = [compiler, level, "-std=c99", "-ffp-contract=off", f"-march={processor}", "-S", "model.c", "-o", "model.s"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{compiler} does not compile for {processor}: {done.stderr[:100]}")
        text = (tmp_path / "model.s").read_text()
        assert "vmulps" in text
        assert not re.findall(r"\bvfn?m(?:add|sub)\w*", text)


QUICK = ("-funsafe-math-optimizations", "-fassociative-math", "-freciprocal-math", "-fno-honor-nans")


@pytest.mark.parametrize(
    ("compiler", "flag"),
    [pytest.param(compiler, flag, marks=() if flag in QUICK else pytest.mark.slow) for compiler in COMPILERS for flag in FLAGS[compiler]],
)
def test_options_that_would_move_a_bit_are_refused_or_harmless(tmp_path, compiler, flag):
    graph = graph_with_everything()
    x = np.random.default_rng(1).normal(size=(5, *graph.input_shape)).astype(np.float32)
    expected = simulate(graph, x)[graph.output].reshape(len(x), -1)
    emit_c(graph).write(tmp_path)
    command = [
        compiler,
        "-O3",
        "-std=c99",
        "-ffp-contract=off",
        "-march=native",
        *flag.split(),
        "-shared",
        "-fPIC",
        "model.c",
        "-o",
        "m.so",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode:
        assert "compile without" in done.stderr
        return
    library = ctypes.CDLL(str(tmp_path / "m.so"))
    pointer = ctypes.POINTER(ctypes.c_float)
    got = np.zeros_like(expected)
    for i in range(len(x)):
        library.vsparse_logits(x[i].ctypes.data_as(pointer), got[i].ctypes.data_as(pointer))
    np.testing.assert_array_equal(got, expected)
    x[0, 1, 5, 5] = np.nan
    assert library.vsparse_classify(x[0].ctypes.data_as(pointer)) == -1


@pytest.mark.parametrize("options", [NATIVE, SCALAR], ids=["native", "scalar"])
def test_nan_anywhere_in_a_window_stays_visible_through_max_pool(tmp_path, options):
    b = Builder(np.random.default_rng(0), 1, 4, 5)
    b.add(MaxPool, kernel=(3, 2), stride=(1, 1), pads=(1, 0, 1, 1))
    b.add(Relu)
    b.flatten()
    graph = b.graph()
    emit_c(graph).write(tmp_path)
    with CompiledModel(tmp_path / "model.c", graph.input_shape, 20, options) as compiled:
        for place in range(20):
            x = np.random.default_rng(place).normal(size=(1, 1, 4, 5)).astype(np.float32)
            x.reshape(-1)[place] = np.nan
            np.testing.assert_array_equal(compiled.logits(x), simulate(graph, x)[graph.output].reshape(1, -1))
            assert np.isnan(compiled.logits(x)).any()


def brute_force(kept, positions, costs):
    """Returns the least cost of all cuts of rows, in their order, into tiles of at most six."""
    rows = len(kept)
    least = np.inf
    for count in range(rows):
        for cuts in combinations(range(1, rows), count):
            ends = [0, *cuts, rows]
            parts = [kept[a:b] for a, b in pairwise(ends)]
            if all(len(part) <= MOST_ROWS for part in parts):
                least = min(least, sum(costs.tile(len(part), int(part.any(axis=0).sum()), positions) for part in parts))
    return least


def test_tiles_are_the_cheapest_cuts_and_cover_every_weight():
    rng = np.random.default_rng(0)
    for seed in range(12):
        kind = ("dense", "half", "sparse", "block")[seed % 4]
        weight = (rng.normal(size=(8, 3, 3, 3)) * mask(rng, (8, 3, 3, 3), kind)).astype(np.float32).reshape(8, 27)
        tiles, cost = tiles_of(weight, 1, 49, COSTS)
        assert cost <= brute_force(weight != 0, 49, COSTS) * (1 + 1e-12)
        assert sorted(row for tile in tiles for row in tile.rows) == list(range(8))
        for tile in tiles:
            assert (np.diff(tile.columns) > 0).all()  # the order of a sum is that of the row
            outside = np.setdiff1d(np.arange(27), tile.columns)
            assert not weight[list(tile.rows)][:, outside].any()


def test_rows_of_a_block_share_a_tile_and_single_weights_do_not():
    rng = np.random.default_rng(0)
    block = np.repeat(rng.random((12, 288)) < 0.2, 4, axis=0).astype(np.float32)
    assert {(rows, full) for rows, full in by_kernel(tiles_of(block, 1, 196, COSTS)[0])} == {(4, False)}
    single = (rng.random((48, 288)) < 0.05).astype(np.float32)
    assert all(rows == 1 for rows, _ in by_kernel(tiles_of(single, 1, 196, COSTS)[0]))
    shuffled = block[rng.permutation(48)]  # rows with the same weights find each other again
    assert tiles_of(shuffled, 1, 196, COSTS)[1] == pytest.approx(tiles_of(block, 1, 196, COSTS)[1], rel=0.02)


def test_costs_choose_kernels_and_no_bit(tmp_path):
    """Costs of an imaginary machine on which single rows are free, or lanes of channels: other kernels, the same numbers."""
    graph = graph_with_everything()
    x = np.random.default_rng(1).normal(size=(2, *graph.input_shape)).astype(np.float32)
    expected = simulate(graph, x)[graph.output].reshape(2, -1)
    cheap, dear = dict.fromkeys(range(1, 7), 0.001), dict.fromkeys(range(1, 7), 100.0)
    for costs, kernel in (
        (KernelCosts(4, {**dear, 1: 0.001}, 0.0, dear, 9.0, 9.0, 0.1), "vs_positions1("),
        (KernelCosts(16, dear, 1.0, cheap, 0.1, 9.0, 9.0), "vs_channels"),
        (KernelCosts(16, {**dear, 3: 0.1}, 1.0, dear, 9.0, 0.1, 9.0), "vs_listed_rows("),
    ):
        source = emit_c(graph, costs=costs)
        assert kernel in vector_text(source)
        source.write(tmp_path)
        with CompiledModel(tmp_path / "model.c", graph.input_shape, 5, ("-O1", *PLAIN[1:])) as compiled:
            np.testing.assert_array_equal(compiled.logits(x), expected)


def test_points_are_cut_evenly():
    for positions in range(1, 65):
        sizes = point_tiles(positions)
        assert sum(sizes) == positions
        assert max(sizes) <= MOST_POINTS
        assert max(sizes) - min(sizes) <= 1


def test_the_costs_are_those_that_were_measured():
    """benchmarks/c/kernels.json is what benchmarks/c/kernels.py found on the machine that costs.py names."""
    if not RESULTS.is_file():
        pytest.skip("the benchmarks are not beside this copy")
    measured = json.loads(RESULTS.read_text())["costs"]
    assert measured["position"] == {str(rows): cost for rows, cost in COSTS.position.items()}
    assert measured["point"] == {str(points): cost for points, cost in COSTS.point.items()}
    for name in ("lanes", "store", "dense_row", "listed_row", "sparse_row"):
        assert measured[name] == getattr(COSTS, name), name
