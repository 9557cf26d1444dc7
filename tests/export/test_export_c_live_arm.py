"""The live certificate on 64-bit and 32-bit Arm: the bits of its simulation, of both tiers, the radius and the integers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_nets import Builder

from vsparse.graph import Add, AveragePool, Graph, MaxPool, Relu
from vsparse.stages.export.c_live import emit_live_c, emit_live_int8_c, simulate_budget, simulate_live_int8
from vsparse.stages.export.c_live.int8_simulation import simulate_radius_int8
from vsparse.stages.export.c_live.simulation import Verdicts, simulate_radius
from vsparse.stages.export.c_source.literals import float_literals
from vsparse.stages.export.quantise import quantise

OPTIONS = ("-std=c99", "-ffp-contract=off", "-static", "-Wall", "-Wextra", "-Wno-missing-braces", "-Werror")
ARM64, ARM = ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"), ("arm-linux-gnueabihf-gcc", "qemu-arm-static")
# All options of 32-bit Arm have NEON but the last.
HOW = [(ARM64, "-O2"), (ARM64, "-O3"), (ARM, "-O2 -mfpu=neon"), (ARM, "-O3 -mfpu=neon"), (ARM, "-O3 -mfpu=vfpv3-d16")]
PASSES, RADII = 3, (0.0, 0.01, 0.03)
MAIN = """#include "{stem}.h"
#include <stdint.h>
#include <stdio.h>
#include <string.h>
static const float x[{count}][{capitals}_INPUTS] = {{{values}}};
static void say(float value)
{{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    printf("%08x ", (unsigned)bits);
}}
int main(void)
{{
    static const float radii[] = {{{radii}}};
    struct {prefix}_verdict v;
    for (int i = 0; i < {count}; i++) {{
        for (int k = 0; k < {tried}; k++) {{
            {call};
            printf("%d %d ", v.label, v.certified);
            say(v.margin);
        }}
        say({prefix}_radius(x[i]));
    }}
    return 0;
}}
"""


def _net(seed: int) -> Graph:
    """Layers of every form: grouped, sparse, a branch, a pool; the first seed ends in a fully connected layer, the second does not."""
    b = Builder(np.random.default_rng(seed), 2, 6, 5)
    b.conv(4, pads=(1, 1, 1, 1), density=1.0)
    b.add(Relu)
    skip = b.last
    b.conv(4, (3, 3), pads=(1, 1, 1, 1), density=0.4, groups=2)
    b.add(Add, b.last, skip)
    b.add(Relu)
    b.add(*((AveragePool,) if seed else (MaxPool,)), kernel=(2, 2), stride=(2, 1))
    b.flatten()
    b.gemm(9)
    b.add(Relu)
    b.gemm(4)
    if seed:
        b.add(Relu)
    return b.graph()


def _bits(verdicts: list[Verdicts], radii: np.ndarray) -> list[str]:
    words = []
    for i, radius in enumerate(radii):
        for one in verdicts:
            words += [str(one.label[i]), str(int(one.certified[i])), f"{one.margin[i : i + 1].view(np.uint32)[0]:08x}"]
        words.append(f"{np.float32(radius).view(np.uint32):08x}")
    return words


def _execute(how: tuple[tuple[str, str], str], folder: Path, stem: str, prefix: str, x: np.ndarray, call: str) -> list[str]:
    (compiler, emulator), options = how
    if not shutil.which(compiler) or not shutil.which(emulator):
        pytest.skip(f"{compiler} or {emulator} is not on the path")
    values = {"stem": stem, "prefix": prefix, "capitals": prefix.upper(), "count": len(x), "tried": len(RADII), "call": call}
    inputs, radii = ",".join(float_literals(x)), ",".join(float_literals(np.array(RADII, np.float32)))
    (folder / "main.c").write_text(MAIN.format(**values, values=inputs, radii=radii))
    sources = [f"{stem}.c", "main.c", *[path.name for path in folder.glob(f"{stem}*.S")]]
    built = subprocess.run(
        [compiler, *options.split(), *OPTIONS, *sources, "-o", "m"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[:2000]
    return subprocess.run([emulator, folder / "m"], capture_output=True, text=True, check=True, timeout=300).stdout.split()


def _compare(how: tuple[tuple[str, str], str], folder: Path, seed: int) -> None:
    graph = _net(seed)
    x = np.random.default_rng(seed).random((3, *graph.input_shape)).astype(np.float32)
    x[0] = np.round(x[0])
    emit_live_c(graph, second=True).write(folder)
    said = _execute(how, folder, "model", "vsparse", x, f"vsparse_certify_budget(x[i], radii[k], {PASSES}, &v)")
    assert said == _bits([simulate_budget(graph, x, radius, PASSES) for radius in RADII], simulate_radius(graph, x))
    if seed:
        return
    graph = quantise(graph, np.random.default_rng(9).random((32, *graph.input_shape)).astype(np.float32))
    emit_live_int8_c(graph).write(folder)
    said = _execute(how, folder, "model.int8", "vsparse_int8", x, "vsparse_int8_certify(x[i], radii[k], &v)")
    assert said == _bits([simulate_live_int8(graph, x, radius) for radius in RADII], simulate_radius_int8(graph, x))


@pytest.mark.parametrize("how", [HOW[0], HOW[2]], ids=["aarch64", "armv7"])
def test_both_tiers_the_radius_and_the_integers_have_the_stated_bits(tmp_path: Path, how: tuple[tuple[str, str], str]) -> None:
    _compare(how, tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW, ids=lambda how: f"{how[0][0]} {how[1]}")
@pytest.mark.parametrize("seed", range(1, 6))
def test_no_option_changes_a_bit(tmp_path: Path, how: tuple[tuple[str, str], str], seed: int) -> None:
    _compare(how, tmp_path, seed)
