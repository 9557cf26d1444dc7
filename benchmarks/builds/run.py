"""Builds a recipe from an empty cache, once for each seed, and keeps figures, gates and times.

Usage: python benchmarks/builds/run.py RECIPE [--data DIR] [--seeds 0 1 2] [--set section.key=value] [--keep DIR] [--out FILE]

Each build is a process of its own, timed from outside, set-up of Python included. A second build and one for another target follow each
first one, to see what is done again.
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
from pathlib import Path
from typing import Any

from vsparse.files import write_json


def timed(command: list[str], cache: Path) -> tuple[float, int, dict[str, Any]]:
    """Runs one build and returns its seconds, its exit code and what it printed as JSON."""
    started = time.monotonic()
    done = subprocess.run(command, env={**os.environ, "VSPARSE_CACHE": str(cache)}, stdout=subprocess.PIPE, check=False)
    return time.monotonic() - started, done.returncode, json.loads(done.stdout)


def main() -> int:
    """Runs the benchmark; exit 0 when every build passed its gates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--other-target", default="jetson-orin-nano")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, as for vsparse build")
    parser.add_argument("--keep", type=Path, help="folder to keep the artifacts in")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in options.seeds:
            folder = (options.keep or Path(temporary)) / f"{options.recipe}-seed{seed}"
            cache = Path(temporary) / f"cache-{seed}"
            command = [sys.executable, "-m", "vsparse", "build", options.recipe, "--seed", str(seed), "--json"]
            command += ["--data", options.data] if options.data else []
            command += [part for setting in options.set for part in ("--set", setting)]
            first = timed([*command, "--out", str(folder)], cache)
            second = timed([*command, "--out", str(folder)], cache)
            other = timed([*command, "--out", f"{folder}-{options.other_target}", "--target", options.other_target], cache)
            again = [stage["stage"] for stage in other[2]["stages"] if not stage["reused"]]
            runs.append(
                {
                    "seed": seed,
                    "exit_code": first[1],
                    "build_s": round(first[0], 1),
                    "second_build_s": round(second[0], 1),
                    "other_target_s": round(other[0], 1),
                    "stages_run_for_other_target": again,
                    "figures": first[2]["figures"],
                    "gates": first[2]["gates"],
                    "stage_s": {stage["stage"]: round(stage["seconds"], 1) for stage in first[2]["stages"]},
                }
            )
            print(json.dumps(runs[-1]["figures"]), file=sys.stderr, flush=True)
    result = {
        "schema_version": 1,
        "recipe": options.recipe,
        "settings": options.set,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "runs": runs,
    }
    write_json(options.out or Path(__file__).with_name(f"results-{options.recipe}.json"), result)
    print(json.dumps([{key: run[key] for key in ("seed", "exit_code", "build_s", "second_build_s", "other_target_s")} for run in runs]))
    return max(run["exit_code"] for run in runs)


if __name__ == "__main__":
    sys.exit(main())
