"""What the flags of noise say of runs on the machine as it is, and of runs beside busy loops.

    python benchmarks/device/noise.py --runs 10 --out benchmarks/device/noise.json

Start it on a quiet machine: then no run as it is may be flagged, and every run beside a loop must be. Ends with 1 where one is not. The
values that are held against the limits stand beside, so that limits can be seen to lie between the two.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, pstdev
from typing import Any

from compare import network

from vsparse.stages.export.device.noise import NOISE_LIMITS
from vsparse.stages.profile import describe_machine, profile_onnx


def started_loop() -> int:
    """Starts a busy loop that is nobody's child here, and returns its process id."""
    command = ["sh", "-c", '"$@" >/dev/null 2>&1 & echo $!', "sh", sys.executable, "-c", "while True: pass"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measured(model: Path, seconds: float) -> dict[str, Any]:
    """Times a network, and returns the values that limits are about, and which flags it got."""
    found = profile_onnx(model, seconds=seconds)
    medians = [median(block) for block in found.blocks if block]
    share = found.settings["processor_share"]
    return {
        "tail": found.p99 / found.p50,
        "drift": pstdev(medians) / (sum(medians) / len(medians)),
        "waited": None if not isinstance(share, float) else 1 - share,
        "other processes": found.settings["others_cores"],
        "latency_ms_p50": found.p50,
        "flags": [reason.name for reason in found.noise or ()],
    }


def main() -> int:
    """Measures, writes the file, and says what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="of each kind")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--loops", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {"as it is": [], "beside loops": []}
    with tempfile.TemporaryDirectory() as folder:
        models = {
            f"{layers} layers of {width}": network(Path(folder) / f"{width}.onnx", layers, width) for layers, width in ((2, 32), (4, 512))
        }
        for number in range(given.runs):
            for kind, taken in rows.items():
                loops = [started_loop() for _ in range(given.loops)] if kind == "beside loops" else []
                try:
                    taken += [{"network": name, **measured(model, given.seconds)} for name, model in models.items()]
                finally:
                    for loop in loops:
                        os.kill(loop, signal.SIGKILL)
            print(number + 1, {kind: taken[-1]["flags"] for kind, taken in rows.items()}, file=sys.stderr, flush=True)
    flagged = {kind: sum(bool(one["flags"]) for one in taken) for kind, taken in rows.items()}
    content = {
        "schema_version": 1,
        "machine": describe_machine(),
        "limits": NOISE_LIMITS,
        "loops": given.loops,
        "flagged": flagged,
        "runs": rows,
    }
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    total = len(rows["as it is"])
    print(f"flagged: {flagged['as it is']} of {total} as it is, {flagged['beside loops']} of {total} beside {given.loops} busy loop(s)")
    return 0 if flagged == {"as it is": 0, "beside loops": total} else 1


if __name__ == "__main__":
    sys.exit(main())
