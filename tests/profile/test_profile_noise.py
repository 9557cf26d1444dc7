"""Noise: a run beside a busy loop is flagged, a quiet one is not; what is this run's own is not another's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_profile_latency import matmul_model

from vsparse.artifact.noise import NoiseReason, told_once
from vsparse.stages.export.device.noise import NOISE_LIMITS, noise_of
from vsparse.stages.export.device.sensors import Watch
from vsparse.stages.profile import profile_onnx

QUIET = {"latency_ms_p50": 1.0, "latency_ms_p99": 1.2, "block_medians_ms": [1.0, 1.01, 0.99, 1.0], "processor_share": 0.99}


def state(**changed: Any) -> dict[str, Any]:
    still = {"cores": 2, "load_average_1min": 1.0, "governors": {"performance": 2}}
    timed = {
        "others_cores": 0.02,
        "stolen_cores": 0.0,
        "others": [],
        "clocks_mhz_min": {"cpu0": 2000.0},
        "clocks_mhz_max": {"cpu0": 2010.0},
    }
    found: dict[str, Any] = {"before": dict(still), "timed": timed, "after": dict(still), "throttled": False}
    for path, value in changed.items():
        where, _, key = path.partition("__")
        if key:
            found[where][key] = value
        else:
            found[where] = value
    return found


def test_a_quiet_run_is_not_flagged() -> None:
    assert noise_of(QUIET, state(), {"stable": True}) == []
    unknown = state(timed__others_cores=None, timed__stolen_cores=None, before__load_average_1min=None, throttled=None)
    assert noise_of(QUIET | {"processor_share": None}, unknown, None) == []


@pytest.mark.parametrize(
    ("name", "latency", "changed", "stable"),
    [
        ("tail", {"latency_ms_p99": 24.2 / 0.027}, {}, True),
        ("drift", {"block_medians_ms": [1.0, 1.0, 1.3, 1.3]}, {}, True),
        ("waited", {"processor_share": 0.5}, {}, True),
        ("warm-up", {}, {}, False),
        ("other processes", {}, {"timed__others_cores": 0.98, "timed__others": [{"name": "{evil}", "cores": 0.98}]}, True),
        ("stolen", {}, {"timed__stolen_cores": 0.3}, True),
        ("load", {}, {"before__load_average_1min": 4.0}, True),
        ("clocks", {}, {"timed__clocks_mhz_min": {"cpu0": 800.0}}, True),
        ("governor", {}, {"after__governors": {"powersave": 2}}, True),
        ("throttled", {}, {"throttled": True}, True),
    ],
)
def test_each_reason_is_found_by_itself(name: str, latency: dict[str, Any], changed: dict[str, Any], stable: bool) -> None:
    found = noise_of(QUIET | latency, state(**changed), {"stable": stable})
    assert [one["name"] for one in found] == [name]
    assert NoiseReason(**found[0]).detail


def test_limits_are_the_ones_of_the_document() -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to-device.md").read_text()
    rows = dict(line.strip("|").split("|")[:2] for line in text.splitlines() if line.count("|") == 4)
    told = {key.strip(): value.strip() for key, value in rows.items()}
    for name, limit in NOISE_LIMITS.items():
        assert told[name] == (f"{limit:g}" if name in ("tail", "other processes", "stolen", "load") else f"{100 * limit:g} %"), name


def test_a_reason_of_all_is_told_once() -> None:
    load, tail = (NoiseReason(name=name, value=1.0, limit=0.5, detail=name) for name in ("load", "tail"))
    assert told_once([("a", (load, tail)), ("b", (load,)), ("c", None)]) == ["load", "a: tail"]


def process(root: Path, pid: int, parent: int, ticks: int, name: str = "x", ended: int = 0) -> None:
    (root / "proc" / str(pid)).mkdir(parents=True, exist_ok=True)
    words = ["S", str(parent), *["0"] * 9, str(ticks), "0", str(ended), "0", *["0"] * 10]
    (root / "proc" / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(words)}\n")


def test_what_this_run_and_its_children_take_is_not_anothers(tmp_path: Path) -> None:
    me, rate = os.getpid(), os.sysconf("SC_CLK_TCK")

    def told(own: int, child: int, ended: int, other: int, busy: int, stolen: int) -> None:
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc" / "stat").write_text(f"cpu  {busy} 0 0 9999 0 0 0 {stolen} 0 0\ncpu0 1 1\n")
        process(tmp_path, me, 1, own, ended=ended)
        process(tmp_path, me + 1, me, child, "worker (1) R 1")
        process(tmp_path, 7, 1, other, "busy) loop")

    told(100, 100, 0, 500, 1000, 10)
    watch = Watch(str(tmp_path), alone=False)
    watch.timing()
    watch.timed.at -= 10.0
    told(100 + 5 * rate, 100 + 5 * rate, 2 * rate, 500 + rate, 1000 + 13 * rate, 10)
    found = watch.told()["timed"]
    assert found["others_cores"] == pytest.approx(0.1, rel=0.2)
    assert [one["name"] for one in found["others"]] == ["busy) loop"]
    # A process that this one may not see counts by the processors' own ticks.
    told(100 + 5 * rate, 100 + 5 * rate, 2 * rate, 500 + rate, 1000 + 22 * rate, 10 + 3 * rate)
    found = watch.told()["timed"]
    assert found["others_cores"] == pytest.approx(1.0, rel=0.2)
    assert found["stolen_cores"] == pytest.approx(0.3, rel=0.2)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_run_beside_a_busy_loop_is_flagged(tmp_path: Path) -> None:
    loop = [sys.executable, "-c", "while True: pass"]
    # The shell ends at once, so that the loop is nobody's child here.
    shell = subprocess.run(["sh", "-c", '"$@" >/dev/null 2>&1 & echo $!', "sh", *loop], capture_output=True, text=True, check=True)
    try:
        found = profile_onnx(matmul_model(tmp_path / "m.onnx", 64, 8), runs=20, seconds=1.0, warmup=5)
    finally:
        os.kill(int(shell.stdout), signal.SIGKILL)
    assert found.noise is not None
    others = {reason.name: reason.value for reason in found.noise}.get("other processes", 0.0)
    assert others > NOISE_LIMITS["other processes"]
