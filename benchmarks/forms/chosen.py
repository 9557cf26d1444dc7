"""Records the table of forms of finished builds, which one was chosen and why, and whether the checker confirms every claim.

Usage: python benchmarks/forms/chosen.py ARTIFACT… [--no-check] [--out FILE]

Latencies are left out: an artifact may be for a device that is not here, and latency.py times files in alternation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from vsparse.artifact.layout import tool_versions
from vsparse.files import write_json


def checked(artifact: Path) -> dict[str, Any]:
    """Returns what the checker says of an artifact."""
    command = [sys.executable, "-m", "vsparse", "check", str(artifact), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout) if done.stdout.strip() else {}
    return {"exit_code": done.returncode, **{key: found.get(key) for key in ("certified", "confirmed", "problem")}}


def record(artifact: Path, check: bool) -> dict[str, Any]:
    """Returns what a benchmark keeps of a finished build."""
    choice = json.loads((artifact / "choice.json").read_text(encoding="utf-8"))
    gates = json.loads((artifact / "gates.json").read_text(encoding="utf-8"))
    forms = {}
    for row in choice["rows"]:
        certificate = json.loads((artifact / _folder(row["name"]) / "certificate.json").read_text(encoding="utf-8"))
        kept = ("contract", "certified_accuracy", "clean_accuracy", "points_lost", "bytes", "competes", "why_not")
        counted = {key: certificate["summary"][key] for key in ("samples", "certified", "falsified", "unknown")}
        methods = Counter(claim["method"] for claim in certificate["claims"] if claim["verdict"] == "certified")
        forms[row["name"]] = {**{key: row[key] for key in kept}, **counted, "methods": dict(sorted(methods.items()))}
    found = {
        "artifact": artifact.name,
        "chosen": choice["chosen"],
        "reason": choice["reason"],
        "gates_failed": [gate["name"] for gate in gates if gate["passed"] is False],
        "forms": forms,
    }
    return {**found, "check": checked(artifact)} if check else found


def _folder(name: str) -> str:
    return "certificate" if name == "sparse" else f"certificate/{name}"


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for artifact in given.artifacts:
        rows.append(record(artifact, not given.no_check))
        sys.stderr.write(f"{json.dumps(rows[-1], indent=1)}\n")
    if given.out is not None:
        write_json(given.out, {"tools": tool_versions(), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
