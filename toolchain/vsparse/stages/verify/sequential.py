"""The certificate of model.c, under contract `sequential`, and its audit: compiled here, executed, and compared with the bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.artifact.certificate import COUNTEREXAMPLES, Certificate, Claim, summarise
from vsparse.artifact.counterexamples import Counterexamples
from vsparse.bounds import Rounding, interval, region
from vsparse.contract import CONTRACTS, Contract
from vsparse.data import Dataset
from vsparse.errors import GateError, InputError, UnavailableError
from vsparse.graph import Graph
from vsparse.stages.export.c_source import CompiledModel, simulate
from vsparse.stages.export.c_source.compile import NATIVE, OPTIONS
from vsparse.stages.export.c_source.stage import prefix_of
from vsparse.stages.verify.audit import Audit, enclosure, region_points
from vsparse.stages.verify.certify import take_samples
from vsparse.stages.verify.deployed import Deployed, predictions, read_model
from vsparse.stages.verify.regression import with_values

SEQUENTIAL = CONTRACTS["sequential"]
_Array = NDArray[np.float32]
FUSING = ("-O3", "-std=c99", "-ffp-contract=fast", "-march=native")
CHUNK = 64
# The simulation takes one pass of numpy for each weight of a filter, so only this many points are compared bit for bit.
COMPARED = 64
INCLUDED = (
    "what is certified here was proved under contract fp32, for sums in every order with and without fused multiply-add; "
    "the order in which model.c adds is one of them"
)


@dataclass(frozen=True)
class CForm:
    """A network in C, as far as its certificate and its audit depend on which: model.c, or model.int8.c.

    `follows` is the contract from whose claims those under `rules` follow, `simulate` computes the logits [n, classes] of inputs of a
    graph as the C does without fused multiply-add, and `prefix` finds what its names begin with.
    """

    file: str
    follows: Contract
    rules: Contract
    replay: Mapping[str, str]
    note: str
    simulate: Callable[[Graph, _Array], _Array]
    prefix: Callable[[Path], str]
    differs: str


FLOAT_C = CForm(
    "model.c",
    CONTRACTS["fp32"],
    SEQUENTIAL,
    {"runtime": "model.c", "order": "sequential", "fused_multiply_add": "no", "batch": "1"},
    INCLUDED,
    lambda graph, inputs: simulate(graph, inputs)[graph.output],
    prefix_of,
    "model.c does not compute the stated order of summation",
)


def sequential_certificate(onnx_path: Path, source: Path, dataset: Dataset, certificate: Certificate, how: CForm = FLOAT_C) -> Certificate:
    """Returns the certificate of a network in C that follows from the one of its ONNX file, of model.c from that under contract `fp32`.

    Every execution of the C is one that that contract covers, so certified claims hold for it. The other samples are executed again: a
    claim stays falsified only where every execution within the contract of the C misclassifies its counterexample, and is unknown
    otherwise. Raises GateError for a certificate under another contract or about another file.
    """
    model = _certified_model(onnx_path, certificate)
    if certificate.contract != how.follows.as_dict():
        raise GateError(
            f"a certificate under {certificate.contract.get('name')} says nothing about {how.file}; certify it under {how.rules.name}"
        )
    inputs, _ = take_samples(dataset, model, len(certificate.claims))
    open_ids = [claim.id for claim in certificate.claims if claim.verdict != "certified"]
    predicted = dict(zip(open_ids, predictions(_execute(how, model, source, inputs[open_ids])).tolist(), strict=True)) if open_ids else {}
    regression = certificate.property.regression
    # A counterexample of regression is one in every execution that the wider contract covers.
    found = certificate.counterexamples if regression else None
    kept = found if found is not None else _still_falsified(how, model, source, certificate.counterexamples)
    claims = tuple(_claim(how, claim, predicted, kept) for claim in certificate.claims)
    if regression:
        certificate = with_values(certificate.model_copy(update={"claims": claims}), _execute(how, model, source, inputs).ravel())
        claims = certificate.claims
    return certificate.model_copy(
        update={
            "contract": how.rules.as_dict(),
            "replay": dict(how.replay),
            "summary": summarise(claims, certificate.data.classes),
            "note": how.note,
            "counterexamples_sha256": kept.sha256(),
            "claims": claims,
            "counterexamples": kept,
        }
    )


def audit_sequential(
    onnx_path: Path,
    source: Path,
    dataset: Dataset,
    certificate: Certificate,
    samples: int = 16,
    seed: int = 0,
    how: CForm = FLOAT_C,
) -> Audit:
    """Compiles a network in C with three sets of options and executes points of certified regions (of any, where none is certified).

    Logits must lie inside their proved enclosure under the contract; without fused multiply-add they must equal, number for number, what
    the C states, executed in numpy. Raises UnavailableError where there is no C compiler, GateError for another file.
    """
    model = _certified_model(onnx_path, certificate)
    certified = [claim.id for claim in certificate.claims if claim.verdict == "certified"]
    chosen = (certified or [claim.id for claim in certificate.claims])[:samples]
    inputs, labels = take_samples(dataset, model, max(chosen) + 1)
    x, y = inputs[chosen], labels[chosen]
    perturbation = certificate.property
    with torch.no_grad():
        _, box = enclosure(model, Rounding(model.graph, how.rules), region(torch.from_numpy(x), perturbation))
    points = region_points(model, x, y, perturbation, chosen, seed)
    n, count = points.shape[:2]
    flat = points.reshape(n * count, *points.shape[2:])
    some = np.unique(np.linspace(0, len(flat) - 1, min(COMPARED, len(flat))).astype(np.int64))
    expected = _simulated(how, model, flat[some])
    lower, upper = (end.numpy().repeat(count, axis=0) for end in box)
    result = Audit(how.rules.name, n, n * count)
    for options in (OPTIONS, NATIVE, FUSING):
        where = f"cc {' '.join(options)}"
        try:
            compiled = CompiledModel(source, model.graph.input_shape, model.classes, options, how.prefix(source))
        except InputError:
            if options is OPTIONS:
                raise
            continue  # a compiler that does not know -march=native
        with compiled:
            got = compiled.logits(flat)
        result.sessions += 1
        result.executions += len(flat)
        result.logits_checked += got.size
        outside = ~((got >= lower) & (got <= upper))
        if outside.any():
            result.violate(
                f"a logit of region {np.argwhere(outside)[0][0] // count} is outside its enclosure ({where})", int(outside.sum())
            )
        wrong = predictions(got) != y.repeat(count)
        if certified and wrong.any():
            result.violate(f"a point of certified region {np.argwhere(wrong)[0][0] // count} is misclassified ({where})", int(wrong.sum()))
        if options is not FUSING:
            other = ~(got[some] == expected)
            result.values_checked += other.size
            if other.any():
                result.violate(f"{how.differs} ({where})", int(other.sum()))
    return result


def _certified_model(onnx_path: Path, certificate: Certificate) -> Deployed:
    model = read_model(onnx_path, certificate.model.file, certificate.property.regression)
    if model.sha256 != certificate.model.sha256:
        raise GateError(f"model {onnx_path} is not the one that was certified (its content has another hash); build the artifact again")
    return model


def _execute(how: CForm, model: Deployed, source: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the logits of the C without fused multiply-add: compiled where there is a compiler, else the same numbers from numpy."""
    try:
        with CompiledModel(source, model.graph.input_shape, model.classes, prefix=how.prefix(source)) as compiled:
            return compiled.logits(inputs)
    except UnavailableError:
        return _simulated(how, model, inputs)


def _simulated(how: CForm, model: Deployed, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([how.simulate(model.graph, inputs[start : start + CHUNK]) for start in range(0, len(inputs), CHUNK)])


def _still_falsified(how: CForm, model: Deployed, source: Path, found: Counterexamples | None) -> Counterexamples:
    """Returns the counterexamples that every execution within the contract misclassifies, with what the C predicts for them."""
    if found is None or not len(found):
        none, no_inputs = np.zeros(0, np.int64), np.zeros((0, *model.graph.input_shape), np.float32)
        return Counterexamples(none, no_inputs, no_inputs, none, none)
    predicted = predictions(_execute(how, model, source, found.inputs))
    rounding = Rounding(model.graph, how.rules)
    wrong: list[NDArray[np.bool_]] = []
    for start in range(0, len(found), CHUNK):
        x, labels = torch.from_numpy(found.inputs[start : start + CHUNK]).double(), found.labels[start : start + CHUNK]
        with torch.no_grad():
            lower, upper = (end.numpy() for end in interval(model.graph, rounding.params, (x, x), rounding)[model.graph.output])
        rows = np.arange(len(labels))
        of_label = upper[rows, labels]
        lower = lower.copy()
        lower[rows, labels] = -np.inf
        wrong.append(np.isfinite(upper).all(axis=1) & (lower.max(axis=1) > of_label))
    keep = np.concatenate(wrong) & (predicted >= 0) & (predicted != found.labels)
    return Counterexamples(found.ids[keep], found.inputs[keep], found.originals[keep], found.labels[keep], predicted[keep])


def _claim(how: CForm, claim: Claim, predicted: dict[int, int], kept: Counterexamples) -> Claim:
    if claim.verdict == "certified":
        return claim.model_copy(update={"contract": how.rules.name})
    falsified = claim.verdict == "falsified" and claim.id in set(kept.ids.tolist())
    # A clean prediction that is not wrong in every execution falsifies nothing.
    method = claim.method if falsified or claim.method not in ("clean", "attack") else "none"
    return claim.model_copy(
        update={
            "contract": how.rules.name,
            "predicted": predicted[claim.id],
            "verdict": "falsified" if falsified else "unknown",
            "method": method,
            "proof": COUNTEREXAMPLES if falsified else None,
        }
    )
