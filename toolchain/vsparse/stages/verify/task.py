"""The stage: certifies a deployed form from its file, draws its curve, audits and cross-checks it. Runs in a worker process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact.certificate import NOT_AUDITED, Certificate, write_certificate
from vsparse.artifact.checks import AUDIT, CROSS_CHECK
from vsparse.artifact.counterexamples import npz_bytes
from vsparse.artifact.curve import Curve
from vsparse.artifact.document import write_document
from vsparse.artifact.forms import BY_NAME, INT8_C, SPARSE, DeployedForm
from vsparse.artifact.live import LIVE
from vsparse.contract import Contract, contract
from vsparse.data import Dataset, load
from vsparse.errors import UnavailableError
from vsparse.files import write_bytes
from vsparse.progress import Emit
from vsparse.recipe import Recipe
from vsparse.stages.verify.audit import Audit, audit
from vsparse.stages.verify.c_forms import C_FORMS
from vsparse.stages.verify.certify import certify, take_samples
from vsparse.stages.verify.cross_check import NOT_A_BOX, cross_check
from vsparse.stages.verify.curve import curve, default_radii
from vsparse.stages.verify.deployed import read_model
from vsparse.stages.verify.live import record_live
from vsparse.stages.verify.sequential import audit_sequential, sequential_certificate

OF_CLASSES = "no cross-check: it compares bounds of margins between classes, and this property is about one number"


@dataclass(frozen=True)
class VerifyJob:
    """What the verification of every form works with: the recipe, the test samples, and the folders of models, scratch files and output.

    `output` is the artifact's folder of the form whose stage this is, `folder`; `no_second_verifier` is why there will be no cross-check,
    as it was found before anything was trained.
    """

    recipe: Recipe
    dataset: Dataset
    models: Path
    scratch: Path
    output: Path
    folder: str
    jobs: int
    emit: Emit
    cluster: str | None = None
    runtime: str = "onnxruntime"
    no_second_verifier: str = ""

    def file(self, name: str) -> Path:
        """Returns where a file of the artifact's folder `model/` lies."""
        return self.models / Path(name).name

    def folder_of(self, form: DeployedForm) -> Path:
        """Returns the folder that the certificate of a form is written to."""
        return self.output / Path(form.folder).relative_to(self.folder)

    def counted(self, text: str) -> Any:
        """Returns a callback that reports how much of something is done."""
        return lambda done, total: self.emit({"text": text, "done": done, "total": total})


def verify_task(payload: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Certifies the form of the payload, and the forms whose claims follow from it, each under its contract in `contracts`."""
    recipe = Recipe.model_validate(payload["recipe"])
    dataset = load(recipe.data, None if payload["data"] is None else Path(payload["data"]), recipe.train.seed).test
    form = BY_NAME[payload["form"]]
    folders = {name: Path(payload[name]) for name in ("models", "scratch", "output")}
    job = VerifyJob(
        recipe,
        dataset,
        **folders,
        folder=form.folder,
        jobs=payload["jobs"],
        emit=emit,
        cluster=payload["cluster"],
        runtime=payload["runtime"],
        no_second_verifier=payload.get("no_second_verifier", ""),
    )
    contracts = {BY_NAME[name]: contract(rules) for name, rules in payload["contracts"].items()}
    certificate = verify_form(job, form, contracts.pop(form))
    if recipe.deploy.live and form is SPARSE:
        _write_live(job, certificate)
    for other, rules in contracts.items():
        if job.file(other.file).exists():  # a network with an operator that has no C form has none
            emit({"text": f"{other.title}, under contract {rules.name}"})
            verify_form(job, other, rules, certificate)
    return {}


def verify_form(job: VerifyJob, form: DeployedForm, rules: Contract, followed: Certificate | None = None) -> Certificate:
    """Writes certificate, inputs, audit, curve and cross-check of a form, as its record asks for them, and returns the certificate.

    A failed audit or cross-check voids the certificate. `followed` is the certificate of the form that this one follows.
    """
    certificate = _claims(job, form, rules, followed)
    if form.curve:
        _draw(job, form, rules)
    if form.audited:
        certificate = _audited(job, form, certificate)
    if form.cross_checked:
        certificate = _cross_checked(job, form, rules, certificate)
    _write_inputs(job, form, certificate)
    write_certificate(job.folder_of(form) / "certificate.json", certificate)
    return certificate


def _claims(job: VerifyJob, form: DeployedForm, rules: Contract, followed: Certificate | None) -> Certificate:
    """Returns the certificate of a form; that of C source follows from the one of its ONNX file, where that contract covers it."""
    model, recipe = job.file(form.model), job.recipe
    how = C_FORMS.get(form.name)
    if followed is not None and how is not None and followed.contract == how.follows.as_dict():
        return sequential_certificate(model, job.file(form.file), job.dataset, followed, how)
    return certify(
        model,
        job.dataset,
        recipe.property.perturbation,
        rules,
        recipe.verify,
        samples=recipe.property.samples,
        jobs=job.jobs,
        progress=job.counted("certifying"),
        state_directory=job.scratch / f"claims-{form.name}",
        file=form.model,
        data_name=recipe.data.name,
        seed=recipe.train.seed,
        cluster=job.cluster,
        tell=lambda text: job.emit({"text": text}),
        runtime=job.runtime,
    )


def _draw(job: VerifyJob, form: DeployedForm, rules: Contract) -> None:
    """Writes the curve of a form: its accuracies at several radii."""
    asked = job.recipe.property
    drawn = curve(
        job.file(form.model),
        spread(job.dataset, asked.curve_samples),
        asked.perturbation,
        asked.curve or default_radii(asked.epsilon),
        rules,
        job.recipe.verify,
        0,
        jobs=job.jobs,
        progress=job.counted("curve"),
        state_directory=job.scratch / "curve",
        seed=job.recipe.train.seed,
        searched_to=asked.epsilon,
        cluster=job.cluster,
    )
    write_document(job.folder_of(form) / "curve.json", Curve.of(form.variant, drawn.points, drawn.samples, drawn.derived))


def _audited(job: VerifyJob, form: DeployedForm, certificate: Certificate) -> Certificate:
    """Writes the audit of a form on this machine, and returns its certificate, void where the audit found a violation."""
    job.emit({"text": "audit of the contract on this machine"})
    try:
        found = _audit(job, form, certificate)
    except UnavailableError as error:
        if form.is_onnx:
            raise
        return certificate.noted(f"{NOT_AUDITED}{error}")  # there is no C compiler
    write_document(job.folder_of(form) / AUDIT, found.record())
    return certificate if found.passed else certificate.voided(f"the audit found: {found.reason}")


def _audit(job: VerifyJob, form: DeployedForm, certificate: Certificate) -> Audit:
    model, seed = job.file(form.model), job.recipe.train.seed
    if form.is_onnx:
        return audit(model, job.dataset, certificate, seed=seed)
    return audit_sequential(model, job.file(form.file), job.dataset, certificate, seed=seed, how=C_FORMS[form.name])


def _cross_checked(job: VerifyJob, form: DeployedForm, rules: Contract, certificate: Certificate) -> Certificate:
    """Writes what a second verifier finds, and returns the certificate, void where it contradicts, noted where it has no answer."""
    samples = job.recipe.verify.cross_check
    if samples and not (certificate.property.is_box and not certificate.property.regression):
        job.emit({"text": OF_CLASSES if certificate.property.regression else NOT_A_BOX})
        return certificate
    if not samples:
        return certificate
    absence = job.no_second_verifier
    job.emit({"text": f"cross-check with auto_LiRPA{' (not run: it is not installed)' if absence else ''}"})
    compared = cross_check(job.file(form.model), job.dataset, certificate.property, rules, samples, absence=absence)
    write_document(job.folder_of(form) / CROSS_CHECK, compared.record())
    if compared.unanswered:
        job.emit({"text": f"no second opinion: {compared.unanswered}"})
        return certificate.noted(f"no second opinion: {compared.unanswered}")
    return certificate if compared.passed else certificate.voided(f"the cross-check found: {compared.reason}")


def _write_live(job: VerifyJob, certificate: Certificate) -> None:
    """Writes what the live certificate answers on the samples of a certificate; single verdicts are of those whose inputs it holds."""
    first = samples_of(job.dataset, np.arange(len(certificate.claims)))
    held = [claim.id for claim in certificate.claims if claim.verdict != "falsified"]
    some, asked = spread(job.dataset, job.recipe.property.curve_samples), job.recipe.property.perturbation
    int8, budget = job.file(INT8_C.model) if job.file(INT8_C.file).exists() else None, job.recipe.deploy.live_budget

    def tell(text: str) -> None:
        job.emit({"text": text})

    found = record_live(job.file(SPARSE.model), first, asked, some, held, tell, int8=int8, budget=budget)
    write_document(job.output / Path(LIVE).name, found)


def _write_inputs(job: VerifyJob, form: DeployedForm, certificate: Certificate) -> None:
    """Writes the samples of all claims but the falsified ones, whose samples lie beside their counterexamples.

    From them anyone can derive the certified claims again, and find out how many samples are classified correctly.
    """
    model = read_model(job.file(form.model), regression=certificate.property.regression)
    inputs, _ = take_samples(job.dataset, model, job.recipe.property.samples)
    kept = np.array([claim.id for claim in certificate.claims if claim.verdict != "falsified"], dtype=np.int64)
    write_bytes(job.folder_of(form) / "inputs.npz", npz_bytes({"ids": kept, "inputs": inputs[kept]}))


def spread(dataset: Dataset, count: int) -> Dataset:
    """Returns `count` samples evenly spaced over a split (all where it has fewer), as the first ones may all be of one class."""
    index = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(np.int64))
    return samples_of(dataset, index)


def samples_of(dataset: Dataset, index: NDArray[np.int64]) -> Dataset:
    """Returns the samples of a split with these places."""
    groups = None if dataset.groups is None else dataset.groups[index]
    targets = None if dataset.targets is None else dataset.targets[index]
    return replace(dataset, pixels=dataset.pixels[index], labels=dataset.labels[index], groups=groups, targets=targets)
