"""Single steps on an ONNX network of the user's own that make an artifact of it, or prune it: `vsparse export` and `vsparse compress`."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vsparse import artifact
from vsparse.artifact.document import write_document, write_list
from vsparse.errors import InputError
from vsparse.files import new_directory, write_bytes
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.from_onnx import Reading, read_onnx
from vsparse.graph.quantised import is_quantised
from vsparse.graph.rows import rows_as_maps
from vsparse.notebook_progress import in_notebook
from vsparse.pipeline.build import resolve
from vsparse.pipeline.deploy import finish_models
from vsparse.progress import Event, Reporter
from vsparse.reading import check_reading, check_written
from vsparse.reading.evidence import FILE as READING
from vsparse.recipe import load_recipe
from vsparse.recipe_network import about_data
from vsparse.stages.train.start import pinned

# Training samples that a one-shot pruning is calibrated on.
CALIBRATION = 512


def read_float32(model: Path) -> Reading:
    """Reads a network that can be written again in float32; InputError for one whose numbers would silently become wider."""
    reading = read_onnx(model)
    kind = "quantised integers" if is_quantised(reading.graph) or reading.graph.integers else "float16 numbers"
    if kind == "quantised integers" or reading.graph.storage != "fp32":
        raise InputError(f"model {model} holds {kind}, and float32 is written; give the float32 network that it was made of")
    return reading


def export_onnx(model: Path, target: str, out: Path | None = None) -> dict[str, Any]:
    """Writes an artifact of an ONNX network of the user's own for a target, without data: batch normalisation folded, nothing certified.

    It holds the float32 model, the device's folder, recipe, target and manifest; there is no certificate, no quantised form (these are
    calibrated on samples), and no train/. Returns where it is and what was compared.
    """
    from vsparse.stages.export import as_convolutions, check_runtime_graph, write_onnx
    from vsparse.stages.report import write_report

    reading = read_float32(model)
    recipe, device = resolve(str(model), target, ["export.precisions=[]"])
    recipe = pinned(recipe)
    evidence = check_reading(model, reading, optimised=False)  # what a runtime makes of the source matters for what is written alone
    graph = fold_batch_norm(rows_as_maps(reading.graph), constants=True)
    graph = as_convolutions(graph) if device.runtime.name == "tensorrt" else graph
    directory = out or model.with_name(f"{model.stem}-{device.name}")
    if directory.exists() and any(directory.iterdir() if directory.is_dir() else [directory]):
        raise InputError(f"--out {directory} is not an empty directory; choose another")
    with new_directory(directory) as new:
        path = new / artifact.MODEL
        path.parent.mkdir(parents=True)
        write_onnx(graph, path, device.runtime.opset, {"source": model.name, "contract": device.default_contract})
        checked = check_runtime_graph(path)
        write_document(path.with_name("runtime_graph.json"), checked)
        written = check_written(path, graph, source=reading.graph)
        write_document(path.with_name(READING), written)
        finish_models(new, device)
        write_bytes(new / artifact.RECIPE, recipe.to_toml().encode())
        write_bytes(new / artifact.TARGET, device.to_toml().encode())
        write_list(new / artifact.GATES, [])
        settings: dict[str, Any] = {"seed": recipe.train.seed, "until": "export", "road_key": "", "lineage": []}
        artifact.write_manifest(new, **settings)
        write_report(new)
        artifact.write_manifest(new, **settings)
    told = {"runtime_graph": checked.model_dump(mode="json", exclude={"schema_version"}), "reading": evidence.as_dict()}
    return {"directory": str(directory), "target": device.name, **told, "written": written.as_dict()}


def prune_onnx(
    model: Path, sparsity: float, data: Path | str, out: Path | None = None, seed: int = 0, reporter: Reporter = in_notebook
) -> dict[str, Any]:
    """Prunes an ONNX network in one shot, calibrated on training samples of `data`, packs it and writes it; returns the account of it.

    `data` is a folder, a file, or the name of a built-in dataset. Clean accuracy before and after is of the validation split, which the
    calibration does not see; whether the network was trained on these samples cannot be known here.
    """
    from vsparse.artifact.stage_files import write_graph
    from vsparse.data import load
    from vsparse.stages.compress import compress
    from vsparse.stages.compress.one_shot import prune
    from vsparse.stages.compress.task import account
    from vsparse.stages.train.answers import answers
    from vsparse.stages.train.start_network import starting_network

    read_float32(model)
    named, root = about_data(data)
    recipe = pinned(load_recipe(str(model), [*named, f"train.seed={seed}"]))
    splits = load(recipe.data, root, seed)
    for note in splits.notes:
        reporter(Event("warning", "data", note))
    evidence = check_reading(model, optimised=False)
    try:
        graph, _ = starting_network(recipe, splits.train.pixels.shape[1:], len(splits.train.classes))
    except InputError as error:  # which names the key of a recipe, and nobody wrote one
        raise InputError(str(error).replace("train.start ", "model ", 1)) from error
    dense = fold_batch_norm(graph, constants=True)
    step = max(1, len(splits.train) // CALIBRATION)
    samples = splits.train.inputs(slice(0, step * CALIBRATION, step))
    pruned, layers = prune(dense, samples, sparsity)
    result = compress(pruned, {}, exact=False, inputs=splits.validation.inputs(slice(0, CALIBRATION)))
    path = out or model.with_name(f"{model.stem}.sparse.onnx")
    if path.resolve() == model.resolve():
        raise InputError(f"--out {path} is the model itself; choose another name")
    with tempfile.TemporaryDirectory(prefix="vsparse-compress-") as folder:
        write_graph(result.packed, trial := Path(folder) / path.name)
        written = check_written(trial, result.packed, source=pruned, exact=result.is_exact)
        write_bytes(path, trial.read_bytes())
    before, after = (answers(one, splits.validation, 256) for one in (dense, result.packed))
    if not after.beaten:
        reporter(Event("warning", "compress", f"the pruned network is {after.reason}; lower --sparsity, or train it (train.start)"))
    kept, total = sum(layer.kept for layer in layers), sum(layer.weights for layer in layers)
    told = {
        "sparsity": 1 - kept / total,
        "calibration_samples": len(samples),
        "validation_samples": before.samples,
        "clean_accuracy_before": before.clean_accuracy,
        "clean_accuracy_after": after.clean_accuracy,
        "majority_accuracy": before.majority_accuracy,
        "layers": [asdict(layer) for layer in layers],
    }
    checked = {"file": str(path), "reading": evidence.as_dict(), "written": written.as_dict()}
    return {**account(result).model_dump(mode="json"), "pruning": told, **checked}
