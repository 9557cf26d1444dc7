"""The stage: times the packed network, side by side with its dense parent where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vsparse.artifact import DENSE_MODEL, MODEL, precision_model
from vsparse.artifact.document import write_document
from vsparse.artifact.latency import LatencyFile
from vsparse.recipe import Recipe
from vsparse.stages.profile.comparison import compare
from vsparse.stages.profile.onnxruntime_latency import profile_onnx


def profile_models(models: Path, output: Path, recipe: Recipe, progress: Callable[[float], None]) -> None:
    """Times the packed network, side by side with its dense parent where there is one, then its further precisions."""
    settings = recipe.profile
    packed, dense = models / Path(MODEL).name, models / Path(DENSE_MODEL).name
    options: dict[str, Any] = {
        "runs": settings.runs,
        "seconds": settings.seconds,
        "warmup": settings.warmup,
        "threads": settings.threads,
        "batch": settings.batch,
    }
    if dense.exists():
        measured = compare(dense, packed, **options, progress=progress)
    else:
        measured = LatencyFile(packed=profile_onnx(packed, **options, progress=progress))
    write_document(output / "onnxruntime-fp32.json", measured)
    for precision in recipe.export.precisions:
        timed = profile_onnx(models / Path(precision_model(precision)).name, **options)
        write_document(output / "precisions" / f"{precision}.json", LatencyFile(packed=timed))
