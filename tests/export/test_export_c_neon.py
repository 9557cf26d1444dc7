"""32-bit Arm with NEON: the text without vectors, of which gcc makes scalar instructions, so that subnormals are kept there too."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from c_nets import networks

from vsparse.stages.export.c_source import emit_c, simulate

COMPILER, EMULATOR = "arm-linux-gnueabihf-gcc", "qemu-arm-static"
OPTIONS = ("-O3", "-mfpu=neon", "-std=c99", "-ffp-contract=off")


@pytest.fixture
def network(tmp_path):
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER}")
    graph = list(networks())[1]
    emit_c(graph).write(tmp_path)
    return graph


def test_floats_stay_in_scalar_registers(network, tmp_path):
    subprocess.run([COMPILER, *OPTIONS, "-S", "model.c"], cwd=tmp_path, check=True)
    text = (tmp_path / "model.s").read_text()
    assert re.search(r"\bvml?[au]l?\w*\.f32\s+s\d", text)
    assert not re.search(r"\bv(mul|add|mla|fma)\.f32\s+[qd]\d", text)


def test_bits_are_the_same_for_subnormals_too(network, tmp_path):
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"needs {EMULATOR}")
    size, classes = int(np.prod(network.input_shape)), int(np.prod(network.shape_of(network.output)))
    x = np.random.default_rng(0).normal(size=(1, *network.input_shape)).astype(np.float32) * np.float32(1e-39)
    small = {name: value if value.ndim > 1 else value * np.float32(1e-40) for name, value in network.params.items()}
    graph = type(network)(network.input, network.input_shape, network.nodes, network.output, small)
    expected = simulate(graph, x)[graph.output].reshape(-1)
    assert ((np.abs(expected) > 0) & (np.abs(expected) < np.finfo(np.float32).tiny)).any()
    emit_c(graph).write(tmp_path)
    values = ",".join(f"{float(v).hex()}f" for v in x.reshape(-1))
    (tmp_path / "main.c").write_text(
        '#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n#include "model.h"\n'
        f"int main(void)\n{{\n    static const float x[{size}] = {{{values}}};\n    static float y[{classes}];\n    uint32_t bits;\n"
        f"    vsparse_logits(x, y);\n    for (int i = 0; i < {classes}; i++) {{\n        memcpy(&bits, y + i, 4);\n"
        '        printf("%08x ", (unsigned)bits);\n    }\n    return 0;\n}\n'
    )
    subprocess.run([COMPILER, *OPTIONS, "main.c", "model.c", "-o", "program"], cwd=tmp_path, check=True)
    said = subprocess.run(
        [EMULATOR, "-L", "/usr/arm-linux-gnueabihf", "./program"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [f"{v:08x}" for v in expected.view(np.uint32).tolist()]
