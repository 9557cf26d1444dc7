"""Builds a recipe with every deployed form, then checks the artifact: accuracies, sizes of proofs, times of checking.

Usage: python benchmarks/forms/run.py RECIPE [--data DIR] [--precisions fp16 int8] [--seed 0] [--artifact DIR] [--out FILE]

`--artifact` takes a finished artifact of that recipe instead of building one. Accuracies are counted from the claims, and not taken from
a summary. Times are processor seconds of the checking process and its children.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vsparse.files import write_json


def form(path: Path) -> dict[str, Any]:
    """Returns what the claims of one certificate add up to."""
    certificate = json.loads(path.read_text())
    claims = certificate["claims"]
    correct = [claim for claim in claims if claim["predicted"] == claim["label"]]
    searched = sum(claim["proof"] == "proofs.npz" for claim in claims)
    audit = path.with_name("audit.json")
    return {
        "file": certificate["model"]["file"],
        "contract": certificate["contract"]["name"],
        "epsilon": certificate["property"]["epsilon"],
        "samples": len(claims),
        "clean": len(correct),
        "robust": sum(claim["verdict"] != "falsified" for claim in correct),
        "certified": sum(claim["verdict"] == "certified" for claim in correct),
        "unknown": sum(claim["verdict"] == "unknown" for claim in claims),
        "searched_proofs": searched,
        "bytes_per_proof": round((certificate.get("proofs_bytes") or 0) / searched) if searched else 0,
        "claims_s": round(sum(claim["time_ms"] for claim in claims) / 1000, 1),
        "audit_violations": json.loads(audit.read_text())["violations"] if audit.exists() else None,
    }


def checked(command: list[str]) -> dict[str, Any]:
    """Runs a checker and returns what it confirmed and the processor seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", *command, "--json"], stdout=subprocess.PIPE, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = json.loads(done.stdout)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"command": " ".join(command[:-1]), "verdict": said["verdict"], "confirmed": said["confirmed"], "cpu_s": round(seconds, 1)}


def main() -> int:
    """Runs the benchmark; exit 0 when both checkers confirm every certified claim."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--precisions", nargs="*", default=["fp16", "int8"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        artifact = options.artifact or Path(temporary) / "artifact"
        if options.artifact is None:
            command = [sys.executable, "-m", "vsparse", "build", options.recipe, "--seed", str(options.seed), "--out", str(artifact)]
            command += ["--set", f"export.precisions={json.dumps(options.precisions)}"]
            command += ["--data", options.data] if options.data else []
            if subprocess.run(command, check=False).returncode not in (0, 1):  # a gate may fail; the artifact is there all the same
                return 1
        forms = {path.parent.name: form(path) for path in sorted((artifact / "certificate").glob("**/certificate.json"))}
        forms["sparse"] = forms.pop("certificate")
        checks = [checked([checker, *rest, str(artifact)]) for checker, *rest in (["vsparse_check"], ["vsparse", "check"])]
    certified = sum(row["certified"] for row in forms.values())
    result = {
        "schema_version": 1,
        "recipe": options.recipe,
        "seed": options.seed,
        "machine": f"{platform.machine()}, {_processor()}",
        "forms": forms,
        "certified_claims": certified,
        "checks": checks,
    }
    write_json(options.out or Path(__file__).with_name(f"results-{options.recipe}.json"), result)
    print(json.dumps(result, indent=1))
    return 0 if all(check["verdict"] == "confirmed" and check["confirmed"] == certified for check in checks) else 1


def _processor() -> str:
    """Returns the processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
