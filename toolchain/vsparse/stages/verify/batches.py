"""One run of the cascade, kept in a directory: what is asked, and an answer file for each batch that is finished.

Batches have a fixed size, each is judged by itself with one thread, and its answer is written in one step: so results depend neither on how
many processes share the work nor on how often it was killed and resumed.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.artifact.certificate import Method, Verdict
from vsparse.artifact.counterexamples import npz_bytes
from vsparse.artifact.proofs import pack, unpack
from vsparse.bounds.proof import BoundProof
from vsparse.compute_device import choose_device, device_label
from vsparse.contract import Contract
from vsparse.errors import InputError, UnavailableError
from vsparse.files import canonical_json, read_json, sha256_bytes, write_bytes, write_json
from vsparse.perturbation import PerturbationSet
from vsparse.stages.verify.allowance import USUAL, Allowance
from vsparse.stages.verify.answers import BatchAnswer
from vsparse.stages.verify.cascade import Cascade, Question
from vsparse.stages.verify.deployed import Deployed, read_model
from vsparse.stages.verify.regression import RegressionCascade

PLAN, MODEL, SAMPLES = "plan.json", "model.onnx", "samples.npz"
# The arrays of proofs.npz in an answer; its ids are positions in the batch.
PROOF = "proof_"
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
METHODS: tuple[Method, ...] = get_args(Method)
# What a file raises that is absent, or that a full disk or another program has damaged: the batch is judged again.
UNREADABLE = (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile, InputError)
# Raised when the cascade's results change, so that no answer of an older version is reused.
CASCADE_VERSION = 5


class CascadeRun:
    """The directory of one run."""

    def __init__(
        self,
        directory: Path,
        plan: dict[str, Any],
        inputs: NDArray[np.float32],
        labels: NDArray[np.int64],
        device: str = "auto",
    ) -> None:
        """`device` is the name of the one that judges here, where the plan's is not the processor."""
        self.directory = directory
        self.plan = plan
        self.inputs = inputs
        self.labels = labels
        self.device = device
        self._cascade: Cascade | None = None

    @classmethod
    def start(
        cls,
        directory: Path,
        model: Deployed,
        question: Question,
        batch_size: int,
        inputs: NDArray[np.float32],
        labels: NDArray[np.int64],
        *,
        device: torch.device | None = None,
        branch_batch: int = 0,
        allowance: Allowance = USUAL,
        tell: Callable[[str], None] | None = None,
    ) -> CascadeRun:
        """Opens the directory for a question; answers that it holds to the same question are kept, all others removed.

        Batches are judged on `device` (default: the processor). Answers from another kind of device differ in their last bits: they are
        removed too, and `tell` is told so.
        """
        device = device or torch.device("cpu")
        asked = {
            "cascade_version": CASCADE_VERSION,
            "model_sha256": sha256_bytes(model.data),
            "file": model.file,
            "samples_sha256": samples_sha256(inputs, labels),
            "property": question.perturbation.model_dump(mode="json"),
            "contract": question.contract.as_dict(),
            "methods": list(question.methods),
            "branch_domains": question.branch_domains,
            "attack_steps": question.attack_steps,
            "attack_restarts": question.attack_restarts,
            "seed": question.seed,
            "batch_size": batch_size,
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
        }
        # What a run on the processor asks is what it always was.
        if device.type != "cpu":
            asked["device"] = device_label(device)
        if branch_batch:
            asked["branch_batch"] = branch_batch
        asked["allowance"] = [allowance.memory, allowance.work]
        plan = {**asked, "key": sha256_bytes(canonical_json(asked))}
        try:
            before = read_json(directory / PLAN, "plan")
        except InputError:
            before = None
        if before != plan:
            _tell_of_device(before, plan, tell)
            shutil.rmtree(directory, ignore_errors=True)
            write_bytes(directory / MODEL, model.data)
            write_bytes(directory / SAMPLES, npz_bytes({"inputs": inputs, "labels": labels}))
            write_json(directory / PLAN, plan)
        return cls(directory, plan, inputs, labels, str(device))

    @classmethod
    def open(cls, directory: Path, device: str = "auto") -> CascadeRun:
        """Opens a directory that `start` has made: what a worker process does."""
        with np.load(directory / SAMPLES, allow_pickle=False) as samples:
            inputs, labels = samples["inputs"], samples["labels"]
        return cls(directory, read_json(directory / PLAN, "plan"), inputs, labels, device)

    @classmethod
    def of_plan(cls, directory: Path) -> CascadeRun:
        """Opens a directory that holds a plan and its model, and no samples: they come piece by piece (`vsparse.stages.verify.pieces`)."""
        return cls(directory, read_json(directory / PLAN, "plan"), np.zeros((0, 0), np.float32), np.zeros(0, np.int64))

    @property
    def batches(self) -> int:
        """The number of batches."""
        return -(-len(self.labels) // int(self.plan["batch_size"]))

    def span(self, batch: int) -> range:
        """Returns the samples of a batch."""
        size = int(self.plan["batch_size"])
        return range(batch * size, min((batch + 1) * size, len(self.labels)))

    def missing(self) -> list[int]:
        """Returns the batches that have no whole answer yet."""
        return [batch for batch in range(self.batches) if self.read(batch) is None]

    def judge(self, batch: int) -> None:
        """Decides one batch and writes its answer."""
        span = self.span(batch)
        answer = self.cascade.judge(self.inputs[span.start : span.stop].copy(), self.labels[span.start : span.stop].copy(), span)
        self.write(batch, answer)

    def write(self, batch: int, answer: BatchAnswer) -> None:
        """Writes the answer to a batch, in one step."""
        write_bytes(self.directory / _answer_name(batch), npz_bytes(packed(answer, self.plan["key"], self.inputs.shape[1:])))

    @property
    def cascade(self) -> Cascade:
        """The cascade for the plan's question, made on first use from the directory's own copy of the model."""
        if self._cascade is None:
            plan = self.plan
            question = Question(
                perturbation=PerturbationSet.model_validate(plan["property"]),
                contract=Contract(**plan["contract"]),
                methods=tuple(plan["methods"]),
                branch_domains=plan["branch_domains"],
                attack_steps=plan["attack_steps"],
                attack_restarts=plan["attack_restarts"],
                seed=plan["seed"],
            )
            device = _device_of(plan, self.device)
            kind = RegressionCascade if question.perturbation.regression else Cascade
            self._cascade = kind(
                read_model(self.directory / MODEL, plan["file"], question.perturbation.regression),
                question,
                device,
                plan.get("branch_batch", 0),
                Allowance(*plan["allowance"]),
            )
        return self._cascade

    def read(self, batch: int) -> BatchAnswer | None:
        """Returns the answer to a batch, or None where there is none for this plan."""
        try:
            with np.load(self.directory / _answer_name(batch), allow_pickle=False) as file:
                return unpacked({name: file[name] for name in file.files}, self.plan["key"], len(self.span(batch)))
        except UNREADABLE:
            return None


def _tell_of_device(before: Any, plan: dict[str, Any], tell: Callable[[str], None] | None) -> None:
    """Says that answers of an earlier run are not used, where nothing but the device they were computed on is another."""
    if tell is None or not isinstance(before, dict):
        return
    one, other = ({key: value for key, value in each.items() if key not in ("device", "key")} for each in (before, plan))
    if one == other:
        tell(f"an earlier run was on {before.get('device', 'cpu')}, this one is on {plan.get('device', 'cpu')}: every batch is judged anew")


def _device_of(plan: dict[str, Any], name: str) -> torch.device:
    """Returns the device to judge on; UnavailableError where it is of another kind than the plan's."""
    wanted = plan.get("device", "cpu")
    device = torch.device("cpu") if wanted == "cpu" else choose_device(name, "verify.device")
    if device_label(device) != wanted:
        raise UnavailableError(f"this run is to be judged on {wanted}, and here is {device_label(device)}; run it where that device is")
    return device


def packed(answer: BatchAnswer, key: str, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """Returns the arrays of an answer to a batch, to the plan of that key; `shape` is that of one input."""
    positions = sorted(answer.counterexamples)
    points = [answer.counterexamples[position][0] for position in positions]
    return {
        "key": np.array(key),
        "verdict": np.array([VERDICTS.index(verdict) for verdict in answer.verdict], dtype=np.uint8),
        "method": np.array([METHODS.index(method) for method in answer.method], dtype=np.uint8),
        "margin_lower": answer.margin_lower,
        "predicted": answer.predicted,
        "time_ms": answer.time_ms,
        "positions": np.array(positions, dtype=np.int64),
        "points": np.stack(points) if points else np.zeros((0, *shape), np.float32),
        "point_predictions": np.array([answer.counterexamples[position][1] for position in positions], dtype=np.int64),
        "pieces": np.array([(position, *pair) for position, pair in sorted(answer.pieces.items())], dtype=np.int64).reshape(-1, 3),
        **{PROOF + name: value for name, value in pack(answer.proofs).items()},
    }


def unpacked(arrays: Mapping[str, NDArray[Any]], key: str, samples: int) -> BatchAnswer | None:
    """Returns the answer that arrays hold, or None for one to another plan; raises one of UNREADABLE for arrays that are no answer."""
    if str(arrays["key"]) != key or len(arrays["verdict"]) != samples:
        return None
    return BatchAnswer(
        verdict=[VERDICTS[code] for code in arrays["verdict"]],
        method=[METHODS[code] for code in arrays["method"]],
        margin_lower=arrays["margin_lower"],
        predicted=arrays["predicted"],
        time_ms=arrays["time_ms"],
        counterexamples={
            int(position): (point, int(predicted))
            for position, point, predicted in zip(arrays["positions"], arrays["points"], arrays["point_predictions"], strict=True)
        },
        proofs=proofs_of(arrays),
        pieces={int(position): (int(b), int(c)) for position, b, c in arrays["pieces"]},
    )


def proofs_of(arrays: Mapping[str, NDArray[Any]]) -> dict[int, BoundProof]:
    """Returns the proofs of an answer's arrays, by position."""
    return unpack({name.removeprefix(PROOF): value for name, value in arrays.items() if name.startswith(PROOF)}, "answer")


def samples_sha256(inputs: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    """Returns one hash of all inputs and labels, shapes included, in little-endian order."""
    digest = hashlib.sha256(f"{inputs.shape} {labels.shape}\n".encode())
    digest.update(np.ascontiguousarray(inputs, dtype="<f4").tobytes())
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch use one thread for the block: the order of its sums, and so the last bits of a bound, depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _answer_name(batch: int) -> str:
    return f"batch-{batch:06d}.npz"
