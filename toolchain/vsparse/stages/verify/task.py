"""The stage: certifies one exported model, draws its curve, audits and cross-checks. Runs in a worker process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vsparse.artifact import DENSE_MODEL, MODEL
from vsparse.artifact.certificate import Certificate, write_certificate
from vsparse.artifact.counterexamples import npz_bytes
from vsparse.contract import contract
from vsparse.data import Dataset, load
from vsparse.errors import UnavailableError
from vsparse.files import write_bytes, write_json
from vsparse.progress import Say
from vsparse.recipe import Recipe
from vsparse.stages.export.c_source import SOURCE
from vsparse.stages.verify.audit import audit
from vsparse.stages.verify.certify import certify, take_samples
from vsparse.stages.verify.cross_check import NOT_A_BOX, cross_check
from vsparse.stages.verify.curve import curve, default_radii
from vsparse.stages.verify.deployed import read_model
from vsparse.stages.verify.sequential import SEQUENTIAL, audit_sequential, sequential_certificate


def verify_task(payload: dict[str, Any], say: Say) -> dict[str, Any]:
    """Certifies one exported model from its file, draws its curve, and audits and cross-checks the sparse one."""
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
        norm=recipe.property.norm,
        brightness=recipe.property.brightness,
        contrast=recipe.property.contrast,
        searched_to=recipe.property.epsilon,
    )
    write_json(output / "curve.json", {"schema_version": 1, "samples": drawn.samples, "derived": drawn.derived, role: drawn.as_list()})
    if role == "sparse":
        say({"text": "audit of the contract on this machine"})
        found = audit(model, dataset, certificate, seed=recipe.train.seed)
        write_json(output / "audit.json", found.as_dict())
        if not found.passed:
            certificate = certificate.voided(f"the audit found: {found.reason}")
        if recipe.verify.cross_check and not certificate.property.allowed.is_box:
            say({"text": NOT_A_BOX})
        elif recipe.verify.cross_check:
            say({"text": "cross-check with auto_LiRPA"})
            compared = cross_check(model, dataset, recipe.property, rules, recipe.verify.cross_check)
            write_json(output / "cross_check.json", compared.as_dict())
            if compared.unanswered:
                say({"text": f"no second opinion: {compared.unanswered}"})
                certificate = certificate.noted(f"no second opinion: {compared.unanswered}")
            elif not compared.passed:
                certificate = certificate.voided(f"the cross-check found: {compared.reason}")
        source = model.with_name(SOURCE)
        if source.exists():
            say({"text": "the C source, under contract sequential"})
            certify_c(payload, recipe, model, source, dataset, certificate)
    write_inputs(output, model, dataset, recipe, certificate)
    write_certificate(output / "certificate.json", certificate)
    return {}


def certify_c(payload: dict[str, Any], recipe: Recipe, model: Path, source: Path, dataset: Dataset, certificate: Certificate) -> None:
    """Writes the certificate of model.c and, where there is a C compiler, its audit on this machine."""
    output = Path(payload["output"]) / "sequential"
    if certificate.contract == contract("fp32").as_dict():
        derived = sequential_certificate(model, source, dataset, certificate)
    else:
        derived = certify(
            model,
            dataset,
            recipe.property,
            SEQUENTIAL,
            recipe.verify,
            jobs=payload["jobs"],
            state_directory=Path(payload["scratch"]) / "sequential",
            file=MODEL,
            data_name=recipe.data.name,
            seed=recipe.train.seed,
        )
    try:
        found = audit_sequential(model, source, dataset, derived, seed=recipe.train.seed)
    except UnavailableError as error:
        derived = derived.noted(f"not audited: {error}")
    else:
        write_json(output / "audit.json", found.as_dict())
        if not found.passed:
            derived = derived.voided(f"the audit found: {found.reason}")
    write_inputs(output, model, dataset, recipe, derived)
    write_certificate(output / "certificate.json", derived)


def write_inputs(output: Path, model: Path, dataset: Dataset, recipe: Recipe, certificate: Certificate) -> None:
    """Writes the samples of all claims but the falsified ones, whose samples lie beside their counterexamples.

    From them anyone can derive the certified claims again, and find out how many samples are classified correctly.
    """
    inputs, _ = take_samples(dataset, read_model(model), recipe.property.samples)
    kept = np.array([claim.id for claim in certificate.claims if claim.verdict != "falsified"], dtype=np.int64)
    write_bytes(output / "inputs.npz", npz_bytes({"ids": kept, "inputs": inputs[kept]}))


def spread(dataset: Dataset, count: int) -> Dataset:
    """Returns `count` samples evenly spaced over a split (all where it has fewer), as the first ones may all be of one class."""
    index = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(np.int64))
    groups = None if dataset.groups is None else dataset.groups[index]
    return replace(dataset, pixels=dataset.pixels[index], labels=dataset.labels[index], groups=groups)
