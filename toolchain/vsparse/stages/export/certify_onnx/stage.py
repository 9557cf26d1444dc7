"""Writes the certifying file of a form beside it, once what a runtime executes of it was held against bounds in float64."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx

from vsparse.artifact.document import write_document
from vsparse.artifact.hashes import content_sha256, set_metadata
from vsparse.artifact.models import CERTIFYING_OF, CertifyingPlaces, CertifyingRecord, CertifyingRefusal
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.files import read_bytes, write_bytes
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.onnx_file import MAX_ONNX_BYTES
from vsparse.perturbation import PerturbationSet
from vsparse.reading.runtime import LEVELS, VERSION
from vsparse.stages.export.certify_onnx.build import certifying_model
from vsparse.stages.export.certify_onnx.check import THREADS, check_certifying

# Training samples, evenly spaced over the split, that are executed; and the radii, in those of the property.
SAMPLES = 16
SHARES = (Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(1), Fraction(2))


def stamped_certifying(
    model: onnx.ModelProto, recipe: str, clip: tuple[float, float], form: str = "sparse", contract_name: str = "fp32"
) -> onnx.ModelProto:
    """Returns the certifying file of a form's model as the export stage writes it: with the names of recipe, contract and network.

    Raises InputError as `certifying_model` does.
    """
    made = certifying_model(model, clip, Path(CERTIFYING_OF[form].file).stem, contract_name)
    set_metadata(made, {"recipe": recipe, "contract": contract_name, "network": content_sha256(model)})
    return made


def write_further_certifying(
    network: Path, recipe: str, perturbation: PerturbationSet, training: Dataset, form: str, contract_name: str
) -> None:
    """Writes the certifying file of a further form and its record, or what says why that form has none.

    Raises GateError where a runtime executes something else than was written.
    """
    try:
        write_certifying(network, recipe, perturbation, training, form, contract_name)
    except InputError as error:
        told = CertifyingRefusal(contract=contract_name, reason=str(error))
        write_document(network.with_name(Path(CERTIFYING_OF[form].refusal).name), told)


def write_certifying(
    network: Path, recipe: str, perturbation: PerturbationSet, training: Dataset, form: str = "sparse", contract_name: str = "fp32"
) -> None:
    """Writes the certifying file of a form's model file into the same folder, and its record.

    Its ball is l∞ around the input and its radius an input, whatever the property's set is; it is clipped to that set's data range.
    Raises InputError for a network that has no such file (`certifying_model`), and GateError where a runtime executes something else than
    was written.
    """
    data = read_bytes(network, "model", MAX_ONNX_BYTES)
    model = onnx.load_model_from_string(data)
    places: CertifyingPlaces = CERTIFYING_OF[form]
    made = stamped_certifying(model, recipe, perturbation.clip, form, contract_name)
    graph = from_onnx(data)
    index = np.unique(np.linspace(0, len(training) - 1, min(SAMPLES, len(training))).round().astype(np.int64))
    samples = training.inputs(index).reshape(len(index), *graph.input_shape)
    longest = Fraction(perturbation.clip[1]) - Fraction(perturbation.clip[0])
    radii = [np.float32(float(min(share * perturbation.box_radius, longest))) for share in SHARES]
    runs = check_certifying(made, graph, perturbation.clip, samples, list(dict.fromkeys(radii)), contract_name)
    record = CertifyingRecord(
        content_sha256=content_sha256(made),
        network_sha256=content_sha256(model),
        contract=contract_name,
        clip=perturbation.clip,
        nodes=len(made.graph.node),
        size_bytes=made.ByteSize(),
        runtime="onnxruntime",
        runtime_version=VERSION,
        levels=tuple(LEVELS),
        threads=THREADS,
        samples=len(samples),
        executions=runs.executions,
        radii=runs.radii,
    )
    write_bytes(network.with_name(Path(places.file).name), made.SerializeToString(deterministic=True))
    write_document(network.with_name(Path(places.record).name), record)
