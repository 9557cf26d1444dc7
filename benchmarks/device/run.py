"""Is every form of an artifact inside its certified enclosures on a 64-bit Arm, and what does its C certify there?

Usage: python benchmarks/device/run.py [--artifact DIR] [--seconds 2] [--frames 400] [--out FILE]

Starts the emulated device of aarch64.sh, builds digits for aarch64.toml with every precision and the live certificate (or takes an
artifact that was built so), measures and audits it by `vsparse profile --host`, compares the verdicts of its live C there with those
here, bit by bit, and writes what was found. Ends with 1 where an audit failed or a bit differs. Times are of an emulator.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "profile"))

import numpy as np
from emulated import NAME, TARGET, Emulated
from live_there import answers_there

import vsparse
from vsparse.artifact.device import DEVICE_RESULTS, DeviceResults
from vsparse.data import load
from vsparse.errors import UnavailableError
from vsparse.files import write_json
from vsparse.recipe import load_recipe
from vsparse.stages.profile import read_results

HERE = Path(__file__).resolve().parent
BUILD = ["digits", "--target", str(TARGET), "--set", "deploy.live=true", "--set", 'export.precisions=["auto"]']
LIVE = (("sequential", "model", "vsparse"), ("int8-c", "model.int8", "vsparse_int8"))


def command(*arguments: str, **environment: str) -> float:
    """Runs vsparse, and returns the seconds that it took."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "vsparse", *arguments], check=True, env={**os.environ, **environment})
    return time.monotonic() - begin


def forms_of(found: DeviceResults) -> list[dict[str, Any]]:
    """Returns what was audited and how it ran, of each form."""
    rows = []
    for one in found.measurements:
        latency, told = one.measured(found.device), one.model_extra or {}
        rows.append(
            {
                "form": one.role,
                "file": one.file,
                "sha256": one.sha256,
                "contract": told.get("contract"),
                "runtime": None if one.runtime is None else f"{one.runtime.name} {one.runtime.version}",
                "gates": [gate.model_dump(mode="json") for gate in one.gates],
                "emulated_ms": None if latency is None else {"p50": latency.p50, "p90": latency.p90, "p99": latency.p99},
                "runs_timed": None if one.latency is None else one.latency.runs_timed,
            }
        )
    return rows


def live_of(device: Emulated, artifact: Path, count: int) -> list[dict[str, Any]]:
    """Compares the verdicts of the C there with those here, on test samples: at the recipe's radius, and the radius that each reaches."""
    recipe = load_recipe(str(artifact / "recipe.toml"))
    frames = np.ascontiguousarray(load(recipe.data, None, recipe.train.seed).test.inputs(slice(count)), "<f4")
    rows = []
    for form, name, prefix in LIVE:
        here = vsparse.live(artifact, form=form)
        with tempfile.TemporaryDirectory(prefix="vsparse-live-") as scratch:
            there = answers_there(device, artifact / "device", Path(scratch), name, prefix, frames, here.epsilon)
        expected = [(one.label, one.certified, one.margin, one.radius) for one in here(frames, here.epsilon, radius=True)]
        rows.append(
            {
                "form": form,
                "frames": len(expected),
                "epsilon": here.epsilon,
                "certified_there": sum(one[1] for one in there),
                "certified_here": sum(one[1] for one in expected),
                "different_answers": sum(a != b for a, b in zip(there, expected, strict=True)),
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    given = parser.parse_args()
    begin = time.monotonic()
    device = Emulated()
    started_s = time.monotonic() - begin
    if device.refused:
        raise UnavailableError(device.refused)
    with tempfile.TemporaryDirectory(prefix="vsparse-device-") as folder:
        try:
            artifact = Path(folder) / "digits"
            if given.artifact is None:
                command("build", *BUILD, "--out", str(artifact))
            else:
                shutil.copytree(given.artifact, artifact)
            asked = ["profile", str(artifact), "--host", NAME, "--seconds", f"{given.seconds:g}", "--runs", "20"]
            profile_s = command(*asked, VSPARSE_SSH=device.command)
            left = device.left()
            found = read_results(artifact / DEVICE_RESULTS)
            extra = found.model_extra or {}
            forms, live = forms_of(found), live_of(device, artifact, given.frames)
            report = {
                "question": "is every form inside its enclosures on a 64-bit Arm under emulation?",
                "note": "executed by qemu's user emulation: numbers are those of the processor, times (emulated_ms) mean nothing",
                "commands": [
                    "benchmarks/device/aarch64.sh start",
                    "vsparse build " + " ".join(one.replace(str(TARGET), "benchmarks/device/aarch64.toml") for one in BUILD),
                    "vsparse " + " ".join(asked).replace(str(artifact), "ARTIFACT"),
                ],
                "start_s": round(started_s, 1),
                "profile_s": round(profile_s, 1),
                "device": found.device,
                "runtimes": extra.get("runtimes"),
                "packages": device.packages(),
                "certificate_sha256": extra.get("certificate_sha256"),
                "gates": [gate.model_dump(mode="json") for gate in found.gates],
                "forms": forms,
                "skipped": extra.get("skipped"),
                "live": live,
                "left_on_the_device": {"processes": len(left[0]), "files": len(left[1])},
            }
        finally:
            device.ended()
    write_json(given.out, report)
    failed = [one["form"] for one in forms if any(gate["passed"] is False for gate in one["gates"])]
    failed += [one["form"] for one in live if one["different_answers"]]
    print(f"{len(forms)} forms, failed: {', '.join(failed) or 'none'}; {given.out}")
    return 1 if failed or any(left) else 0


if __name__ == "__main__":
    sys.exit(main())
