"""The independent checker with what the toolchain knows beside it: how C source and device script are written, and the named data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vsparse import artifact
from vsparse.artifact.certificate import read_certificate
from vsparse.artifact.choice import CHOICE
from vsparse.artifact.document import load_json, read_if_there
from vsparse.artifact.facts import Facts, gather
from vsparse.artifact.features import FEATURES, FeatureList, features_of
from vsparse.artifact.forms import FORMS, INT8_C, SPARSE, DeployedForm
from vsparse.artifact.hashes import MAX_MODEL_BYTES, content_sha256, parse_model, set_metadata
from vsparse.artifact.models import C_COLUMNS, CERTIFYING_OF, CSourceRecord
from vsparse.c_prefix import DEFAULT_PREFIX
from vsparse.data import Splits, load
from vsparse.data.bundled import BUNDLED
from vsparse.errors import InputError
from vsparse.files import json_text, read_bytes
from vsparse.graph.from_onnx import from_onnx
from vsparse.pipeline.choose import choice_gate, choose
from vsparse.pipeline.gates import judge
from vsparse.recipe import Recipe, load_recipe
from vsparse.stages.export.bundle import agent_script, certifying_script, device_script
from vsparse.stages.export.c_int8 import emit_int8_c
from vsparse.stages.export.c_live import emit_live_c, emit_live_int8_c
from vsparse.stages.export.c_source import emit_c
from vsparse.stages.export.c_source.columns import columns_header
from vsparse.stages.export.c_source.costs import costs_of
from vsparse.stages.export.certify_onnx.stage import stamped_certifying
from vsparse.stages.report.document import as_json
from vsparse.stages.report.gallery import make_gallery
from vsparse.stages.report.render import html
from vsparse.standalone import compare_models
from vsparse.target import load_target

if TYPE_CHECKING:
    from vsparse_check import CheckResult, SampleData

BILLION = 10**9


def recheck(
    directory: Path,
    *,
    data: str | None = None,
    memory_bytes: int | None = None,
    work: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckResult:
    """Runs the independent checker on an artifact; what it cannot know by itself is written again and compared.

    `data` is the data that the certificates should be about: the name of a built-in dataset, or a file or folder as `build` takes it. It
    is split as the artifact's recipe says. `work` is in billions of operations (docs/reference-certificate.md). What is
    confirmed is executed and compared with its reading too, which the checker, without a runtime, cannot do. Raises InputError where the
    data or the recipe cannot be read, and InputError or GateError, which name the node, where a model is executed as another network.
    """
    from vsparse_check import Toolchain, check

    splits = None if data is None else splits_of(directory, data)
    samples = None if splits is None else samples_of(splits)
    sizes = {"memory": memory_bytes, "work": work and work * BILLION}
    writer = Toolchain(artifact.tool_versions()["vsparse"], written_again)
    result = check(directory, progress, data=samples, toolchain=writer, **sizes)
    if result.passed and splits is not None:
        result = _of_these_rows(result, directory, splits)
    if result.passed:
        compare_models(directory)
    return result


def _of_these_rows(result: CheckResult, directory: Path, splits: Splits) -> CheckResult:
    """Refutes an artifact whose map from columns to inputs is not that of the training rows of the data given."""
    stated = read_if_there(FeatureList, directory / FEATURES)
    certificate = read_certificate(directory / SPARSE.certificate)
    if stated == features_of(splits, certificate.property):
        return result
    return result._replace(status=1, verdict="refuted", problem=f"{FEATURES} is not the map that the training rows of the data given have")


def written_again(directory: Path) -> dict[str, str | bytes]:
    """Returns the contents of files of an artifact that follow from its other files, by path; no C source where its model has none."""
    facts, model = _facts(directory), read_bytes(directory / artifact.MODEL, "model", MAX_MODEL_BYTES)
    gallery = make_gallery(facts)
    texts: dict[str, str | bytes] = {"device/run_on_device.py": device_script(), artifact.REPORT: html(facts, gallery)}
    texts |= {"device/agent.py": agent_script(), "device/certify_on_device.py": certifying_script()}
    texts[artifact.REPORT_JSON] = json_text(as_json(facts, gallery))
    recipe = None
    if (directory / artifact.RECIPE).is_file():
        recipe = load_recipe(str(directory / artifact.RECIPE))
        gates = judge(recipe, facts, directory)
        if facts.choice is not None and (directory / artifact.TARGET).is_file():
            choice = choose(recipe, load_target(str(directory / artifact.TARGET)), facts, directory)
            texts[CHOICE] = json_text(choice.model_dump(mode="json"))
            gates = [*gates, choice_gate(choice)]
        texts[artifact.GATES] = json_text([gate.model_dump(mode="json") for gate in gates])
    features = read_if_there(FeatureList, directory / FEATURES)
    if recipe is not None and features is not None:
        texts[f"model/{C_COLUMNS}"] = columns_header(features, recipe.export.c_prefix, recipe.name)
    live = recipe is not None and recipe.deploy.live
    second = recipe is not None and recipe.deploy.live_budget > 0
    for form in FORMS:
        twin = directory / CERTIFYING_OF[form.name].file if form.name in CERTIFYING_OF else None
        if recipe is not None and twin is not None and twin.is_file() and (directory / form.model).is_file():
            texts |= _certifying_again(directory, recipe, form)
    prefix = DEFAULT_PREFIX if facts.c_source is None else facts.c_source.prefix
    if facts.c_int8 is not None and (directory / INT8_C.model).is_file():
        quantised = read_bytes(directory / INT8_C.model, "model", MAX_MODEL_BYTES)
        try:
            integers = (partial(emit_live_int8_c, second=second) if live else emit_int8_c)(
                from_onnx(quantised), content_sha256(quantised), facts.name, facts.c_int8.prefix, _notation(facts.c_int8)
            )
            texts |= {f"model/{name}": content for name, content in integers.files().items()}
        except InputError:
            pass  # it has no such form, and c_source.int8.json says why
    target = directory / artifact.TARGET
    costs = costs_of(load_target(str(target)).kernel_costs if target.is_file() else None)
    try:
        emit = partial(emit_live_c, second=second) if live else emit_c
        source = emit(from_onnx(model), content_sha256(model), facts.name, prefix, costs, _notation(facts.c_source))
    except InputError:
        return texts
    return texts | {f"model/{name}": content for name, content in source.files().items()}


def _certifying_again(directory: Path, recipe: Recipe, form: DeployedForm) -> dict[str, bytes]:
    """Returns the certifying file of a form's model, stamped with certificate and target; nothing for a network that has none."""
    certificate = read_certificate(directory / form.certificate)
    name = certificate.contract["name"] if form.is_further else "fp32"
    try:
        model = parse_model(read_bytes(directory / form.model, "model", MAX_MODEL_BYTES))
        made = stamped_certifying(model, recipe.name, recipe.property.perturbation.clip, form.name, name)
    except InputError:
        return {}
    stamps = {"certificate": certificate.digest()}
    if (directory / artifact.TARGET).is_file():
        stamps["target"] = load_target(str(directory / artifact.TARGET)).name
    set_metadata(made, stamps)
    return {CERTIFYING_OF[form.name].file: made.SerializeToString(deterministic=True)}


def _notation(record: CSourceRecord | None) -> Literal["text", "binary", "auto"]:
    """Returns the notation of the weights that an artifact's record of its C names; whether its files are so is compared."""
    if record is None or not record.written:
        return "auto"
    return "binary" if record.is_binary else "text"


def _facts(directory: Path) -> Facts:
    """Returns the facts of a report, with the time that the one that is there tells: the manifest is written after it."""
    facts, path = gather(directory), directory / artifact.REPORT_JSON
    told = load_json(path) if path.exists() else None
    provenance = told.get("provenance") if isinstance(told, dict) else None
    created = provenance.get("created_utc") if isinstance(provenance, dict) else None
    if facts.provenance is None or not isinstance(created, str):
        return facts
    return replace(facts, provenance=facts.provenance.model_copy(update={"created_utc": created}))


def splits_of(directory: Path, data: str) -> Splits:
    """Returns the splits of the data that an artifact's recipe describes, read from `data`."""
    recipe, path = load_recipe(str(directory / artifact.RECIPE)), Path(data)
    spec, root = recipe.data, None
    if recipe.data.name in BUNDLED:  # these come with a package, whatever lies where
        if data != recipe.data.name:
            raise InputError(
                f"--data {data}: {recipe.data.name}, which the artifact is about, is bundled and read from no file; give its name"
            )
    elif path.exists():
        root = path.absolute() if path.is_dir() else path.absolute().parent
        spec = spec if path.is_dir() else spec.model_copy(update={"path": path.name})
    elif data != recipe.data.name:
        raise InputError(f"--data {data} is no file or folder, and the artifact's recipe is about {recipe.data.name}; give its files")
    return load(spec, root, recipe.train.seed)


def samples_of(splits: Splits) -> SampleData:
    """Returns the test split as the checker takes it."""
    from vsparse_check import SampleData

    test = splits.test
    return SampleData(test.inputs(slice(0, len(test))), test.labels if test.targets is None else test.targets)
