"""Limits of time and memory: kept against code that does not cooperate, without orphans, without losing a witness."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsparse import ask, limits
from vsparse.answer import Answer, Witness
from vsparse.errors import InputError
from vsparse.graph import Gemm, Graph, Relu, to_onnx
from vsparse.limits import Ended, free_memory, parse_memory, process_started, resident, run_limited

MIB = 2**20
# A worker that says something, starts another process, and then ignores every request to end.
STUBBORN = """
import json, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(json.dumps({"child": child.pid}), flush=True)
time.sleep(60)
"""
GREEDY = "import time; held = bytearray(400 * 2**20)\nfor i in range(0, len(held), 4096): held[i] = 1\ntime.sleep(60)"
GREEDY_CHILD = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {GREEDY!r}]); time.sleep(60)"


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that puts a piece of Python in the place of the worker."""

    def put(code: str) -> None:
        def start(task: str, keep_memory: bool) -> subprocess.Popen[str]:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            return subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, start_new_session=True)  # type: ignore[call-overload, no-any-return]

        monkeypatch.setattr(limits, "start", start)

    return put


def limited(
    seconds: float = 30.0, memory: int = 2**40, on_message: Callable[[dict[str, Any]], None] = lambda message: None
) -> tuple[Ended, float]:
    began = time.monotonic()
    ended = run_limited("query", {}, deadline=began + seconds, memory_bytes=memory, on_message=on_message)
    return ended, time.monotonic() - began


def gone(process: int) -> bool:
    """Whether a process ends within a few seconds; one that nobody has waited for yet counts as ended."""
    for _ in range(100):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_time_is_kept_against_code_that_ignores_it_and_nothing_is_left(worker: Callable[[str], None]) -> None:
    worker(STUBBORN)
    children: list[int] = []
    ended, seconds = limited(1.0, on_message=lambda message: children.append(message["child"]))
    assert ended.why == "time"
    assert 1.0 <= seconds < 2.0
    assert len(children) == 1
    assert gone(children[0])


@pytest.mark.parametrize("code", [GREEDY, GREEDY_CHILD])
def test_memory_is_kept_and_counts_what_a_process_starts(worker: Callable[[str], None], code: str) -> None:
    worker(code)
    ended, seconds = limited(memory=200 * MIB)
    assert ended.why == "memory"
    assert 200 * MIB < ended.peak_bytes < 450 * MIB
    assert seconds < 10


def test_a_process_that_is_killed_says_nothing_and_that_is_told(worker: Callable[[str], None]) -> None:
    worker("import os; os.kill(os.getpid(), 9)")
    assert limited()[0].why == "killed"


def test_errors_keep_their_kind(worker: Callable[[str], None]) -> None:
    worker("""print('{"error": "InputError", "message": "no such model"}', flush=True)""")
    with pytest.raises(InputError, match="no such model"):
        limited()


def test_a_bug_in_a_worker_is_told_in_a_line_with_its_traceback_beside_it(worker: Callable[[str], None]) -> None:
    worker(r"""print('{"error": "Exception", "message": "Traceback …\\n  line 7\\nKeyError: 3\\n"}', flush=True)""")
    with pytest.raises(RuntimeError) as raised:
        limited()
    assert str(raised.value) == "KeyError: 3"
    assert "line 7" in raised.value.__notes__[0]


@pytest.mark.parametrize(("how", "verdict"), [("time", "timeout"), ("memory", "unknown"), ("killed", "unknown")])
def test_a_witness_outlives_the_process_that_found_it(monkeypatch: pytest.MonkeyPatch, how: Any, verdict: str) -> None:
    witness = Witness(np.array([0.25, 1], np.float32), np.array([3], np.float32), 1)

    def run(found: bool) -> Answer:
        def fake(task: str, payload: Any, *, deadline: float, memory_bytes: int, on_message: Callable[[Any], None]) -> Ended:
            on_message({"domains": 7})
            if found:
                on_message({"witness": witness.as_dict()})
            return Ended(how, None, 0)

        monkeypatch.setattr(ask, "run_limited", fake)
        return ask.verify_property(Path("m.onnx"), Path("p.vnnlib"), timeout=1.0, memory="500MB")

    without, with_ = run(False), run(True)
    assert (without.verdict, without.witness, without.domains) == (verdict, None, 7)
    assert ("--memory" in without.text()) == (verdict == "unknown")
    assert with_.verdict == "sat"
    assert with_.witness is not None
    assert with_.witness.text() == witness.text()


def test_answers_survive_the_way_between_processes() -> None:
    exact = Witness(np.array([0.1], np.float32), np.array([-1e-30], np.float32), 1, ("0.1",))
    answer = Answer("sat", "real", exact, 1.5, 3)
    again = Answer.from_dict(answer.as_dict())
    assert again.text() == answer.text()
    assert "(X_0 0.1)" in again.text()
    assert again.witness is not None
    assert again.witness.inputs.tolist() == exact.inputs.tolist()


@pytest.mark.parametrize(("text", "size"), [("500MB", 500 * 10**6), ("4GiB", 4 * 2**30), ("1.5 GB", 1_500_000_000), ("20000B", 20000)])
def test_sizes_of_memory(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "4", "lots", "-1GB", "1e9B", "0MB", "4gib", "4 G iB", "9" * 5000 + "B", "nanMB"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="4GiB or 500MB") as raised:
        parse_memory(text)
    assert len(str(raised.value)) < 200


def test_what_the_system_says() -> None:
    assert 2**20 < free_memory() < 2**50
    assert 10 * MIB < resident(os.getpid()) < 2**40
    assert resident(2**22 + 1) == 0
    assert 0 <= time.monotonic() - process_started() < 24 * 3600


def test_a_timeout_that_is_no_time_is_refused() -> None:
    for wrong in (-1.0, float("nan")):
        with pytest.raises(InputError, match="is no time"):
            ask.verify_property(Path("m"), Path("p"), timeout=wrong)


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A property of a deep random network on a large box, near what sampling attains: no search settles it soon."""
    folder = tmp_path_factory.mktemp("hard")
    rng = np.random.default_rng(1)
    nodes: list[Gemm | Relu] = []
    params, width, name = {}, 30, "x"
    for i in range(6):
        inputs, outputs = (width if i else 8), (width if i < 5 else 1)
        params |= {f"w{i}": (rng.normal(size=(outputs, inputs)) * 1.6 / inputs**0.5).astype(np.float32)}
        params |= {f"b{i}": rng.normal(size=outputs).astype(np.float32) * np.float32(0.3)}
        nodes.append(Gemm(name=f"z{i}", inputs=(name,), shape=(outputs,), weight=f"w{i}", bias=f"b{i}"))
        name = f"z{i}"
        if i < 5:
            nodes.append(Relu(name=f"a{i}", inputs=(name,), shape=(outputs,)))
            name = f"a{i}"
    graph = Graph("x", (8,), tuple(nodes), name, params)
    (folder / "m.onnx").write_bytes(to_onnx(graph).SerializeToString())
    x = rng.uniform(-2, 2, size=(20000, 8))
    for i in range(6):
        x = x @ params[f"w{i}"].T + params[f"b{i}"]
        x = np.maximum(x, 0) if i < 5 else x
    lines = [f"(declare-const X_{i} Real)(assert (>= X_{i} -2))(assert (<= X_{i} 2))" for i in range(8)]
    lines += ["(declare-const Y_0 Real)", f"(assert (<= Y_0 {x.min() * 1.4 - 0.4 * x.mean():.4f}))"]
    (folder / "p.vnnlib").write_text("\n".join(lines))
    return folder / "m.onnx", folder / "p.vnnlib"


def test_a_hard_query_ends_in_time(hard: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "vsparse", "verify", str(hard[0]), "--property", str(hard[1]), "--timeout", "6", "--contract", "real"]
    # How long an interpreter takes to start, at the load that there is: there are two of them.
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, vsparse.ask"], check=True, timeout=60)
    starting = time.monotonic() - began
    began = time.monotonic()
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    seconds = time.monotonic() - began
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("timeout\n; contract real")
    assert 5 < seconds < 6 * 1.1 + 2 * max(1.0, starting)


def test_memory_that_is_too_little_is_an_honest_unknown(hard: tuple[Path, Path]) -> None:
    answer = ask.verify_property(*hard, memory="60MB", timeout=60)
    assert answer.verdict == "unknown"
    assert "57 MiB" in answer.note
    assert "--memory" in answer.note
    assert answer.seconds < 30


def test_the_search_dies_with_the_command(hard: tuple[Path, Path]) -> None:
    process = subprocess.Popen([sys.executable, "-m", "vsparse", "verify", str(hard[0]), "--property", str(hard[1])])
    try:
        children: list[int] = []
        for _ in range(400):
            folder = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            children = [int(child) for child in folder.read_text().split()]
            if children:
                break
            time.sleep(0.05)
        assert len(children) == 1
        time.sleep(0.3)  # until the child has told the system whose child it is
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert gone(children[0])
