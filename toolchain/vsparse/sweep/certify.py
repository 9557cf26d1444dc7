"""Certifies the networks that a sweep chose: the whole build of each, on the test split, under the target's contract."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsparse import artifact
from vsparse.errors import ClusterError, SoundnessError, VsparseError
from vsparse.files import write_bytes
from vsparse.pipeline.build import build
from vsparse.progress import Event, Reporter
from vsparse.recipe import Recipe
from vsparse.sweep.results import Row


@dataclass(frozen=True)
class Certified:
    """One built artifact: fractions of the test samples, and whether its audit and cross-check passed; or why there is none."""

    id: str
    seed: int
    directory: str
    samples: int = 0
    contract: str = ""
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    certified_accuracy: float | None = None
    passed: bool = False
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return dict(self.__dict__)


def certify_rows(
    rows: Sequence[Row],
    resolve: Callable[[Sequence[str]], Recipe],
    folder: Path,
    data: Path | None,
    jobs: int,
    reporter: Reporter,
    cluster: str | None = None,
) -> list[Certified]:
    """Builds every seed of each row into `folder`/ID-seedN, one after another with all jobs, and returns what its certificate says."""
    found = []
    for row in rows:
        for run in row.runs:
            name = f"{row.configuration.id}-seed{run.seed}"
            reporter(Event("note", "certify", f"certify {name} on the test split"))
            recipe = resolve([*row.configuration.as_set(), f"train.seed={run.seed}"])
            found.append(_certified(row.configuration.id, run.seed, recipe, folder / name, data, jobs, reporter, cluster))
    return found


def _certified(
    id: str, seed: int, recipe: Recipe, directory: Path, data: Path | None, jobs: int, reporter: Reporter, cluster: str | None
) -> Certified:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / artifact.RECIPE
        write_bytes(path, recipe.to_toml().encode())
        try:
            result = build(str(path), out=directory, data=data, jobs=jobs, cluster=cluster, reporter=reporter)
        except (SoundnessError, ClusterError):
            raise  # a bound that is wrong is no row's fault: nothing of this sweep may be relied on; and so with a cluster that is lost
        except VsparseError as error:
            return Certified(id, seed, directory.name, reason=str(error))
    figures = result.figures["sparse"]
    accuracies = {name: figures[name] for name in ("clean_accuracy", "robust_accuracy", "certified_accuracy")}
    reason = "; ".join(f"{gate.name}: {gate.got} (wanted: {gate.wanted})" for gate in result.gates if gate.passed is False)
    return Certified(
        id, seed, directory.name, result.figures["samples"], result.figures["contract"], **accuracies, passed=result.passed, reason=reason
    )
