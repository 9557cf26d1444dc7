"""The stage: times every deployed form in one run, in alternation, the dense parent among them where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from vsparse.artifact.document import write_document
from vsparse.artifact.forms import DENSE, INT8_C, SPARSE, DeployedForm
from vsparse.artifact.hashes import content_sha256
from vsparse.artifact.latency import METHOD, LatencyFile, side_by_side
from vsparse.artifact.models import CERTIFYING_OF
from vsparse.errors import UnavailableError
from vsparse.recipe import Recipe
from vsparse.stages.export.c_int8.stage import int8_prefix_of
from vsparse.stages.export.c_source.stage import prefix_of
from vsparse.stages.profile.c_latency import opened_c_source
from vsparse.stages.profile.comparison import alternate
from vsparse.stages.profile.session import TimedModel, open_model


def profile_models(models: Path, output: Path, recipe: Recipe, forms: Sequence[DeployedForm], progress: Callable[[float], None]) -> None:
    """Writes the latencies of the forms that are timed; all take turns, in blocks, and so compare; forms of one file share it.

    Files that certify their own input take their turns too, where there are some.
    C source that was not written, or that this machine has no compiler for, is left out.
    """
    settings = recipe.profile
    # The dense parent first, as in the file that it shares with the packed network.
    wanted = sorted((form for form in forms if form.latency), key=lambda form: form.variant != DENSE.variant)
    with ExitStack() as stack:
        opened = {form: found for form in wanted if (found := _opened(stack, models, form, recipe)) is not None}
        timed_models = {form.label: model for form, model in opened.items()}
        contents = {form.label: content_sha256(models / Path(form.model).name) for form in opened}
        for places in CERTIFYING_OF.values():
            certifying = models / Path(places.file).name
            if certifying.exists():
                timed_models[places.label] = open_model(certifying, settings.threads, settings.batch)
                contents[places.label] = content_sha256(certifying)
        measured = alternate(
            timed_models,
            contents,
            runs=settings.runs,
            seconds=settings.seconds,
            warmup=settings.warmup,
            progress=progress,
        )
    for places in CERTIFYING_OF.values():
        if places.label in measured:
            write_document(output / Path(places.latency).name, LatencyFile(packed=measured[places.label]))
    for file in dict.fromkeys(form.latency for form in opened):
        timed = {form: measured[form.label] for form in opened if form.latency == file}
        if timed.keys() == {DENSE, SPARSE}:
            order = ", ".join(form.label for form in opened)
            method = f"alternating blocks: {order}, and from the beginning" if len(opened) > 2 else METHOD
            written = side_by_side(timed[DENSE], timed[SPARSE], method=method)
        else:
            written = LatencyFile(packed=next(iter(timed.values())))
        write_document(output / Path(file).relative_to("profile"), written)


def _opened(stack: ExitStack, models: Path, form: DeployedForm, recipe: Recipe) -> TimedModel | None:
    """Returns a form ready to be timed; None for C source that is not there or cannot be compiled here."""
    model, file = models / Path(form.model).name, models / Path(form.file).name
    if form.is_onnx:
        return open_model(model, recipe.profile.threads, recipe.profile.batch)
    if not file.exists():
        return None
    try:
        prefix = int8_prefix_of(file) if form == INT8_C else prefix_of(file)
        return stack.enter_context(opened_c_source(file, model, prefix, recipe.profile.batch))
    except UnavailableError:
        return None
