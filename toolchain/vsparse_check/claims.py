"""One certificate: the model it is about, its samples, and every certified claim derived again."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx

from vsparse_check.certificate import read_certificate
from vsparse_check.contracts import CONTRACTS
from vsparse_check.derivations import ClaimDerivations
from vsparse_check.files import read_file
from vsparse_check.form import check_form, check_kernels
from vsparse_check.limits import CALL, ResourceBudget
from vsparse_check.model import Model
from vsparse_check.predictions import OPEN, Predictor, check_counterexamples
from vsparse_check.records import (
    C_CONTRACTS,
    CONFIRMED,
    REFUTED,
    UNCHECKED,
    CertificateFiles,
    CertificateRecord,
    ProgressCallback,
    stated_record,
)
from vsparse_check.refusal import NotConfirmed, Unchecked, knowing, known, need, reading
from vsparse_check.samples import (
    Inputs,
    SampleData,
    input_sha256,
    read_counterexamples,
    read_inputs,
    samples_sha256,
)

MANY_STEPS = 10  # of an attack that one step of the checker's should not beat by much
UNFOLDED = ("real", "sequential")  # contracts under which no runtime folds anything
Claims = dict[int, dict[str, Any]]  # by sample id


def content_sha256(model: onnx.ModelProto) -> str:
    """Returns the hash that a certificate names a model by.

    Of its deterministic serialisation with `metadata_props` cleared.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ClearField("metadata_props")
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()


def check_certificate(
    files: CertificateFiles,
    budget: ResourceBudget,
    data: SampleData | None,
    progress: ProgressCallback,
) -> CertificateRecord:
    """Checks one certificate and never raises.

    What is not so is refuted, what is not known cannot be checked.
    """
    check = CertificateCheck(files, budget, data)
    try:
        # What is not finite proves nothing, so that float64 need not warn of it.
        with reading(files.name), np.errstate(all="ignore"):
            return check.run(progress)
    except NotConfirmed as error:
        verdict = UNCHECKED if isinstance(error, Unchecked) else REFUTED
        return check.record._replace(verdict=verdict, problem=f"{files.name}: {error}")


class CertificateCheck:
    """The check of one certificate; `record` is what it states, once it is read."""

    def __init__(
        self, files: CertificateFiles, budget: ResourceBudget, data: SampleData | None
    ) -> None:
        """Takes the files of one certificate, what may be spent, and the data to compare with."""
        self.files, self.budget, self.data = files, budget, data
        self.record = CertificateRecord(files.name)

    def run(self, progress: ProgressCallback) -> CertificateRecord:
        """Returns what was found, in the order of cost; raises at what makes claims void."""
        path = self.files.folder / "certificate.json"
        self.content, self.claimed = read_certificate(path, self.budget)
        self.record = stated_record(self.files, self.content)
        self.claims: Claims = {claim["id"]: claim for claim in self.content["claims"]}
        self._check_statement()
        self.budget.spend(len(self.claims) * 20.0 * CALL)
        self.model = self._read_model()
        inputs = self._read_inputs()
        self.predictor = Predictor(self.model, self.content["contract"])
        held = inputs | self._read_counterexamples()
        if self.data is not None:
            held |= self._compared_with(self.data)
        clean = self._clean_accuracy(held)
        self._check_held()
        self._check_attack(held)
        found = self._derived(inputs, held, progress)
        return found._replace(clean=clean, same_data=self.data is not None)

    def _check_statement(self) -> None:
        """Refuses what no claim could be about, whatever the model."""
        contract, record = self.content["contract"], self.record
        known(
            contract in CONTRACTS.values(),
            f"the contract {contract!s:.40} is none whose rounding this checker bounds: "
            f"{', '.join(CONTRACTS)}",
        )
        need(
            contract["name"] == C_CONTRACTS.get(self.files.name, contract["name"]),
            f"the contract {contract['name']} is not the one of the C source: "
            f"{C_CONTRACTS.get(self.files.name, '')}",
        )
        region = self.claimed
        still = not (region.epsilon or region.brightness or region.contrast)
        known(
            contract["storage"] != "real" or not still,
            "epsilon is 0 under the contract real: nothing is claimed but the classes of "
            "undisturbed samples in exact arithmetic",
        )
        plural = "s" * (record.distinct != 1)
        need(
            2 * record.distinct >= record.samples,
            f"{record.samples} claims are about {record.distinct} distinct input{plural}: "
            "these are not so many samples",
        )

    def _read_model(self) -> Model:
        """Returns the network that the certificate is about; Refuted where the file is another."""
        proto, name = onnx.ModelProto(), self.files.model_name
        with knowing(name):
            need(self.files.model.is_file(), f"{name} is not there")
            self.budget.fit(16.0 * self.files.model.stat().st_size)
            data = read_file(self.files.model)
            self.budget.hold(3.0 * len(data))
            proto.ParseFromString(data)
        need(
            self.content["model"] == {"file": name, "sha256": content_sha256(proto)},
            f"{name} is not the model that {self.files.name}/certificate.json is about: "
            "its name or content hash differs",
        )
        stamps = [
            entry.value for entry in proto.metadata_props if entry.key == "vsparse.certificate"
        ]
        ours = stamps in ([], [self.content["certificate_sha256"]])
        # The file that C source was made from carries the hash of its own certificate.
        need(
            ours or self.files.about_c_source,
            f"{name} carries the hash of another certificate",
        )
        with knowing(name), np.errstate(all="ignore"):
            model = Model(proto, self.budget)
            if self.content["contract"]["name"] not in UNFOLDED:
                check_form(proto, model.shapes, model.parameters)
            if self.files.runtime == "onnxruntime":
                check_kernels(proto, self.content["contract"])
        return model

    def _read_inputs(self) -> Inputs:
        """Returns the inputs of certified claims; {} where the artifact need not hold any."""
        path = self.files.folder / "inputs.npz"
        needed = self.record.certified and not self.files.about_dense_parent
        if not needed and not path.exists():
            return {}
        return read_inputs(path, self.model.size_of_input, self.budget)

    def _read_counterexamples(self) -> Inputs:
        """Returns the inputs of falsified claims, whose counterexamples are ones."""
        path = self.files.folder / "counterexamples.npz"
        if not path.exists() or "counterexamples_sha256" not in self.content:
            return {}
        stated = self.content["counterexamples_sha256"]
        arrays = read_counterexamples(path, stated, self.model.size_of_input, self.budget)
        return check_counterexamples(arrays, self.claims, self.claimed, self.predictor)

    def _compared_with(self, data: SampleData) -> Inputs:
        """Returns the first samples of the data; Refuted where claims are not about these."""
        count, size = len(self.claims), self.model.size_of_input
        need(
            len(data.labels) >= count,
            f"it is about {count} samples, and the data given has {len(data.labels)}",
        )
        need(
            data.inputs[0].size == size,
            f"the data given has {data.inputs[0].size} numbers for each input, "
            f"and the model takes {size}",
        )
        found = samples_sha256(data, count, self.model.shape)
        need(
            found == self.content["data"].get("inputs_sha256"),
            f"it is not about the first {count} samples of the data given: "
            "data.inputs_sha256 is another hash",
        )
        inputs: Inputs = {}
        for number, claim in self.claims.items():
            same = number < count and claim["label"] == data.labels[number]
            need(same, f"sample {number} has another label in the data given")
            x = np.ascontiguousarray(data.inputs[number], dtype="<f4").reshape(-1)
            same = input_sha256(x) == claim["input_sha256"]
            need(same, f"sample {number} is another input in the data given")
            inputs[number] = x
        return inputs

    def _clean_accuracy(self, held: Inputs) -> tuple[float, float]:
        """Returns the least and the greatest clean accuracy that an execution leaves possible.

        Certified samples are classified as their label, as that follows from their claims. Refuted
        where an input is another one than claimed, or certainly predicted otherwise than stated.
        """
        others = [
            number
            for number in sorted(self.claims.keys() & held.keys())
            if self.claims[number]["verdict"] != "certified"
        ]
        for number in others:
            same = input_sha256(held[number]) == self.claims[number]["input_sha256"]
            need(same, f"sample {number}: its input is not the one that the claim is about")
        right, wrong = self.record.certified, 0
        for number, found in zip(others, self._predicted(others, held), strict=True):
            claim = self.claims[number]
            need(
                found in (OPEN, claim["predicted"]),
                f"sample {number} is classified as {found}, and {claim['predicted']} is stated",
            )
            right += found == claim["label"]
            wrong += found not in (OPEN, claim["label"])
        total = len(self.claims)
        return right / total, (total - wrong) / total

    def _predicted(self, numbers: list[int], held: Inputs) -> list[int]:
        """Returns the class of each of these samples, OPEN where executions may differ."""
        if not numbers:
            return []
        points = np.stack([held[number] for number in numbers])
        return [int(found) for found in self.predictor.predicted(points)]

    def _check_held(self) -> None:
        """Leaves claims about the dense parent unchecked whose inputs the artifact leaves out."""
        there = (self.files.folder / "inputs.npz").exists()
        known(
            there or not (self.files.about_dense_parent and self.record.certified),
            f"the artifact does not hold the inputs of its {self.record.certified} claims",
        )

    def _check_attack(self, held: Inputs) -> None:
        """Refuses an attacked accuracy that forgets what the attack broke.

        Attacked accuracy is an upper limit, true however weak the attack is, so that a few samples
        broken by one step of the gradient are no contradiction; more than a fifth are one, where
        claims say that an attack of many steps left them unknown.
        """
        settings, claimed = self.content.get("settings", {}), self.claimed
        many = int(settings.get("attack_steps", 0)) >= MANY_STEPS
        numbers = [
            number
            for number in sorted(self.claims.keys() & held.keys())
            if _is_robust(self.claims[number])
        ]
        if not many or not numbers or claimed.norm != "linf" or not claimed.is_ball:
            return
        labels = [self.claims[number]["label"] for number in numbers]
        points = np.stack([held[number] for number in numbers])
        broken = self.predictor.broken_by_one_step(points, labels, claimed)
        need(
            broken <= max(2, len(numbers) // 5),
            f"one step of a gradient breaks {broken} of the {len(numbers)} samples "
            "that are said to be robust against an attack",
        )

    def _derived(
        self, inputs: Inputs, held: Inputs, progress: ProgressCallback
    ) -> CertificateRecord:
        """Derives every certified claim, and says what is not known of the other samples."""
        derivations = ClaimDerivations(self.files, self.content, self.claimed, self.model, inputs)
        confirmed, problem = derivations.derive_all(progress)
        found = self.record._replace(confirmed=confirmed)
        if problem:
            return found._replace(verdict=REFUTED, problem=problem)
        absent = [
            number
            for number, claim in self.claims.items()
            if number not in held and claim["verdict"] != "certified"
        ]
        if not absent:
            return found._replace(verdict=CONFIRMED)
        problem = (
            f"{self.files.name}: the artifact does not hold the inputs of {len(absent)} samples, "
            "so that nobody can tell their class"
        )
        return found._replace(verdict=UNCHECKED, problem=problem)


def _is_robust(claim: dict[str, Any]) -> bool:
    """Returns whether an attack is said to have left a sample, and nothing proves it."""
    return bool(claim["verdict"] == "unknown" and claim["predicted"] == claim["label"])
