"""Are limits kept? `vsparse verify --property … --timeout T --memory M` on hard generated queries, watched from outside.

`python benchmarks/limits/run.py [--runs 200] [--kinds KIND …] [--first SEED]` adds its runs to results.json and prints a summary; the exit
code is 1 where a limit was not kept, a process was left behind, or a command failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from queries import KINDS, write_query

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
VERDICTS = ("unsat", "sat", "unknown", "timeout")
# A limit of time counts as kept within this share of it and so many seconds.
SHARE, SECONDS = 0.10, 2.0
# One of memory within this share: what is taken between two looks of the watcher.
MEMORY_SHARE = 0.25
TIMEOUTS = (1, 2, 3, 5, 7, 10)
MEMORIES = ("500MB", "1GB", "4GB")
LOOK = 0.02
ACAS = ("ACASXU_run2a_3_3_batch_2000.onnx", "prop_2.vnnlib.gz")


def main() -> int:
    """Runs and prints; returns 1 where something was not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kinds", nargs="*", default=[*KINDS, "acas"], choices=[*KINDS, "acas"])
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kinds = [kind for kind in options.kinds if kind != "acas" or acas() is not None]
    for seed in range(options.first, options.first + options.runs):
        kind = kinds[seed % len(kinds)]
        dice = np.random.default_rng(seed)
        limit, memory = int(dice.choice(TIMEOUTS)), str(dice.choice(MEMORIES))
        with tempfile.TemporaryDirectory() as folder:
            model, prop, contract = (*(acas() or ()), "real") if kind == "acas" else write_query(Path(folder), kind, seed)
            result = measure(model, prop, contract, limit, memory)
        results[f"{seed} {kind}"] = {"kind": kind, "timeout_s": limit, "memory": memory, "contract": contract, **result}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(seed, kind, json.dumps(results[f"{seed} {kind}"]), flush=True)
    print(summary(results))
    return 1 if any(broken(result) for result in results.values()) else 0


def acas() -> tuple[Path, Path] | None:
    """Returns a query that takes long, of VNN-COMP's ACAS Xu, where the files lie beside VSPARSE_DATA."""
    data = os.environ.get("VSPARSE_DATA")
    folder = Path(data).parent / "vnncomp" / "acasxu" if data else Path("/nonexistent")
    return (folder / ACAS[0], folder / ACAS[1]) if (folder / ACAS[0]).exists() else None


def measure(model: Path, prop: Path, contract: str, limit: int, memory: str) -> dict[str, Any]:
    """Runs one command in a session of its own and watches it and all that it starts; the clock starts before the process does."""
    command = [sys.executable, "-m", "vsparse", "verify", str(model), "--property", str(prop), "--contract", contract]
    command += ["--timeout", str(limit), "--memory", memory, "--json"]
    load = os.getloadavg()[0]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
        peak, seen = 0, {process.pid}
        while process.poll() is None and time.monotonic() - started < 10 * limit + 60:
            family = descendants(process.pid)
            seen |= set(family)
            peak = max(peak, sum(family[one] for one in family if one != process.pid))
            time.sleep(LOOK)
        seconds = time.monotonic() - started
        hung = process.poll() is None
        if hung:
            process.kill()
            process.wait()
        time.sleep(0.1)
        left = [one for one in seen if Path(f"/proc/{one}/statm").exists() and resident(one)]
        out.seek(0)
        err.seek(0)
        text, complaint = out.read(), err.read()
    answer: dict[str, Any] = {}
    with suppress(ValueError):
        answer = json.loads(text)
    return {
        "verdict": answer.get("verdict", f"error {process.returncode}"),
        "reason": answer.get("reason", complaint.strip()[-200:]),
        "domains": answer.get("domains"),
        "exit_code": process.returncode,
        "seconds": round(seconds, 2),
        "overrun_s": round(seconds - limit, 2),
        "peak_mb": peak // 10**6,
        "left_behind": len(left),
        "hung": hung,
        "load_before": round(load, 1),
    }


def resident(process: int) -> int:
    """Returns the bytes that a process holds; 0 for one that has ended."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def descendants(process: int) -> dict[int, int]:
    """Returns the bytes that a process and those it started hold, by process."""
    found, todo = {}, [process]
    while todo:
        one = todo.pop()
        found[one] = resident(one)
        with suppress(OSError, ValueError):
            for thread in Path(f"/proc/{one}/task").iterdir():
                todo += [int(child) for child in (thread / "children").read_text().split()]
    return found


def megabytes(memory: str) -> int:
    """Returns the megabytes of a limit as this script writes it."""
    return int(float(memory[:-2]) * (1000 if memory.endswith("GB") else 1))


def broken(result: dict[str, Any]) -> list[str]:
    """Returns what a run did not keep."""
    wrong = []
    if result["hung"] or result["overrun_s"] > SHARE * result["timeout_s"] + SECONDS:
        wrong.append("time")
    if result["peak_mb"] > megabytes(result["memory"]) * (1 + MEMORY_SHARE):
        wrong.append("memory")
    if result["left_behind"]:
        wrong.append("processes left")
    if result["exit_code"] != 0 or result["verdict"] not in VERDICTS:
        wrong.append("no answer")
    return wrong


def summary(results: dict[str, Any]) -> str:
    """Returns a table by kind, and what was not kept."""
    lines = ["| kind | runs | unsat | sat | unknown | timeout | largest overrun, s | largest memory, MB |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in [*dict.fromkeys(result["kind"] for result in results.values())]:
        some = [result for result in results.values() if result["kind"] == kind]
        counts = Counter(result["verdict"] for result in some)
        lines.append(
            f"| {kind} | {len(some)} | {' | '.join(str(counts[verdict]) for verdict in VERDICTS)} | "
            f"{max(result['overrun_s'] for result in some):.2f} | {max(result['peak_mb'] for result in some)} |"
        )
    wrong = {name: broken(result) for name, result in results.items() if broken(result)}
    lines += ["", f"{len(results)} runs, {len(wrong)} broke a limit: {wrong}" if wrong else f"{len(results)} runs, every limit kept."]
    lines.append(f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
