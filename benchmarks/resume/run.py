"""Kills `vsparse build` with SIGKILL at random moments and checks that it resumes to the certificate of an undisturbed build.

Usage: python benchmarks/resume/run.py [--kills 20] [--recipe digits] [--seed 0] [--out results.json]

First, builds from an empty cache are killed while they work; then builds that only replace a finished artifact, so that kills
fall into that moment too. After each kill the artifact must be absent or intact, and no worker may be left running. The
build is started again until it ends by itself; a new one is begun, in an empty cache, until there were enough kills.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vsparse.artifact import CERTIFICATE, DENSE_CERTIFICATE, RECIPE, require_intact
from vsparse.artifact.certificate import read_certificate
from vsparse.files import write_json
from vsparse.recipe import load_recipe


def start(recipe: str, folder: Path, *settings: str) -> subprocess.Popen[bytes]:
    """Starts a build whose cache and artifact lie in `folder`."""
    environment = {**os.environ, "VSPARSE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "vsparse", "build", recipe, "--out", str(folder / "artifact")]
    command += [part for setting in settings for part in ("--set", setting)]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def workers_of(folder: Path) -> list[int]:
    """Returns the processes whose environment names the cache in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"VSPARSE_CACHE={folder / 'cache'}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def certificates(folder: Path) -> dict[str, str]:
    """Returns the hashes of an artifact's certificates, in which times do not count."""
    require_intact(folder / "artifact")
    return {
        name: read_certificate(folder / "artifact" / name).digest()
        for name in (CERTIFICATE, DENSE_CERTIFICATE)
        if (folder / "artifact" / name).exists()
    }


def replacements(recipe: str, folder: Path, kills: int, chance: random.Random) -> tuple[list[dict[str, object]], list[str]]:
    """Kills builds that replace a finished artifact by one with another gate; returns the kills and what went wrong."""
    begun = time.monotonic()
    start(recipe, folder, "gates.certified_accuracy=0.01").wait()
    whole = time.monotonic() - begun
    records: list[dict[str, object]] = []
    problems: list[str] = []
    for number in range(kills):
        old = load_recipe(str(folder / "artifact" / RECIPE)).gates.certified_accuracy
        wanted = round(0.02 + 0.01 * number, 2)
        process = start(recipe, folder, f"gates.certified_accuracy={wanted}")
        # Importing takes most of such a build; the second half is where files are written.
        moment = chance.uniform(whole * 0.5, whole * 1.05)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        require_intact(folder / "artifact")
        found = load_recipe(str(folder / "artifact" / RECIPE)).gates.certified_accuracy
        state = "new" if found == wanted else "old"
        if found not in (old, wanted):
            problems.append(f"replacement {number}: the artifact is neither the old nor the new one")
        records.append({"after_s": round(moment, 2), "killed": process.returncode == -signal.SIGKILL, "artifact": state})
    start(recipe, folder, "gates.certified_accuracy=0.01").wait()
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    if left:
        problems.append(f"{left} were left behind")
    return records, problems


def main() -> int:
    """Runs the benchmark; exit 0 when every check held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        reference = Path(temporary) / "reference"
        reference.mkdir()
        begun = time.monotonic()
        code = start(options.recipe, reference).wait()
        whole = time.monotonic() - begun
        wanted = certificates(reference)
        kills: list[dict[str, object]] = []
        problems: list[str] = []
        builds = 0
        while len(kills) < options.kills:
            folder = Path(temporary) / f"build-{builds}"
            folder.mkdir()
            builds += 1
            while True:
                process = start(options.recipe, folder)
                moment = chance.uniform(0.5, whole * 0.6)
                try:
                    process.wait(moment if len(kills) < options.kills else None)
                    break
                except subprocess.TimeoutExpired:
                    os.kill(process.pid, signal.SIGKILL)
                    process.wait()
                time.sleep(0.5)
                left = workers_of(folder)
                artifact = folder / "artifact"
                state = "absent"
                if artifact.exists():
                    require_intact(artifact)
                    state = "intact"
                if left:
                    problems.append(f"kill {len(kills)}: processes {left} outlived the build")
                kills.append({"build": builds, "after_s": round(moment, 2), "artifact": state})
                print(f"kill {len(kills)} after {moment:.1f} s: artifact {state}", file=sys.stderr, flush=True)
            if process.returncode != code:
                problems.append(f"build {builds} ended with {process.returncode}, the undisturbed one with {code}")
            if certificates(folder) != wanted:
                problems.append(f"build {builds} ended with another certificate")
        replaced, further = replacements(options.recipe, reference, options.kills, chance)
        problems += further
        if certificates(reference) != wanted:
            problems.append("a replaced artifact ended with another certificate")
        result = {
            "schema_version": 1,
            "replacements": replaced,
            "recipe": options.recipe,
            "undisturbed_s": round(whole, 1),
            "exit_code": code,
            "kills": kills,
            "builds": builds,
            "certificates": wanted,
            "problems": problems,
        }
    write_json(options.out, result)
    print(json.dumps({"kills": len(kills), "replacements": len(replaced), "builds": builds, "problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
