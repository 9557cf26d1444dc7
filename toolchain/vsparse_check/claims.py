"""One certificate: the model it is about, its samples, and every certified claim against its own derivation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse_check import photometric
from vsparse_check.bounds import Bounds
from vsparse_check.certificate import METHODS, read_certificate, read_file
from vsparse_check.form import check_form
from vsparse_check.limits import CALL, Budget
from vsparse_check.model import Network
from vsparse_check.proofs import Proof, improve, read_proofs
from vsparse_check.refusal import Refused, Unchecked, knowing, known, need, reading
from vsparse_check.region import Property, Region
from vsparse_check.rounding import CONTRACTS, Rounding
from vsparse_check.samples import (
    Answers,
    Data,
    Inputs,
    at_once,
    check_counterexamples,
    read_counterexamples,
    read_inputs,
    samples_sha256,
    size_of,
)

NEAR = 1e-3  # how little a margin may be missed by before a stronger method is tried
MANY_STEPS = 10  # of an attack that one step of the checker's should not beat by much
CONFIRMED, REFUTED, UNCHECKED = "confirmed", "refuted", "cannot be checked"
Progress = Callable[[int, int], None]


class Record(NamedTuple):
    """What was found about one certificate.

    `certified` counts its claims, `confirmed` those that were derived again. Accuracies are shares of `samples`, the claims; `clean` holds
    the least and the greatest clean accuracy that the checker's own execution leaves possible, `distinct` counts different inputs.
    """

    name: str
    verdict: str = UNCHECKED
    problem: str = ""
    model: str = ""
    contract: str = ""
    norm: str = ""
    epsilon: str = ""
    brightness: str = "0"
    contrast: str = "0"
    clip: tuple[float, float] = (0.0, 1.0)
    data: str = ""
    samples: int = 0
    distinct: int = 0
    certified: int = 0
    confirmed: int = 0
    clean_stated: float = 0.0
    clean: tuple[float, float] = (0.0, 1.0)
    attacked_stated: float = 0.0
    same_data: bool = False  # whether the samples were compared with data that the caller gave

    @property
    def certified_accuracy(self) -> float:
        """Returns the share of the samples whose certified claims were derived again."""
        return self.confirmed / self.samples if self.samples else 0.0


class Place(NamedTuple):
    """Where a certificate lies and which model it must be about: a folder and a file, and their names in the artifact."""

    folder: Path
    file: Path
    name: str
    model: str


def content_sha256(model: onnx.ModelProto) -> str:
    """Returns the hash a certificate names a model by: of its deterministic serialisation with `metadata_props` cleared."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ClearField("metadata_props")
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()


def check_certificate(place: Place, budget: Budget, data: Data | None, progress: Progress) -> Record:
    """Checks one certificate and never raises: what is not so is refuted, what is not known cannot be checked."""
    record = Record(place.name)
    try:
        with reading(place.name), np.errstate(all="ignore"):  # what is not finite proves nothing
            content, allowed = read_certificate(place.folder / "certificate.json", budget)
            record = stated(place, content)
            record = _checked(record, place, content, allowed, budget, data, progress)
    except Unchecked as error:
        return record._replace(verdict=UNCHECKED, problem=f"{place.name}: {error}")
    except Refused as error:
        return record._replace(verdict=REFUTED, problem=f"{place.name}: {error}")
    return record


def stated(place: Place, content: dict[str, Any]) -> Record:
    """Returns a record with what a certificate says about itself."""
    claims, about, summary = content["claims"], content["property"], content["summary"]
    return Record(
        place.name,
        model=place.model,
        contract=str(content["contract"].get("name", "")) if isinstance(content["contract"], dict) else "",
        norm=about["norm"],
        epsilon=about["epsilon"],
        brightness=about.get("brightness", "0"),
        contrast=about.get("contrast", "0"),
        clip=(float(about["clip"][0]), float(about["clip"][1])),
        # It is printed in quotes, and must not end them.
        data=f"{content['data'].get('name', '')!s:.40} {content['data'].get('split', '')!s:.20}".strip().replace('"', "'"),
        samples=len(claims),
        distinct=len({claim["input_sha256"] for claim in claims}),
        certified=sum(claim["verdict"] == "certified" for claim in claims),
        clean_stated=float(summary["clean_accuracy"]),
        attacked_stated=float(summary["attacked_accuracy"]),
    )


def _checked(
    record: Record, place: Place, content: dict[str, Any], allowed: Property, budget: Budget, data: Data | None, progress: Progress
) -> Record:
    contract, by_id = content["contract"], {claim["id"]: claim for claim in content["claims"]}
    known(
        contract in CONTRACTS.values(), f"the contract {contract!s:.40} is none whose rounding this checker bounds: {', '.join(CONTRACTS)}"
    )
    ordered = place.name != "certificate/sequential" or contract["order"] == "sequential"
    need(ordered, f"the contract {contract['name']} is not the one of model.c, which adds up in order: sequential")
    empty = contract["storage"] == "real" and not (allowed.epsilon or allowed.brightness or allowed.contrast)
    known(not empty, "epsilon is 0 under the contract real: nothing is claimed but the classes of undisturbed samples in exact arithmetic")
    need(
        2 * record.distinct >= record.samples,
        f"{record.samples} claims are about {record.distinct} distinct input{'s' * (record.distinct != 1)}: these are not so many samples",
    )
    budget.spend(len(by_id) * 20.0 * CALL)
    network = _model(place, content, budget)
    inputs = _inputs(place, network, record.certified)
    answers = Answers(network, contract)
    held = dict(inputs)
    held |= _counterexamples(place, content, network, by_id, allowed, answers)
    same = data is not None and _compare_data(content, data, network, held)
    clean = _clean_accuracy(by_id, held, answers)
    record = record._replace(clean=clean, same_data=same)
    if place.name == "certificate/dense" and record.certified and not (place.folder / "inputs.npz").exists():
        raise Unchecked(f"the artifact does not hold the inputs of its {record.certified} claims")
    if int(content.get("settings", {}).get("attack_steps", 0)) >= MANY_STEPS:
        _attacked_accuracy(by_id, held, answers, allowed)
    missing = len(by_id.keys() - held.keys() - {claim["id"] for claim in content["claims"] if claim["verdict"] == "certified"})
    confirmed, problem = Derivations(place, content, allowed, network, inputs).all(progress)
    if problem:
        return record._replace(verdict=REFUTED, problem=problem, confirmed=confirmed)
    if missing:
        problem = f"{place.name}: the artifact does not hold the inputs of {missing} samples, so that nobody can tell their class"
        return record._replace(verdict=UNCHECKED, problem=problem, confirmed=confirmed)
    return record._replace(verdict=CONFIRMED, confirmed=confirmed)


def _model(place: Place, content: dict[str, Any], budget: Budget) -> Network:
    """Returns the network that a certificate is about; Refused where the file is another one."""
    model = onnx.ModelProto()
    with knowing(place.model):
        need(place.file.is_file(), f"{place.model} is not there")
        budget.fit(16.0 * place.file.stat().st_size)
        data = read_file(place.file)
        budget.hold(3.0 * len(data))
        model.ParseFromString(data)
    same = content["model"] == {"file": place.model, "sha256": content_sha256(model)}
    need(same, f"{place.model} is not the model that {place.name}/certificate.json is about: its name or content hash differs")
    stamp = [entry.value for entry in model.metadata_props if entry.key == "vsparse.certificate"]
    # The file that model.c was made from carries the hash of the first certificate.
    ours = stamp in ([], [content["certificate_sha256"]]) or place.name == "certificate/sequential"
    need(ours, f"{place.model} carries the hash of another certificate")
    with knowing(place.model), np.errstate(all="ignore"):
        network = Network(model, budget)
        # What holds in exact arithmetic is about no runtime, and model.c is written from the file as it stands.
        if content["contract"]["name"] not in ("real", "sequential"):
            check_form(model, network.shapes, network.parameters)
    return network


def _inputs(place: Place, network: Network, certified: int) -> Inputs:
    path = place.folder / "inputs.npz"
    if not path.exists() and (not certified or place.name == "certificate/dense"):
        return {}
    return read_inputs(path, size_of(network), network.budget)


def _counterexamples(
    place: Place, content: dict[str, Any], network: Network, by_id: dict[int, dict[str, Any]], allowed: Property, answers: Answers
) -> Inputs:
    path = place.folder / "counterexamples.npz"
    if not path.exists() or "counterexamples_sha256" not in content:
        return {}
    found = read_counterexamples(path, content["counterexamples_sha256"], size_of(network), network.budget)
    return check_counterexamples(found, by_id, allowed, answers)


def _compare_data(content: dict[str, Any], data: Data, network: Network, held: Inputs) -> bool:
    """Refuses a certificate that is not about the first samples of the data given; adds these to `held`."""
    claims, count = content["claims"], len(content["claims"])
    need(len(data.labels) >= count, f"it is about {count} samples, and the data given has {len(data.labels)}")
    fits = data.inputs[0].size == size_of(network)
    need(fits, f"the data given has {data.inputs[0].size} numbers for each input, and the model takes {size_of(network)}")
    right = samples_sha256(data, count, network.shape) == content["data"].get("inputs_sha256")
    need(right, f"it is not about the first {count} samples of the data given: data.inputs_sha256 is another hash")
    for claim in claims:
        need(
            claim["id"] < count and claim["label"] == data.labels[claim["id"]], f"sample {claim['id']} has another label in the data given"
        )
        x = np.ascontiguousarray(data.inputs[claim["id"]], dtype="<f4").reshape(-1)
        need(hashlib.sha256(x.tobytes()).hexdigest() == claim["input_sha256"], f"sample {claim['id']} is another input in the data given")
        held[claim["id"]] = x
    return True


def _clean_accuracy(by_id: dict[int, dict[str, Any]], held: Inputs, answers: Answers) -> tuple[float, float]:
    """Returns the least and the greatest share of samples that are classified as their label, by the checker's own execution.

    Refused where an input is another one than claimed, or where it is certainly predicted otherwise than stated.
    """
    numbers = sorted(by_id.keys() & held.keys())
    for number in numbers:
        same = hashlib.sha256(held[number].tobytes()).hexdigest() == by_id[number]["input_sha256"]
        need(same or by_id[number]["verdict"] == "certified", f"sample {number}: its input is not the one that the claim is about")
    some = [number for number in numbers if by_id[number]["verdict"] != "certified"]
    predicted = answers.predicted(np.stack([held[number] for number in some])) if some else np.zeros(0, dtype=np.int64)
    right = sum(claim["verdict"] == "certified" for claim in by_id.values())
    wrong = 0
    for number, found in zip(some, predicted.tolist(), strict=True):
        claim = by_id[number]
        need(found in (-1, claim["predicted"]), f"sample {number} is classified as {found}, and {claim['predicted']} is stated")
        right += found == claim["label"]
        wrong += found not in (-1, claim["label"])
    return right / len(by_id), (len(by_id) - wrong) / len(by_id)


def _attacked_accuracy(by_id: dict[int, dict[str, Any]], held: Inputs, answers: Answers, allowed: Property) -> None:
    """Refuses an attacked accuracy that forgets what the attack broke: one step of the gradient must not break many unknown samples.

    Attacked accuracy is an upper limit, true however weak the attack is, so that a few are no contradiction; more than a fifth are one,
    where claims say that an attack of many steps left them.
    """
    some = [number for number in sorted(by_id.keys() & held.keys()) if _withstood(by_id[number])]
    if not some or allowed.norm != "linf" or allowed.brightness or allowed.contrast:
        return
    labels = [by_id[number]["label"] for number in some]
    broken = answers.broken(np.stack([held[number] for number in some]), labels, allowed)
    most = max(2, len(some) // 5)
    need(broken <= most, f"one step of a gradient breaks {broken} of the {len(some)} samples that are said to withstand an attack")


def _withstood(claim: dict[str, Any]) -> bool:
    return bool(claim["verdict"] == "unknown" and claim["predicted"] == claim["label"])


class Derivations:
    """The certified claims of one certificate, derived again one after the other, those of the cheapest method together."""

    def __init__(self, place: Place, content: dict[str, Any], allowed: Property, network: Network, inputs: Inputs) -> None:
        self.place, self.allowed, self.network, self.inputs = place, allowed, network, inputs
        self.claims = [claim for claim in content["claims"] if claim["verdict"] == "certified"]
        self.rounding, self.proofs = Rounding(network, content["contract"]), dict[int, Proof]()
        self.classes = network.size_of_output
        if content.get("proofs_sha256") is not None:
            hashed = hashlib.sha256(read_file(place.folder / "proofs.npz")).hexdigest()
            need(hashed == content["proofs_sha256"], f"{place.name}/proofs.npz is not the file that the certificate is about")
            units = sum(op.size for op in network.ops if op.kind == "relu")
            self.proofs = read_proofs(place.folder / "proofs.npz", units, network.budget)

    def all(self, progress: Progress) -> tuple[int, str]:
        """Returns how many claims were derived again, and why the first that was not could not be."""
        early, done, problem = self._together(), 0, ""
        for claim in self.claims:
            reason = self._one(claim, early.get(claim["id"], -np.inf))
            done += not reason
            problem = problem or (f"{self.place.name}: sample {claim['id']}: {reason}" if reason else "")
            progress(done, len(self.claims))
        return done, problem

    def _region(self, xs: NDArray[np.float32]) -> Region:
        return Region(self.allowed, xs.astype(np.float64))

    def _together(self) -> dict[int, float]:
        """Returns the least margins, by interval arithmetic, of the claims that say that this is enough."""
        cheap, found = [one for one in self.claims if one["method"] == METHODS[0] and not self._unusable(one)], dict[int, float]()
        step = at_once(self.network)
        for some in [cheap[start : start + step] for start in range(0, len(cheap), step)]:
            xs, labels = np.stack([self.inputs[claim["id"]] for claim in some]), np.array([claim["label"] for claim in some])
            low = Bounds(self.network, self.rounding, self._region(xs), refine=False).margins(labels, fold_only=True)[1]
            found |= dict(zip([claim["id"] for claim in some], low.reshape(len(some), -1).min(axis=1).tolist(), strict=True))
        return found

    def _one(self, claim: dict[str, Any], lower: float) -> str:
        """Returns why a claim is not confirmed, or an empty string.

        It is where the bound by its method is positive and at least its margin, without tolerance. Where a method misses the margin by
        little, two roundings may differ: a stronger method decides.
        """
        number, label, margin = claim["id"], claim["label"], claim["margin_lower"]
        rank, proof = METHODS.index(claim["method"]), self.proofs.get(number)
        reason = self._unusable(claim) or ("proofs.npz holds no proof of it" if 3 <= rank <= 4 and proof is None else "")
        if not reason and claim["method"] == photometric.METHOD:
            pieces = photometric.pieces_of(claim, self.allowed)
            x = self.inputs[number][None].astype(np.float64)
            lower = photometric.lowest(self.network, self.rounding, self.allowed, x, label, pieces, margin)
            reason = "" if lower >= margin else f"its margin is at least {lower:.6g} by {photometric.METHOD}, and {margin:.6g} is claimed"
        while not reason and lower < margin:
            bounds = Bounds(self.network, self.rounding, self._region(self.inputs[number][None]), refine=rank >= 2)
            rows, found = bounds.margins(np.array([label]), fold_only=rank == 0)
            lower = float((improve(bounds, proof, label, margin, rows, found) if proof and rank >= 3 else found).min())
            if lower < margin and (rank >= 2 or margin - lower > NEAR):
                reason = f"its margin is at least {lower:.6g} by {METHODS[rank]}, and {margin:.6g} is claimed"
            rank += 1
        return reason or ("" if 0 < margin <= lower else "its margin is no bound")

    def _unusable(self, claim: dict[str, Any]) -> str:
        """Returns why a claim cannot be derived at all, or an empty string."""
        x, (low, high) = self.inputs.get(claim["id"]), self.allowed.clip
        if x is None:
            return "inputs.npz does not hold its input"
        if hashlib.sha256(x.tobytes()).hexdigest() != claim["input_sha256"]:
            return "its input in inputs.npz is not the one that the claim is about"
        if not ((x >= low) & (x <= high)).all():
            return "its input is not a number, or outside the data range"
        return "" if 0 <= claim["label"] < self.classes > 1 else f"its label {claim['label']} is no class of the model"
