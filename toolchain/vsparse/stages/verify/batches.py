"""One run of the cascade, kept in a directory: what is asked, and an answer file for each batch that is finished.

Batches have a fixed size, each is judged by itself with one thread, and its answer is written in one step: so results depend neither on how
many processes share the work nor on how often it was killed and taken up again.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.artifact.certificate import Method, Verdict
from vsparse.artifact.counterexamples import npz_bytes
from vsparse.artifact.proofs import pack, unpack
from vsparse.bounds import Perturbation
from vsparse.contract import Contract
from vsparse.errors import InputError
from vsparse.files import canonical_json, read_json, sha256_bytes, write_bytes, write_json
from vsparse.stages.verify.cascade import Answer, Cascade, Question
from vsparse.stages.verify.deployed import Deployed, read_model

PLAN, MODEL, SAMPLES = "plan.json", "model.onnx", "samples.npz"
# The arrays of proofs.npz in an answer; its ids are positions in the batch.
PROOF = "proof_"
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
METHODS: tuple[Method, ...] = get_args(Method)
# Raised when the cascade changes what it finds, so that no answer of an older one is taken up.
CASCADE_VERSION = 4


class Run:
    """The directory of one run."""

    def __init__(self, directory: Path, plan: dict[str, Any], inputs: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        self.directory = directory
        self.plan = plan
        self.inputs = inputs
        self.labels = labels
        self._cascade: Cascade | None = None

    @classmethod
    def start(
        cls, directory: Path, model: Deployed, question: Question, batch_size: int, inputs: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> Run:
        """Opens the directory for this very question, keeping the answers it has to it, and no others."""
        asked = {
            "cascade_version": CASCADE_VERSION,
            "model_sha256": sha256_bytes(model.data),
            "file": model.file,
            "samples_sha256": samples_sha256(inputs, labels),
            "norm": question.allowed.norm,
            "radius": str(question.allowed.radius),
            "clip": list(question.allowed.clip),
            "brightness": str(question.allowed.brightness),
            "contrast": str(question.allowed.contrast),
            "contract": question.contract.as_dict(),
            "methods": list(question.methods),
            "branch_domains": question.branch_domains,
            "attack_steps": question.attack_steps,
            "attack_restarts": question.attack_restarts,
            "seed": question.seed,
            "batch_size": batch_size,
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
        }
        plan = {**asked, "key": sha256_bytes(canonical_json(asked))}
        try:
            same = read_json(directory / PLAN, "plan") == plan
        except InputError:
            same = False
        if not same:
            shutil.rmtree(directory, ignore_errors=True)
            write_bytes(directory / MODEL, model.data)
            write_bytes(directory / SAMPLES, npz_bytes({"inputs": inputs, "labels": labels}))
            write_json(directory / PLAN, plan)
        return cls(directory, plan, inputs, labels)

    @classmethod
    def open(cls, directory: Path) -> Run:
        """Opens a directory that `start` has made: what a worker process does."""
        with np.load(directory / SAMPLES, allow_pickle=False) as samples:
            inputs, labels = samples["inputs"], samples["labels"]
        return cls(directory, read_json(directory / PLAN, "plan"), inputs, labels)

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
        write_bytes(self.directory / _answer_name(batch), self._pack(answer))

    @property
    def cascade(self) -> Cascade:
        """The cascade for the plan's question, made on first use from the directory's own copy of the model."""
        if self._cascade is None:
            plan = self.plan
            question = Question(
                allowed=Perturbation(
                    plan["norm"],
                    Fraction(plan["radius"]),
                    (plan["clip"][0], plan["clip"][1]),
                    Fraction(plan["brightness"]),
                    Fraction(plan["contrast"]),
                ),
                contract=Contract(**plan["contract"]),
                methods=tuple(plan["methods"]),
                branch_domains=plan["branch_domains"],
                attack_steps=plan["attack_steps"],
                attack_restarts=plan["attack_restarts"],
                seed=plan["seed"],
            )
            self._cascade = Cascade(read_model(self.directory / MODEL, plan["file"]), question)
        return self._cascade

    def read(self, batch: int) -> Answer | None:
        """Returns the answer to a batch, or None where there is none for this plan."""
        try:
            with np.load(self.directory / _answer_name(batch), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            if str(arrays["key"]) != self.plan["key"] or len(arrays["verdict"]) != len(self.span(batch)):
                return None
            return Answer(
                verdict=[VERDICTS[code] for code in arrays["verdict"]],
                method=[METHODS[code] for code in arrays["method"]],
                margin_lower=arrays["margin_lower"],
                predicted=arrays["predicted"],
                time_ms=arrays["time_ms"],
                counterexamples={
                    int(place): (point, int(predicted))
                    for place, point, predicted in zip(arrays["places"], arrays["points"], arrays["point_predictions"], strict=True)
                },
                proofs=unpack({name.removeprefix(PROOF): value for name, value in arrays.items() if name.startswith(PROOF)}, "answer"),
                pieces={int(place): (int(b), int(c)) for place, b, c in arrays["pieces"]},
            )
        # A file that is absent, or that a full disk or another program has damaged: the batch is judged again.
        except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile, InputError):
            return None

    def _pack(self, answer: Answer) -> bytes:
        places = sorted(answer.counterexamples)
        shape = self.inputs.shape[1:]
        points = [answer.counterexamples[place][0] for place in places]
        return npz_bytes(
            {
                "key": np.array(self.plan["key"]),
                "verdict": np.array([VERDICTS.index(verdict) for verdict in answer.verdict], dtype=np.uint8),
                "method": np.array([METHODS.index(method) for method in answer.method], dtype=np.uint8),
                "margin_lower": answer.margin_lower,
                "predicted": answer.predicted,
                "time_ms": answer.time_ms,
                "places": np.array(places, dtype=np.int64),
                "points": np.stack(points) if points else np.zeros((0, *shape), np.float32),
                "point_predictions": np.array([answer.counterexamples[place][1] for place in places], dtype=np.int64),
                "pieces": np.array([(place, *pair) for place, pair in sorted(answer.pieces.items())], dtype=np.int64).reshape(-1, 3),
                **{PROOF + name: value for name, value in pack(answer.proofs).items()},
            }
        )


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
