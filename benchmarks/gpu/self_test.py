"""Does the device do what the processor does? The tests of tests/gpu, a short training and a certification on both, side by side.

Usage: python benchmarks/gpu/self_test.py --out FILE [--device cuda]

Trainings of one seed may differ by float32's rounding and what it grows to; verdicts of float64 bounds may differ only where a margin is
within the bounds' own rounding of 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from common import OPSET, describe, write

from vsparse.artifact.document import read_document
from vsparse.artifact.forms import SPARSE
from vsparse.artifact.history import History
from vsparse.artifact.stage_files import HISTORY
from vsparse.contract import CONTRACTS
from vsparse.data import load
from vsparse.recipe import Recipe, load_recipe
from vsparse.stages.compress.task import compress_trained
from vsparse.stages.export.task import export_models
from vsparse.stages.train.task import train_task
from vsparse.stages.verify import certify

TESTS = Path(__file__).parents[2] / "tests" / "gpu"
OBJECTIVES = ("ibp", "crown-ibp", "mtl-ibp", "sabr")
EPOCHS, LONG, SAMPLES = 10, 40, 64
# How far losses of one seed may lie apart after some epochs, and bounds of one network, as a fraction.
LOSS_TOLERANCE, MARGIN_TOLERANCE = 0.05, 1e-9


def tests_of_device(limit: float) -> dict[str, Any]:
    """Returns how many of the tests in tests/gpu passed, failed and were skipped; why not, where they cannot run."""
    if importlib.util.find_spec("pytest") is None:
        return {"ran": False, "reason": "pytest is not installed"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", str(TESTS), f"--junitxml={report}"]
        try:
            subprocess.run(command, cwd=TESTS.parents[1], stdout=sys.stderr, timeout=limit, check=False)
            suite = next(ET.parse(report).getroot().iter("testsuite"))
        except (subprocess.TimeoutExpired, OSError, StopIteration, ET.ParseError) as error:
            return {"ran": False, "reason": f"{type(error).__name__}: {error}"}
        cases = [
            case.get("name", "") for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
        ]
        return {"ran": True, **{key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}, "failed": cases}


def settings(objective: str, device: str, epochs: int = EPOCHS) -> Recipe:
    """Returns the recipe of a short training on the embedded digits."""
    return load_recipe(
        "digits",
        [
            f"train.device={device}",
            f"verify.device={device}",
            f"train.objective={objective}",
            f"train.epochs={epochs}",
            "train.baseline=false",
            OPSET,
            "train.sparse.method=gradual",
        ],
    )


def trained(recipe: Recipe, folder: Path) -> History:
    """Trains into `folder` and returns the history."""
    payload = {"recipe": recipe.model_dump(mode="json"), "data": None, "sparse": True}
    scratch, output = folder / "scratch", folder / "trained"
    for one in (scratch, output):
        one.mkdir(parents=True)
    train_task({**payload, "scratch": str(scratch), "output": str(output)}, lambda message: None)
    return read_document(History, output / HISTORY)


def certified(recipe: Recipe, model: Path) -> list[tuple[str, float]]:
    """Returns verdict and proved margin of the first test samples."""
    splits = load(recipe.data, None, recipe.train.seed)
    found = certify(model, splits.test, recipe.property.perturbation, CONTRACTS["fp32"], recipe.verify, samples=SAMPLES)
    return [(claim.verdict, float("-inf") if claim.margin_lower is None else claim.margin_lower) for claim in found.claims]


def compare_training(device: str, folder: Path) -> dict[str, Any]:
    """Trains each objective on the processor and on the device from one seed, and returns how far their losses lie apart."""
    found: dict[str, Any] = {}
    for objective in OBJECTIVES:
        losses = {
            where: [epoch.loss for epoch in trained(settings(objective, where), folder / objective / where.replace(":", "-")).epochs]
            for where in dict.fromkeys(("cpu", device))
        }
        pairs = list(zip(losses["cpu"], losses[device], strict=True))
        apart = [abs(a - b) / max(abs(a), 1e-6) for a, b in pairs]
        found[objective] = {"losses": losses, "largest_difference": max(apart), "passed": max(apart) <= LOSS_TOLERANCE}
    return found


def compare_verification(device: str, folder: Path) -> dict[str, Any]:
    """Certifies one network on the processor and on the device, and returns where verdicts differ and how far margins lie apart."""
    recipe = settings("ibp", "cpu", LONG)
    trained(recipe, folder)
    packed, exported = folder / "packed", folder / "exported"
    for one in (packed, exported):
        one.mkdir()
    splits = load(recipe.data, None, recipe.train.seed)
    compress_trained(folder / "trained", packed, recipe, splits)
    export_models(packed, None, exported, recipe, splits.train, {SPARSE: "fp32"})
    model = exported / Path(SPARSE.model).name
    here, there = certified(recipe, model), certified(settings("ibp", device, LONG), model)
    differ = [i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a[0] != b[0]]
    both = [(a[1], b[1]) for a, b in zip(here, there, strict=True) if a[0] == b[0] == "certified"]
    # Bounds of searched claims end where the search ended, which float32 may move.
    apart = sorted(abs(a - b) / max(1.0, abs(a)) for a, b in both)
    median = apart[len(apart) // 2] if apart else None
    return {
        "samples": len(here),
        "verdicts_differ": differ,
        "certified": len(both),
        "median_margin_difference": median,
        "passed": not differ and (median is None or median <= MARGIN_TOLERANCE),
    }


def main() -> None:
    """Runs the three parts and writes each as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    content: dict[str, Any] = {"finished": False, "on": describe(arguments.device)}
    with tempfile.TemporaryDirectory() as folder:
        content["training"] = compare_training(arguments.device, Path(folder) / "train")
        write(arguments.out, content)
        content["verification"] = compare_verification(arguments.device, Path(folder) / "verify")
        write(arguments.out, content)
    content["tests"] = tests_of_device(240.0)
    parts = [*content["training"].values(), content["verification"]]
    tests = content["tests"]
    content["passed"] = all(part["passed"] for part in parts) and not (tests.get("failures") or tests.get("errors"))
    write(arguments.out, {**content, "finished": True})
    print(f"self-test: {'passed' if content['passed'] else 'FAILED'}", file=sys.stderr)


if __name__ == "__main__":
    main()
