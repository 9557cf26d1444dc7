"""What each stage does, from the files of the stages before it; `train_task` and `verify_task` run in worker processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact import DENSE_MODEL, MODEL
from vsparse.contract import contract
from vsparse.data import Dataset, Splits, load
from vsparse.errors import InputError
from vsparse.files import write_bytes, write_json
from vsparse.graph import Graph, from_torch, to_onnx
from vsparse.graph.from_onnx import from_onnx
from vsparse.recipe import Recipe
from vsparse.worker import Progress

TRAINED = "trained.onnx"
PACKED = "packed.onnx"
MASKS = "masks.safetensors"
WEIGHTS = "weights.safetensors"
HISTORY = "history.json"
LAYERS = "layers.json"
STORAGE_OPSET = 17
# Inputs on which compression compares the masked with the packed network.
COMPARED_INPUTS = 512


def untrained_graph(recipe: Recipe, splits: Splits) -> Graph:
    """Returns the recipe's network as it is before training; InputError names an operator that no stage could carry."""
    from vsparse.networks import make

    shape = splits.train.pixels.shape[1:]
    module = make(recipe.network, shape, len(splits.train.classes), recipe.data.mean, recipe.data.std, recipe.train.seed)
    return from_torch(module, shape)


def train_task(payload: dict[str, Any], say: Progress) -> dict[str, Any]:
    """Trains one network in `scratch`, resuming what is there, and writes weights, masks and history to `output`."""
    from vsparse.train import train

    recipe = Recipe.model_validate(payload["recipe"])
    splits = load(recipe.data, None if payload["data"] is None else Path(payload["data"]), recipe.train.seed)
    sparse = bool(payload["sparse"])
    result = train(recipe, splits, Path(payload["scratch"]), sparse=sparse, progress=lambda epoch: say(asdict(epoch)))
    output = Path(payload["output"])
    write_graph(result.graph, output / TRAINED)
    _write_tensors(output / WEIGHTS, result.graph.params)
    _write_tensors(output / MASKS, {name: mask.astype(np.uint8) for name, mask in result.masks.items()})
    write_json(output / HISTORY, {"schema_version": 1, "sparse" if sparse else "dense": result.history})
    return {}


def write_graph(graph: Graph, path: Path) -> None:
    """Writes a graph between two stages, as ONNX."""
    write_bytes(path, to_onnx(graph, STORAGE_OPSET, {}, path.stem).SerializeToString(deterministic=True))


def _write_tensors(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    from safetensors.numpy import save

    write_bytes(path, save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


def read_masks(path: Path) -> dict[str, NDArray[np.bool_]]:
    """Reads masks by parameter name; InputError for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: value.astype(np.bool_) for name, value in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"masks {path} cannot be read: {error}; train again") from error


def compress_trained(trained: Path, output: Path, recipe: Recipe, splits: Splits) -> None:
    """Packs a trained network and writes it beside the account of every layer."""
    from vsparse.compress import compress

    data = splits.validation.inputs(slice(0, COMPARED_INPUTS))
    result = compress(from_onnx(trained / TRAINED), read_masks(trained / MASKS), exact=recipe.compress.exact, inputs=data)
    write_graph(result.packed, output / PACKED)
    write_json(output / LAYERS, account(result))


def account(result: Any) -> dict[str, Any]:
    """Returns a compression result as the JSON values of layers.json."""
    return {
        "schema_version": 1,
        "rows": [asdict(row) for row in result.rows],
        "totals": asdict(result.total),
        "removed_share": result.removed_share,
        "density": result.density,
        "reductions": [asdict(reduction) for reduction in result.reductions],
        "exactness": result.exactness,
        "proof": result.proof,
        "equality": asdict(result.evidence),
    }


def export_models(packed: Path, dense: Path | None, output: Path, recipe: Recipe) -> None:
    """Writes the deployed ONNX files and checks that the runtime executes the graph that will be verified."""
    from vsparse.export import check_runtime_graph, write_onnx

    metadata = {"recipe": recipe.name, "contract": recipe.verify.contract}
    model = output / Path(MODEL).name
    write_onnx(from_onnx(packed / PACKED), model, recipe.export.opset, metadata)
    write_json(output / "runtime_graph.json", {"schema_version": 1, **check_runtime_graph(model).as_dict()})
    if dense is not None:
        write_onnx(from_onnx(dense / TRAINED), output / Path(DENSE_MODEL).name, recipe.export.opset, {**metadata, "role": "dense parent"})


def spread(dataset: Dataset, count: int) -> Dataset:
    """Returns `count` samples evenly spaced over a split (all where it has fewer), as the first ones may all be of one class."""
    index = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(np.int64))
    groups = None if dataset.groups is None else dataset.groups[index]
    return replace(dataset, pixels=dataset.pixels[index], labels=dataset.labels[index], groups=groups)


def profile_models(models: Path, output: Path, recipe: Recipe, progress: Callable[[float], None]) -> None:
    """Times the packed network, side by side with its dense parent where there is one."""
    from vsparse.profile import compare, profile_onnx

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
        measured = compare(dense, packed, **options, progress=progress).as_dict()
    else:
        measured = {"schema_version": 1, "packed": profile_onnx(packed, **options, progress=progress).as_dict()}
    write_json(output / "onnxruntime-fp32.json", measured)


def verify_task(payload: dict[str, Any], say: Progress) -> dict[str, Any]:
    """Certifies one exported model from its file, draws its curve, and audits and cross-checks the sparse one."""
    from vsparse.verify import write_certificate
    from vsparse.verify.audit import audit
    from vsparse.verify.certify import certify, take_samples
    from vsparse.verify.counterexamples import npz_bytes
    from vsparse.verify.cross_check import cross_check
    from vsparse.verify.curve import curve, default_radii
    from vsparse.verify.deployed import read_model

    recipe = Recipe.model_validate(payload["recipe"])
    role, model, output, scratch = payload["role"], Path(payload["model"]), Path(payload["output"]), Path(payload["scratch"])
    dataset = load(recipe.data, None if payload["data"] is None else Path(payload["data"]), recipe.train.seed).test
    rules = contract(recipe.verify.contract)
    certificate = certify(
        model,
        dataset,
        recipe.property,
        rules,
        recipe.verify,
        jobs=payload["jobs"],
        progress=lambda done, total: say({"text": "certifying", "done": done, "total": total}),
        state_directory=scratch / "claims",
        file=MODEL if role == "sparse" else DENSE_MODEL,
        data_name=recipe.data.name,
        seed=recipe.train.seed,
    )
    radii = recipe.property.curve or default_radii(recipe.property.epsilon)
    drawn = curve(
        model,
        spread(dataset, recipe.property.curve_samples),
        radii,
        rules,
        recipe.verify,
        0,
        jobs=payload["jobs"],
        progress=lambda done, total: say({"text": "curve", "done": done, "total": total}),
        state_directory=scratch / "curve",
        seed=recipe.train.seed,
    )
    write_json(output / "curve.json", {"schema_version": 1, "samples": drawn.samples, "derived": drawn.derived, role: drawn.as_list()})
    if role == "sparse":
        say({"text": "audit of the contract on this machine"})
        found = audit(model, dataset, certificate, seed=recipe.train.seed)
        write_json(output / "audit.json", found.as_dict())
        if not found.passed:
            certificate = certificate.voided(f"the audit found: {found.reason}")
        if recipe.verify.cross_check:
            say({"text": "cross-check with auto_LiRPA"})
            compared = cross_check(model, dataset, recipe.property, rules, recipe.verify.cross_check)
            write_json(output / "cross_check.json", compared.as_dict())
            if not compared.passed:
                certificate = certificate.voided(f"the cross-check found: {compared.reason}")
    inputs, _ = take_samples(dataset, read_model(model), recipe.property.samples)
    certified = np.array([claim.id for claim in certificate.claims if claim.verdict == "certified"], dtype=np.int64)
    write_bytes(output / "inputs.npz", npz_bytes({"ids": certified, "inputs": inputs[certified]}))
    write_certificate(output / "certificate.json", certificate)
    return {}
