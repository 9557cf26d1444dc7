"""The deployed files of an artifact: models stamped with their certificate, the `device/` folder, an engine where one can be built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.artifact.certificate import Certificate, read_certificate
from vsparse.artifact.device_folder import DeviceTiming
from vsparse.artifact.document import write_document
from vsparse.artifact.features import FeatureList
from vsparse.artifact.forms import FORMS, INT8_C, SEQUENTIAL, SPARSE, DeployedForm
from vsparse.artifact.models import C_COLUMNS, CERTIFYING_OF
from vsparse.bounds import Rounding, ball, interval
from vsparse.contract import contract
from vsparse.errors import UnavailableError
from vsparse.files import write_bytes
from vsparse.graph.from_onnx import from_onnx
from vsparse.recipe import Recipe
from vsparse.stages.export import CertifiedModel, DeployedSource, Probe, build_engine, stamp, write_device_folder
from vsparse.stages.export.c_int8.stage import int8_prefix_of
from vsparse.stages.export.c_source.columns import columns_header
from vsparse.stages.export.c_source.stage import prefix_of
from vsparse.stages.export.certifying_folder import CertifyingFile
from vsparse.target import Target

PROBES = 8


def finish_models(directory: Path, target: Target, recipe: Recipe | None = None) -> None:
    """Stamps the models with the hash of their certificate (their content hash stays) and writes `device/` for a target with a system.

    Where the target runs TensorRT and this machine has it and a GPU of the kind, an engine is built too; otherwise
    `device/` holds what builds it there. Raises GateError for an engine of another precision than the file's.
    """
    model = directory / SPARSE.model
    variants: dict[str, Path] = {}
    probes: dict[str, list[Probe]] = {}
    certified: dict[str, CertifiedModel] = {}
    main_sha256 = ""
    for form in FORMS:
        path, claims = directory / form.file, directory / form.certificate
        if not form.is_onnx or not path.exists():
            continue
        if form.device_variant:
            variants[form.device_variant] = path
        if not claims.exists():
            continue
        certificate = read_certificate(claims)
        stamp(path, {"certificate": certificate.digest(), "target": target.name})
        if form == SPARSE:
            main_sha256 = certificate.digest()
        if form.variant == "sparse":
            probes[form.device_variant] = device_probes(path, certificate, directory / form.folder / "inputs.npz")
        if form.is_further:
            precision = cast(Literal["fp16", "bf16", "int8"], form.name)
            certified[form.device_variant] = CertifiedModel(precision, certificate.contract["name"], certificate.digest())
    certifying: list[CertifyingFile] = []
    for form in FORMS:
        places = CERTIFYING_OF.get(form.name)
        if recipe is not None and places is not None and (directory / places.file).exists():
            claimed = certified.get(form.device_variant, CertifiedModel(certificate_sha256=main_sha256))
            stamp(directory / places.file, {"certificate": claimed.certificate_sha256, "target": target.name})
            certifying.append(_certifying(directory, recipe, form, claimed, probes.get(form.device_variant, [])))
    if target.device.kind == "microcontroller":
        return  # what runs there is model.c, and there is nothing to run a script on
    how = None if recipe is None else recipe.profile
    write_device_folder(
        directory / "device",
        variants,
        target,
        main_sha256,
        recipe="" if recipe is None else recipe.name,
        contract_name="" if recipe is None else recipe.verify.contract,
        timing=None if how is None else DeviceTiming(runs=how.runs, threads=how.threads, batch=how.batch),
        probes=probes,
        certified=certified,
        sources=_sources(directory),
        certifying=next((one for one in certifying if one.network == model), None),
        further_certifying=[one for one in certifying if one.network != model],
    )
    if target.runtime.name == "tensorrt":
        try:
            report = build_engine(model, model.with_suffix(".engine"), target=target)
        except UnavailableError:
            return
        write_document(model.with_name("engine.json"), report)


def write_columns(directory: Path, features: FeatureList, recipe: Recipe) -> None:
    """Writes the map from a table's columns to the input beside a network in C; nothing where the artifact has none."""
    if any((directory / form.file).exists() for form in (SEQUENTIAL, INT8_C)):
        text = columns_header(features, recipe.export.c_prefix, recipe.name)
        write_bytes((directory / SPARSE.model).with_name(C_COLUMNS), text.encode())


def _sources(directory: Path) -> list[DeployedSource]:
    """Returns the networks in C that were written, each with the certificate that is about it and probes of its own contract."""
    found = []
    for form in (SEQUENTIAL, INT8_C):
        path, claims = directory / form.file, directory / form.certificate
        if not path.exists():
            continue
        precision: Literal["fp32", "int8"] = "int8" if form == INT8_C else "fp32"
        certified, probes = CertifiedModel(precision), list[Probe]()
        if claims.exists():
            certificate = read_certificate(claims)
            certified = CertifiedModel(precision, certificate.contract["name"], certificate.digest())
            probes = device_probes(directory / form.model, certificate, directory / form.folder / "inputs.npz")
        prefix = int8_prefix_of(path) if form == INT8_C else prefix_of(path)
        found.append(DeployedSource(form.name, path, directory / form.model, prefix, certified, probes))
    return found


def _certifying(directory: Path, recipe: Recipe, form: DeployedForm, claimed: CertifiedModel, probes: list[Probe]) -> CertifyingFile:
    """Returns the certifying file of a form with the inputs of the network's own probes, on which it is audited."""
    network, perturbation, places = directory / form.model, recipe.property.perturbation, CERTIFYING_OF[form.name]
    inputs = np.stack([probe.x for probe in probes]) if probes else np.zeros((0, *from_onnx(network).input_shape), np.float32)
    made = CertifyingFile(directory / places.file, network, inputs, perturbation.box_radius, perturbation.clip)
    if form == SPARSE:
        return made
    return replace(made, role=places.role, contract=claimed.contract, certificate_sha256=claimed.certificate_sha256)


def device_probes(model: Path, certificate: Certificate, inputs: Path) -> list[Probe]:
    """Returns corners of certified balls with the enclosure of their logits, on which the device itself is audited.

    See docs/numerics.md, section 11.2.
    """
    graph = from_onnx(model)
    rules = contract(certificate.contract["name"])
    if rules.exact or not inputs.exists():
        return []
    with np.load(inputs, allow_pickle=False) as arrays:
        samples: dict[int, NDArray[np.float32]] = dict(zip(arrays["ids"].tolist(), arrays["inputs"], strict=True))
    chosen = [claim for claim in certificate.claims if claim.verdict == "certified" and claim.id in samples][:PROBES]
    if not chosen:
        return []
    x = torch.from_numpy(np.stack([samples[claim.id] for claim in chosen])).reshape(len(chosen), *graph.input_shape)
    # A corner of the ball, rounded to the device's input format; the enclosure is that of this one point as executed.
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.float32) * 2 - 1
    points = (x + signs * float(certificate.property.epsilon)).clamp(*certificate.property.clip)
    with torch.no_grad():
        box = ball(points, certificate.property.epsilon * 0, certificate.property.clip)
        lower, upper = interval(graph, graph.tensors(torch.float64), box, Rounding(graph, rules))[graph.output]
    known = torch.isfinite(lower).all(1) & torch.isfinite(upper).all(1)  # where an overflow is possible there is nothing to hold against
    boxes = zip(points[known], lower[known], upper[known], strict=True)
    return [Probe(point.numpy(), low.numpy(), high.numpy()) for point, low, high in boxes]
