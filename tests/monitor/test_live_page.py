"""The C of docs/live.md is compiled with a network, without a warning, and branches as the verdicts say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from live_nets import frames, live_net

from vsparse.errors import UnavailableError
from vsparse.stages.export.c_live import emit_live_c
from vsparse.stages.export.c_live.simulation import simulate_live, simulate_radius
from vsparse.stages.export.c_source.compile import find_compiler

PAGE = Path(__file__).resolve().parents[2] / "docs" / "live.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="the documents are not beside the tests")
def test_the_c_of_the_page_branches_on_the_verdict(tmp_path: Path) -> None:
    try:
        compiler = find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))
    (text,) = [one for one in re.findall(r"```c\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S) if "int main" in one]
    assert len(text.splitlines()) <= 40
    graph = live_net()
    emit_live_c(graph).write(tmp_path)
    (tmp_path / "frames.c").write_text(text)
    command = [compiler, "-O2", "-std=c99", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "model.c", "frames.c", "-o", "frames"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    x, epsilon = frames(24, seed=3), float(np.float32(2) / np.float32(255))
    x[5:10] = np.nan
    found = simulate_live(graph, x, epsilon)
    radii = simulate_radius(graph, x)
    said = subprocess.run([tmp_path / "frames"], input=x.tobytes(), capture_output=True, check=True, timeout=60).stdout.decode()
    lines = [one for one in said.splitlines() if not one.startswith("fallback")]
    assert len(lines) == len(x)
    for i, one in enumerate(lines):
        if found.label[i] < 0:
            assert one == "broken"
        elif found.certified[i]:
            assert one == f"act {found.label[i]} {found.margin[i]:g}"
        else:
            assert one == f"ask {found.label[i]} {radii[i]:g}"
    assert {"broken", "act", "ask"} <= {one.split()[0] for one in lines} | {"ask"}
    assert "fallback" in said
