"""The stage: times every deployed ONNX form, the packed network side by side with its dense parent where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vsparse.artifact.document import write_document
from vsparse.artifact.forms import DeployedForm
from vsparse.artifact.latency import LatencyFile
from vsparse.recipe import Recipe
from vsparse.stages.profile.comparison import compare
from vsparse.stages.profile.onnxruntime_latency import profile_onnx


def profile_models(models: Path, output: Path, recipe: Recipe, forms: Sequence[DeployedForm], progress: Callable[[float], None]) -> None:
    """Writes the latencies of the forms that are timed; the packed network and its dense parent share a file, and alternate in blocks."""
    settings = recipe.profile
    options: dict[str, Any] = {
        "runs": settings.runs,
        "seconds": settings.seconds,
        "warmup": settings.warmup,
        "threads": settings.threads,
        "batch": settings.batch,
    }
    for file in dict.fromkeys(form.latency for form in forms if form.latency):
        timed = [form for form in forms if form.latency == file]
        paths = {form.latency_key: models / Path(form.model).name for form in timed}
        told: dict[str, Any] = {"progress": progress} if any(form.is_main for form in timed) else {}
        if paths.keys() == {"dense", "packed"}:
            measured = compare(paths["dense"], paths["packed"], **options, **told)
        else:
            measured = LatencyFile(packed=profile_onnx(paths["packed"], **options, **told))
        write_document(output / Path(file).relative_to("profile"), measured)
