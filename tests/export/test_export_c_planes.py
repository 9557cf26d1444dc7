"""The copies of a convolution's input in C stay within the arena that the header states, also rows that no weight reads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_nets import Builder

from vsparse.errors import UnavailableError
from vsparse.graph import Relu
from vsparse.stages.export.c_source import emit_c, find_compiler

MAIN = """#include "model.h"
#include <stdlib.h>
int main(void)
{
    float *x = calloc(NET_INPUTS, sizeof(float)), *arena = malloc(sizeof(float) * NET_ARENA_FLOATS), logits[NET_CLASSES];
    return net_logits_in(arena, NET_ARENA_FLOATS, x, logits);
}
"""


@pytest.mark.parametrize("kernel", [(3, 3), (5, 3), (4, 4)])
def test_strided_filters_write_nothing_beyond_the_arena(tmp_path: Path, kernel: tuple[int, int]) -> None:
    try:
        compiler = find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        b = Builder(rng, int(rng.integers(1, 5)), int(rng.integers(6, 9)), int(rng.integers(6, 9)))
        b.conv(int(rng.integers(2, 6)), kernel, pads=(1, 1, 1, 1), stride=(2, 2))
        b.add(Relu)
        b.flatten()
        b.gemm(3)
        emit_c(b.graph(), prefix="net").write(tmp_path)
        (tmp_path / "main.c").write_text(MAIN)
        options = ["-O1", "-std=c99", "-DNET_NO_STATIC_ARENA", "-fsanitize=address", "-fno-sanitize-recover=all"]
        built = subprocess.run(
            [compiler, *options, "model.c", "main.c", "-o", "m"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        if built.returncode and "san" in built.stderr:
            pytest.skip("this compiler has no sanitizers")
        assert built.returncode == 0, built.stderr[:2000]
        done = subprocess.run([tmp_path / "m"], capture_output=True, text=True, check=False, env={"ASAN_OPTIONS": "detect_leaks=0"})
        assert done.returncode == 0, done.stderr[:2000]
