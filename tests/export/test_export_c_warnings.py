"""No compiler warns of a conversion, or of anything else that it knows to warn of, in any text of any network."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from c_nets import Builder, networks
from test_export_c_kernels import random_network

from vsparse.graph import Relu
from vsparse.stages.export.c_int8 import emit_int8_c
from vsparse.stages.export.c_source import emit_c
from vsparse.stages.export.c_source.costs import COSTS
from vsparse.stages.export.c_source.tiles import MOST_POINTS
from vsparse.stages.export.firmware import boards
from vsparse.stages.export.firmware.boards import BOARDS
from vsparse.stages.export.firmware.link import COMPILER
from vsparse.stages.export.quantise import quantise

STRICT = (
    *("-std=c99", "-pedantic", "-ffp-contract=off", "-Werror", "-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion"),
    *("-Wcast-qual", "-Wcast-align", "-Wshadow", "-Wundef", "-Wfloat-equal"),
)
# Comparisons of floats are meant: of a NaN with itself.
MEANT = ("-Wno-float-equal",)
SEEDS = (0, 1, 4, 7, 8, 11, 12, 14, 18)
# Every kernel of the float32 texts; a kernel that is added stands here, and in a network that has it.
KERNELS = {
    *("vs_copy", "vs_planes", "vs_store_channels", "vs_rows", "vs_listed_rows", "vs_sparse_rows", "vs_sparse_slices", "vs_two_slices"),
    *(f"vs_dense{rows}" for rows in (2, 4, 6)),
    *(f"vs_positions{rows}" for rows in range(1, 7)),
    *(f"vs_channels{points}" for points in range(1, MOST_POINTS + 1)),
}
COMPILERS = {
    "gcc": ("gcc", ()),
    "gcc, AVX-512": ("gcc", ("-mavx512f", "-mfma")),
    "clang, AVX2": ("clang", ("-mavx2", "-mfma")),
    "gcc, threads": ("gcc", ("-mavx2", "-fopenmp", "-DVS_THREADS=3")),
    "clang": ("clang", ()),
    "64-bit Arm": ("aarch64-linux-gnu-gcc", ()),
    "32-bit Arm": ("arm-linux-gnueabihf-gcc", ("-mfpu=neon",)),
    "Cortex-M4F": ("arm-none-eabi-gcc", BOARDS["cortex-m4f"].options),
    "Cortex-M55": ("arm-none-eabi-gcc", BOARDS["cortex-m55"].options),
    "without floating point": ("arm-none-eabi-gcc", ("-mcpu=cortex-m3", "-mthumb")),
}
FIRMWARE = Path(boards.__file__).parent
FAST = ("gcc, AVX-512", "clang")


def _few_positions():
    """A network whose maps of three and four positions have lanes of channels, and costs that choose them."""
    costs = replace(COSTS, point=dict.fromkeys(range(1, MOST_POINTS + 1), 1e-3), store=0.0)
    b = Builder(np.random.default_rng(0), 4, 3, 3)
    for i, kernel in enumerate(((2, 1), (2, 1), (1, 2), (1, 2))):
        b.conv(30 + i, kernel, density=(1.0, 0.7)[i % 2])
        b.add(Relu)
    yield b.graph(), costs
    b = Builder(np.random.default_rng(0), 24, 1, 6)
    b.conv(30, (1, 2))
    b.conv(31, (1, 2), density=0.7)
    yield b.graph(), costs


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Every network in C, float32 and int8, in one folder each."""
    folders, called = [], set()
    for graph, costs in [*((graph, COSTS) for graph in (*networks(), *map(random_network, SEEDS))), *_few_positions()]:
        folder = tmp_path_factory.mktemp("net")
        source = emit_c(graph, costs=costs)
        source.write(folder)
        called |= set(re.findall(r"\b(vs_\w+)\(", source.source))
        emit_int8_c(quantise(graph, np.random.default_rng(0).normal(size=(16, *graph.input_shape)).astype(np.float32))).write(folder)
        folders.append(folder)
    assert called >= KERNELS, KERNELS - called
    return folders


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in COMPILERS])
def test_no_compiler_warns(sources, name):
    compiler, options = COMPILERS[name]
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    for folder in sources:
        command = [compiler, *options, *STRICT, *MEANT, "-fsyntax-only", "model.c", "model.int8.c"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:2000]


def test_every_kernel_is_in_one_of_the_networks(sources):
    assert len(sources) == 4 + len(SEEDS) + 2


def test_the_firmware_of_the_boards_has_no_warnings_either(tmp_path):
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER}")
    (tmp_path / "inputs.h").write_text("static const float inputs[1][2] = {{0.0f, 1.0f}};\n")
    defines = [f"-I{tmp_path}", "-DMODEL_INPUTS=2", "-DMODEL_CLASSES=3", "-DMODEL_LOGITS=net_logits"]
    for name in ("main.c", "startup.c"):
        for board in BOARDS.values():
            command = [COMPILER, *board.options, *STRICT, *defines, "-fsyntax-only"]
            done = subprocess.run([*command, str(FIRMWARE / name)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:2000]
