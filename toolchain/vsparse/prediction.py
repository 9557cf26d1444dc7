"""What a network says of inputs that are in no dataset: the class or number, and the largest radius at which it is proved to stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import inf, nextafter, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse import artifact
from vsparse.artifact.certificate import read_certificate
from vsparse.artifact.device import DEVICE_RESULTS, NOT_CERTIFIED, SENTENCES, DeviceResults
from vsparse.artifact.document import read_if_there
from vsparse.artifact.features import FEATURES, FeatureList
from vsparse.artifact.forms import SPARSE
from vsparse.contract import contract as contract_named
from vsparse.data.bounded import Zip
from vsparse.data.images import Remarks, decode
from vsparse.data.npz import read_array
from vsparse.data.table import TABLE_SUFFIXES, row_values
from vsparse.errors import GateError, InputError
from vsparse.files import read_bytes
from vsparse.graph.from_onnx import from_onnx
from vsparse.notebook import table
from vsparse.perturbation import PerturbationSet
from vsparse.reading import check_reading
from vsparse.recipe import load_recipe
from vsparse.stages.export import check_runtime_graph
from vsparse.stages.verify.cascade import Cascade, Question
from vsparse.stages.verify.certify import asked_about, require_contract
from vsparse.stages.verify.deployed import predictions, read_model
from vsparse.stages.verify.regression import RegressionCascade, finite

MAX_IMAGE_BYTES, MAX_ARRAY_BYTES = 64 * 2**20, 2**28
MAX_INPUTS = 10_000
# Radii are tried in steps of one by this, up to the largest of their norm.
STEPS = 10_000
LARGEST = {"linf": 1, "l2": 100, "l1": 1000}
METHODS = ("interval", "crown-ibp", "crown")
WHITE = 255.0


@dataclass(frozen=True)
class Prediction:
    """What is proved about one input.

    `label` is the class that the network answers, -1 where a logit is not finite, and `name` what the artifact calls it. `margin_lower` is
    the proved lower bound of its logit less the largest other one over the region, None where nothing is proved, and `certified` whether
    it is above 0. `radius` is the largest one, in steps of 0.0001, that was proved to leave the class as it is; None where not even 0 is.
    Of regression `label` is 0 (-1: the answer is not finite), `value` the answer and `name` its text, `change_upper` a proved upper bound
    of how far any execution in the region is from any of the input, `certified` whether delta is not exceeded, `margin_lower` a proved
    lower bound of delta less that change, and `radius` the largest one that was proved to keep the change within delta.
    """

    source: str
    label: int
    name: str
    certified: bool
    margin_lower: float | None
    radius: float | None
    value: float | None = None
    change_upper: float | None = None


@dataclass(frozen=True)
class Predictions:
    """Predictions under a property and a contract; `remarks` says what decoders did to images, and what a device found against it."""

    model: str
    property: PerturbationSet
    contract: str
    predictions: tuple[Prediction, ...]
    remarks: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        kind, bound = ("answer", "change at most") if self.property.regression else ("class", "proved margin")
        head = ("input", kind, "certified", "radius", bound)
        rows = [
            (one.source, one.name, one.certified, one.radius, one.change_upper if self.property.regression else one.margin_lower)
            for one in self.predictions
        ]
        return table(f"{self.model}: ε {self.property.epsilon}, contract {self.contract}", head, rows, "; ".join(self.remarks))

    def as_dict(self) -> dict[str, Any]:
        """Returns the predictions as JSON values."""
        return {
            "model": self.model,
            "property": self.property.model_dump(mode="json"),
            "contract": self.contract,
            "predictions": [
                _without(asdict(one), () if self.property.regression else ("value", "change_upper")) for one in self.predictions
            ],
            "remarks": list(self.remarks),
        }


def predict(
    source: Path | str,
    inputs: Sequence[Path | str],
    *,
    epsilon: str | None = None,
    norm: str | None = None,
    contract: str | None = None,
    delta: str | None = None,
) -> Predictions:
    """Predicts a class or number for inputs, and bounds over the region around each how it can change (docs/properties.md).

    `source` is an artifact, whose property and contract are taken where they are not given, or an ONNX classifier, whose radius is 0 and
    whose contract is then the one that ONNX Runtime keeps, or with `delta`, the most that an answer may change in its own unit, a network
    with one answer. Each of `inputs` is an image of the network's channels and size (of any size
    where the artifact's recipe resizes images, as it does), read as pixel / 255, an .npz file with an array x [n, *shape] of uint8, or of
    floats in [0, 1], or, for an artifact of a table, a CSV or Parquet file with the columns of the training table in their own units.
    Bounds are those of `vsparse verify` without its searches. Raises InputError for what cannot be read or is of another shape,
    GateError for an artifact that was changed and for a file that is executed as another network.
    """
    source = Path(source)
    names: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    resize: tuple[int, ...] = ()
    perturbation, chosen = PerturbationSet.parse("the property asked for", epsilon="0"), contract
    path = source
    features: FeatureList | None = None
    if source.is_dir():
        artifact.require_intact(source)
        certificate = read_certificate(source / SPARSE.certificate)
        perturbation, chosen = certificate.property, contract or certificate.contract["name"]
        names, resize = certificate.data.classes, load_recipe(str(source / artifact.RECIPE)).data.resize
        if certificate.void:
            raise GateError(f"the certificate of {source} is void: {certificate.void}; nothing is proved with its contract, build it again")
        there = read_if_there(DeviceResults, source / DEVICE_RESULTS)
        if there is not None and there.uncertified:
            doubts = (f"{NOT_CERTIFIED} ({there.label}): {'; '.join(there.uncertified[:SENTENCES])}",)
        path = source / artifact.MODEL
        features = read_if_there(FeatureList, source / FEATURES)
    if delta is not None and source.is_dir() and not perturbation.regression:
        raise InputError(f"delta is the most that a number may change, and {source} classifies; leave it out")
    if epsilon is not None or norm is not None or delta is not None:
        kept = {"clip": perturbation.clip, "brightness": perturbation.brightness, "contrast": perturbation.contrast}
        kept |= {"scales": perturbation.scales, "delta": perturbation.delta if delta is None else delta}
        perturbation = PerturbationSet.parse(
            "the property asked for",
            norm=perturbation.norm if norm is None else norm,
            epsilon=perturbation.epsilon if epsilon is None else epsilon,
            **kept,
        )
        perturbation.require_within_range()
        if delta is not None and not perturbation.regression:
            raise InputError("delta is the most that the answer may change, and must be above 0; leave it out for a classifier")
    from_onnx(path)  # a damaged file, or an operator without bounds, is named before anything is executed
    check_runtime_graph(path)
    model = read_model(path, regression=perturbation.regression)
    rounding = contract_named(chosen or model.executes)
    require_contract(model, rounding, f"model {path}")
    remarks = Remarks()
    x, sources, told = _read(inputs, model.graph.input_shape, remarks, resize, features)
    doubts += told
    asked = asked_about(x, perturbation)
    check_reading(model.data, model.reading, where=f"model {path}", asked=asked, optimised=not rounding.exact)
    kind = RegressionCascade if perturbation.regression else Cascade
    cascade = kind(model, Question(perturbation, rounding, METHODS, 0, 1, 1, 0))
    outputs = np.concatenate([cascade.runtime.logits(one[None]) for one in x])
    found = [_prediction(cascade, x[i : i + 1], outputs[i : i + 1], sources[i], names) for i in range(len(x))]
    return Predictions(str(path), perturbation, rounding.name, tuple(found), (*doubts, *remarks.sentences(len(x))))


def _without(content: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _prediction(cascade: Cascade, x: NDArray[np.float32], output: NDArray[np.float32], source: str, names: tuple[str, ...]) -> Prediction:
    """Returns what is proved about one input [1, *shape], whose outputs are [1, outputs]."""
    perturbation = cascade.question.perturbation
    label = int(predictions(output)[0])  # of one output: the first, or -1 where it is not finite
    margin = None if label < 0 else _margin(cascade, x, label)
    radius = None if label < 0 else _radius(cascade, x, label)
    certified = margin is not None and margin > 0
    if not perturbation.regression:
        return Prediction(source, label, names[label] if 0 <= label < len(names) else str(label), certified, margin, radius)
    value = finite(output[0, 0])
    change = None if margin is None else _above(Fraction(perturbation.delta) - Fraction(margin))
    return Prediction(source, label, "" if value is None else f"{value:.6g}", certified, margin, radius, value, change)


def _above(exact: Fraction) -> float:
    """Returns a double that is not below an exact number."""
    near = float(exact)
    return near if Fraction(near) >= exact else nextafter(near, inf)


def _margin(cascade: Cascade, x: NDArray[np.float32], label: int) -> float | None:
    """Returns the best proved lower bound of the margin of x [1, *shape]: the cheapest method that proves the class decides."""
    best = -np.inf
    for method in METHODS:
        best = max(best, float(cascade.bound(method, x, np.array([label]))[0]))
        if best > 0:
            break
    return float(best) if np.isfinite(best) else None


def _radius(cascade: Cascade, x: NDArray[np.float32], label: int) -> float | None:
    """Returns the largest radius of the steps that a bisection proves; regions of smaller radii lie inside, so none needs a proof."""
    question = cascade.question

    def proved(step: int) -> bool:
        cascade.question = replace(question, perturbation=question.perturbation.with_epsilon(f"{step / STEPS:.4f}"))
        margin = _margin(cascade, x, label)
        return margin is not None and margin > 0

    try:
        if not proved(0):
            return None
        largest = LARGEST["l2" if question.perturbation.scales else question.perturbation.norm]  # deviations may be many
        low, high = 0, largest * STEPS + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if proved(middle) else (low, middle)
        return low / STEPS
    finally:
        cascade.question = question


def _read(
    inputs: Sequence[Path | str], shape: tuple[int, ...], remarks: Remarks, resize: tuple[int, ...], features: FeatureList | None
) -> tuple[NDArray[np.float32], list[str], tuple[str, ...]]:
    """Returns inputs as float32 [n, *shape], where each comes from, and sentences on values that were clipped."""
    found, sources, told = [], [], []
    for one in inputs:
        path = Path(one)
        if path.suffix.lower() == ".npz":
            values = _of_archive(path, shape)
            sources += [f"{path}[{i}]" for i in range(len(values))]
        elif path.suffix.lower() in TABLE_SUFFIXES:
            values, clipped = _of_table(path, shape, features)
            sources += [f"{path}[{i}]" for i in range(len(values))]
            if clipped:
                told.append(f"{path}: {clipped} values lie outside of the data range of the training split and were clipped to it")
        else:
            values = _of_image(path, shape, remarks, resize)[None]
            sources.append(str(path))
        found.append(values)
        if len(sources) > MAX_INPUTS:
            raise InputError(f"more than {MAX_INPUTS} inputs are given; give fewer at once")
    if not found:
        raise InputError("no input is given; name images, or .npz files with an array x")
    return np.concatenate(found), sources, tuple(told)


def _of_table(path: Path, shape: tuple[int, ...], features: FeatureList | None) -> tuple[NDArray[np.float32], int]:
    """Returns the rows of a table in its own units as inputs, and how many values were clipped to the data range."""
    if features is None:
        raise InputError(f"{path} is a table, and {FEATURES} of an artifact says how rows become inputs; give the artifact of a table")
    values = row_values(path, [(one.column, one.category) for one in features.features])
    x, clipped = features.scaled(values)
    if x[0].size != prod(shape):
        raise InputError(f"{FEATURES} lists {x[0].size} inputs, and the network takes {_words(shape)}; build the artifact again")
    return x.reshape(-1, *shape), clipped


def _of_image(path: Path, shape: tuple[int, ...], remarks: Remarks, resize: tuple[int, ...]) -> NDArray[np.float32]:
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"{path} is an image, and the network takes {_words(shape)}; give an .npz file with an array x of that shape")
    _, pixels = decode(read_bytes(path, "image", MAX_IMAGE_BYTES), str(path), None, "", remarks, resize)
    if pixels.shape != shape:
        kinds = {1: "grey", 3: "RGB"}
        have = f"{pixels.shape[2]} × {pixels.shape[1]} {kinds[pixels.shape[0]]}"
        raise InputError(
            f"{path} is {have}, and the network takes {shape[2]} × {shape[1]} {kinds[shape[0]]}; "
            "crop, scale or convert it as the training images were"
        )
    return np.divide(pixels.astype(np.float32), np.float32(WHITE), dtype=np.float32)


def _of_archive(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    archive = Zip(path)
    try:
        if "x.npy" not in archive.members:
            raise InputError(f"{path} has no array x; write it with numpy.savez({path.name!r}, x=…)")
        values = read_array(archive, "x", MAX_ARRAY_BYTES)
    finally:
        archive.close()
    if values.shape == shape:
        values = values[None]
    if values.shape[1:] != shape or not len(values):
        raise InputError(f"{path}: x has the shape {list(values.shape)}, and the network takes {_words(shape)}; give [n, …] of that shape")
    if values.dtype == np.uint8:
        return np.divide(values.astype(np.float32), np.float32(WHITE), dtype=np.float32)
    if values.dtype.kind != "f":
        raise InputError(f"{path}: x holds {values.dtype.name}; give uint8 pixels, or floats in [0, 1]")
    with np.errstate(invalid="ignore"):
        if not ((values >= 0) & (values <= 1)).all():
            raise InputError(f"{path}: x has values outside [0, 1], which regions are clipped to; scale it as the training data was")
    return values.astype(np.float32)


def _words(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
