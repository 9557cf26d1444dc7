"""All 52 VNN-COMP 2021 instances through the command line: verdict, known answer, time and peak memory of each.

`python benchmarks/vnncomp/run.py [CATEGORY …] [--only TEXT] [--force]` runs what has no result yet, one process at a time, keeps each
result at once, and prints the table of all.

Witnesses of `sat` are checked here with nothing of vsparse: membership in exact decimals, outputs by ONNX Runtime.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
TIMEOUTS = {"acasxu": 120, "mnistfc": 120, "oval21": 300}
JOBS = 2
# Seconds of α,β-CROWN (December 2025, one thread, the best of three configurations), start-up of 4 s included, where it was measured.
COMPARED = {
    ("mnistfc", "prop_0_0.03"): 5.8,
    ("mnistfc", "prop_1_0.03"): 19.0,
    ("oval21", "img4549"): 8.0,
    ("oval21", "img5303"): 15.5,
    ("acasxu", "1_1 prop_3"): 7.4,
}


def main() -> int:
    """Runs what is missing and prints every result; returns 1 where a verdict contradicts a known answer or a witness fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("categories", nargs="*", metavar="CATEGORY", help=", ".join(TIMEOUTS))
    parser.add_argument("--only", default="", help="run only instances whose name contains this text")
    parser.add_argument("--force", action="store_true", help="run again what has a result")
    options = parser.parse_args()
    data = os.environ.get("VSPARSE_DATA")
    if data is None or not (folder := Path(data).parent / "vnncomp").is_dir():
        print("set VSPARSE_DATA to the data folder that has vnncomp beside it", file=sys.stderr)
        return 2
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    instances = list(csv.DictReader((folder / "instances.csv").open()))
    for instance in instances:
        name = title(instance)
        if instance["category"] not in (options.categories or TIMEOUTS) or options.only not in name:
            continue
        if options.force or name not in results or results[name]["verdict"].startswith("error"):
            results[name] = {**measure(folder, instance), "machine": machine()}
            write(results)
            print(line(name, results[name]), flush=True)
    print(table(instances, results))
    wrong = [name for name, result in results.items() if result["agreement"] == "WRONG"]
    return 1 if wrong else 0


def title(instance: dict[str, str]) -> str:
    """Returns a short name: acasxu 1_1 prop_3."""
    prop = Path(instance["vnnlib"]).name.removesuffix(".vnnlib.gz").removeprefix("cifar_base_kw-")
    net = re.search(r"run2a_(\d_\d)", instance["onnx"])
    return " ".join([instance["category"], *([net[1]] if net else []), prop])


def measure(folder: Path, instance: dict[str, str]) -> dict[str, Any]:
    """Runs one instance as a process of its own and returns what came of it."""
    model, prop = folder / instance["onnx"], folder / instance["vnnlib"]
    limit = TIMEOUTS[instance["category"]]
    command = [sys.executable, "-m", "vsparse", "verify", str(model), "--property", str(prop), "--contract", "real"]
    command += ["--timeout", str(limit), "--jobs", str(JOBS)]
    load = os.getloadavg()[0]
    with tempfile.TemporaryFile("w+") as out_file, tempfile.TemporaryFile("w+") as err_file:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=out_file, stderr=err_file, env={**os.environ, "OMP_NUM_THREADS": "1"})
        watch = threading.Timer(limit + 60, process.kill)
        watch.start()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        watch.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (out_file, err_file):
            stream.seek(0)
            texts.append(stream.read())
    out, err = texts
    verdict = out.split("\n", 1)[0] if process.returncode == 0 else f"error {process.returncode}"
    witness = check_witness(model, prop, out) if verdict == "sat" else None
    return {
        "verdict": verdict,
        "known": instance["verdict"],
        "tools": f"{instance['tools_agreeing']}:{instance['tools_disagreeing']}",
        "agreement": agreement(verdict, instance["verdict"], witness),
        "witness": witness,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": used.ru_maxrss // 1024,
        "load_before": round(load, 1),
        "compared": next((s for (kind, text), s in COMPARED.items() if kind == instance["category"] and text in title(instance)), None),
        "stderr": err.strip()[-300:],
    }


def agreement(verdict: str, known: str, witness: str | None) -> str:
    """Returns how a verdict compares with the known answer: agrees, WRONG, new (none was known) or open (we have none)."""
    if witness not in (None, "replayed", "replayed, inputs rounded to float32"):
        return "WRONG"
    if verdict not in ("sat", "unsat"):
        return "open"
    if known == "unknown":
        return "new"
    return "agrees" if verdict == known else "WRONG"


def check_witness(model: Path, prop: Path, out: str) -> str:
    """Returns "replayed" where the printed witness is one (with a label where inputs had to be rounded), and else what is wrong with it.

    The competition's files assert (<= X_i c), (>= X_i c), and outputs either directly or as one (or (and …) …) of comparisons; this reads
    just that.
    """
    values = {name: Decimal(value) for name, value in re.findall(r"\(([XY]_\d+) ([^\s()]+)\)", out)}
    text = re.sub(r";[^\n]*", "", gzip.decompress(prop.read_bytes()).decode())
    for operator, i, bound in re.findall(r"\(assert \((<=|>=) X_(\d+) ([^\s()]+)\)\)", text):
        x = values[f"X_{i}"]
        if not (x <= Decimal(bound) if operator == "<=" else x >= Decimal(bound)):
            return f"X_{i} is outside of the box"
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    count = sum(name[0] == "X" for name in values)
    point = np.array([float(values[f"X_{i}"]) for i in range(count)], dtype=np.float32)
    # Inputs that are confined to decimals no float32 number equals are replayed rounded, as the competition does, and the result says so.
    rounded = any(Decimal(float(value)) != values[f"X_{i}"] for i, value in enumerate(point))
    shape = [side if isinstance(side, int) else 1 for side in source.shape]
    outputs = session.run(None, {source.name: point.reshape(shape)})[0].ravel()
    if any(Decimal(float(value)) != values[f"Y_{j}"] for j, value in enumerate(outputs)):
        return "ONNX Runtime computes other outputs"

    def side(name: str) -> Decimal:
        return Decimal(float(outputs[int(name[2:])])) if name.startswith("Y_") else Decimal(name)

    def true(comparison: tuple[str, str, str]) -> bool:
        operator, a, b = comparison
        return side(a) <= side(b) if operator == "<=" else side(a) >= side(b)

    compared = r"\((<=|>=) (\S+) ([^\s()]+)\)"
    asserted = [one for one in re.findall(r"\(assert " + compared + r"\)", text) if "Y_" in one[1] + one[2]]
    choices = re.findall(r"\(and ((?:\((?:<=|>=) \S+ [^\s()]+\)\s*)+)\)", text)
    if not all(true(one) for one in asserted):
        return "an asserted output constraint fails"
    if choices and not any(all(true(one) for one in re.findall(compared, choice)) for choice in choices):
        return "no disjunct of the outputs holds"
    if rounded:
        return "replayed, inputs rounded to float32"
    return "replayed" if asserted or choices else "the property says nothing about outputs"


def machine() -> str:
    """Returns what the times were measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), platform.machine()
    )
    return f"{model}, {JOBS} jobs, onnxruntime {onnxruntime.__version__}"


def line(name: str, result: dict[str, Any]) -> str:
    """Returns one result in a line."""
    verdicts = f"{name:44} {result['verdict']:8} known {result['known']:8} {result['agreement']:7}"
    return f"{verdicts} {result['seconds']:7.2f} s {result['peak_mb']:6} MB"


def table(instances: list[dict[str, str]], results: dict[str, Any]) -> str:
    """Returns the results as a Markdown table with a summary below."""
    rows = ["| instance | verdict | known (tools for : against) | agreement | seconds | CPU seconds | peak MB | α,β-CROWN seconds |"]
    rows.append("| --- | --- | --- | --- | ---: | ---: | ---: | ---: |")
    done = [(name, results[name]) for name in map(title, instances) if name in results]
    for name, r in done:
        compared = "" if r["compared"] is None else f"{r['compared']:g}"
        witness = "" if r["witness"] is None else f", witness {r['witness']}"
        rows.append(
            f"| {name} | {r['verdict']} | {r['known']} ({r['tools']}) | {r['agreement']}{witness} | {r['seconds']:.1f} | "
            f"{r['cpu_seconds']:.1f} | {r['peak_mb']} | {compared} |"
        )
    settled = sum(r["verdict"] in ("sat", "unsat") for _, r in done)
    wrong = sum(r["agreement"] == "WRONG" for _, r in done)
    return "\n".join(
        [*rows, "", f"{settled} of {len(instances)} settled ({len(done)} run), {wrong} contradict a known answer or fail to replay."]
    )


def write(results: dict[str, Any]) -> None:
    """Writes the results in one step, so that an interrupted run keeps what it had."""
    new = RESULTS.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    new.replace(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
