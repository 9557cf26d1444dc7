"""The certificate of an ONNX file: every sample through the cascade, from the file on disk to claims."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.artifact.certificate import (
    COUNTEREXAMPLES,
    DERIVABLE,
    DERIVATIONS,
    PHOTOMETRIC,
    PROOFS,
    SEARCHED,
    Certificate,
    Claim,
    DataReference,
    ModelReference,
    summarise,
)
from vsparse.artifact.counterexamples import Counterexamples
from vsparse.artifact.proofs import proofs_bytes
from vsparse.bounds import box_of, region
from vsparse.bounds.proof import BoundProof
from vsparse.compute_device import choose_device
from vsparse.contract import Contract
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.files import sha256_bytes
from vsparse.perturbation import PerturbationSet
from vsparse.processor import require_kept
from vsparse.reading import Asked, check_reading
from vsparse.reading.integer_kernels import require_exact_sums
from vsparse.reading.kernels import require_kernels
from vsparse.reading.points import SAMPLES
from vsparse.recipe import Verify
from vsparse.stages.verify.allowance import Allowance
from vsparse.stages.verify.batches import CascadeRun, one_thread, samples_sha256
from vsparse.stages.verify.cascade import Question
from vsparse.stages.verify.deployed import Deployed, describe_replay, read_model
from vsparse.stages.verify.pool import judge_in_processes
from vsparse.stages.verify.regression import NOTE, finite, require_regression

# A worker process takes seconds to start, so that fewer batches than this are quicker judged here.
BATCHES_WORTH_PROCESSES = 4
# How much less than was proved a claim states, relative to bounds above 1.
SLACK = 2e-5
REAL = "contract real: this is proved of the network in real arithmetic, and of no device that computes with rounding"


def require_contract(model: Deployed, contract: Contract, where: str, runtime: str = "onnxruntime") -> None:
    """Raises InputError where a file is not executed under a contract: of other storage, by other kernels, with sums that saturate."""
    require_kept(contract, model.graph.storage)
    require_kernels(contract, model.data, where, runtime)
    require_exact_sums(contract, where)


def certify(
    onnx_path: Path,
    dataset: Dataset,
    perturbation: PerturbationSet,
    contract: Contract,
    settings: Verify,
    *,
    samples: int = 0,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
    state_directory: Path | None = None,
    file: str | None = None,
    data_name: str = "",
    split: str = "test",
    seed: int = 0,
    compared: bool = False,
    cluster: str | None = None,
    tell: Callable[[str], None] | None = None,
    runtime: str = "onnxruntime",
) -> Certificate:
    """Returns what can be said about a classifier on disk, for each of the first `samples` (0: all) of a dataset, under a numeric contract.

    The file is read once; every claim names the hash of what was read. `settings` gives the bounding methods, the attack and the batch
    size. `progress(done, total)` counts samples. With `state_directory`, finished batches are kept there and a run that was killed resumes
    where it stopped; the claims (their times apart) depend neither on that nor on `jobs`. `file` is the model's name in the claims.
    Bounds, attacks and searches are computed on `settings.device`, which the certificate names unless it is the processor; `tell` is told
    where answers of an earlier run are not used because they are from another. With `cluster`, the address of a Dask scheduler, its workers
    judge the batches, to the same claims. `runtime` is what executes the file on the target, whose kernels the contract is about.
    Unless it was `compared` before, the file is first compared with its reading, on points of these regions too (`vsparse.reading`).
    Raises InputError for a model, dataset and perturbation set that do not match, UnavailableError for a device that is not here, and as
    `check_reading` does.
    """
    device = choose_device(settings.device, "verify.device")
    model = read_model(onnx_path, file, perturbation.regression)
    require_regression(model, perturbation, dataset.targets)
    require_contract(model, contract, f"model {onnx_path}", runtime)
    inputs, labels = take_samples(dataset, model, samples)
    evidence = None
    if not compared:
        asked, where = asked_about(inputs, perturbation), f"model {onnx_path}"
        evidence = check_reading(model.data, model.reading, where=where, asked=asked, optimised=not contract.exact)
    question = Question(
        perturbation=perturbation,
        contract=contract,
        methods=tuple(settings.methods),
        branch_domains=settings.branch_domains,
        attack_steps=settings.attack_steps,
        attack_restarts=settings.attack_restarts,
        seed=seed,
    )
    keep = tempfile.TemporaryDirectory(prefix="vsparse-certify-") if state_directory is None else nullcontext(str(state_directory))
    with keep as directory:
        asked_of = (model, question, settings.batch_size, inputs, labels)
        allowance = Allowance(settings.memory, settings.refine_work)
        run = CascadeRun.start(
            Path(directory), *asked_of, device=device, branch_batch=settings.branch_batch, allowance=allowance, tell=tell
        )
        finish(run, jobs, progress, cluster)
        found = _certificate(run, model, question, settings, dataset, data_name, split)
        return found.model_copy(update={"reading": evidence})


def asked_about(inputs: NDArray[np.float32], perturbation: PerturbationSet) -> Asked:
    """Returns the region of the first samples, as far as a comparison of the file with its reading looks at it: its enclosing box."""
    lower, upper = box_of(region(torch.from_numpy(inputs[:SAMPLES]), perturbation))
    return Asked(lower.float().numpy(), upper.float().numpy())


def stated_margin(lower: float) -> float | None:
    """Returns the margin that a claim states for a proved bound: a little less, None where nothing is proved.

    Another checker's rounding terms differ in the last digits; stating less lets it confirm the claim without a tolerance.
    A positive bound stays positive.
    """
    if not np.isfinite(lower):
        return None
    less = lower - SLACK * max(1.0, abs(lower))
    return max(less, lower / 2) if lower > 0 else less


def take_samples(dataset: Dataset, model: Deployed, samples: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns the first samples (0: all) as the model takes them; raises InputError where shapes, labels or counts do not fit."""
    if samples < 0:
        raise InputError(f"there is no such thing as {samples} samples; give how many to take, 0 for all")
    count = min(samples or len(dataset), len(dataset))
    if count == 0:
        raise InputError("the dataset has no samples to certify; give one that has")
    inputs = dataset.inputs(slice(0, count))
    labels = np.ascontiguousarray(dataset.labels[:count], dtype=np.int64)
    wanted = model.graph.input_shape
    if inputs.shape[1:] != wanted:
        if int(np.prod(inputs.shape[1:])) != int(np.prod(wanted)) or len(wanted) != 1:
            raise InputError(f"model {model.file} takes inputs of shape {list(wanted)} and the samples have shape {list(inputs.shape[1:])}")
        inputs = inputs.reshape(count, *wanted)  # a network on flat inputs sees the pixels in row-major order
    if int(labels.max()) >= model.classes:
        raise InputError(f"model {model.file} has {model.classes} outputs and the samples have labels up to {int(labels.max())}")
    return inputs, labels


def finish(run: CascadeRun, jobs: int, progress: Callable[[int, int], None] | None, cluster: str | None = None) -> None:
    """Judges every batch of a run that has no answer yet: here, in worker processes, or on the cluster of that address."""
    missing = run.missing()
    total = len(run.labels)
    done = total - sum(len(run.span(batch)) for batch in missing)

    def finished(batch: int) -> None:
        nonlocal done
        done += len(run.span(batch))
        if progress is not None:
            progress(done, total)

    if progress is not None:
        progress(done, total)
    if cluster is not None and missing:
        from vsparse.stages.verify.on_cluster import judge_on_cluster  # Dask is an extra

        judge_on_cluster(run, missing, cluster, finished)
        return
    if jobs > 1 and len(missing) >= BATCHES_WORTH_PROCESSES:
        judge_in_processes(run.directory, missing, jobs, finished, run.device)
        return
    with one_thread():
        for batch in missing:
            run.judge(batch)
            finished(batch)


def hashed_beside(dataset: Dataset, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns what the hash of the samples is of beside the inputs: labels [n], or of regression the bits of the float64 targets."""
    return labels if dataset.targets is None else np.ascontiguousarray(dataset.targets[: len(labels)]).view(np.int64)


def _derivations(question: Question, methods: set[str]) -> dict[str, str]:
    found = {method: text for method, text in DERIVATIONS.items() if method in methods}
    if question.perturbation.regression:
        found = {method: text for method, text in found.items() if method not in (*SEARCHED, PHOTOMETRIC)} | {"regression": NOTE}
    return found


def _certificate(
    run: CascadeRun, model: Deployed, question: Question, settings: Verify, dataset: Dataset, data_name: str, split: str
) -> Certificate:
    reference = ModelReference(file=model.file, sha256=model.sha256)
    claims: list[Claim] = []
    values = run.cascade.runtime.logits(run.inputs).ravel() if question.perturbation.regression else None
    found: list[tuple[int, NDArray[np.float32], int]] = []
    proofs: dict[int, BoundProof] = {}
    for batch in range(run.batches):
        answer = run.read(batch)
        if answer is None:
            raise InputError(f"the answer to batch {batch} has vanished from {run.directory}; run the same command again")
        for position, sample in enumerate(run.span(batch)):
            lower = float(answer.margin_lower[position])
            verdict = answer.verdict[position]
            if verdict == "falsified":
                found.append((sample, *answer.counterexamples[position]))
            if position in answer.proofs:
                proofs[sample] = answer.proofs[position]
            claims.append(
                Claim(
                    id=sample,
                    input_sha256=sha256_bytes(np.ascontiguousarray(run.inputs[sample], dtype="<f4").tobytes()),
                    label=int(run.labels[sample]),
                    predicted=int(answer.predicted[position]),
                    property=question.perturbation,
                    contract=question.contract.name,
                    model=reference,
                    verdict=verdict,
                    margin_lower=stated_margin(lower),
                    method=answer.method[position],
                    time_ms=round(float(answer.time_ms[position]), 3),
                    proof=PROOFS if position in answer.proofs else {"certified": DERIVABLE, "falsified": COUNTEREXAMPLES}.get(verdict),
                    pieces=answer.pieces.get(position),
                    value=None if values is None else finite(values[sample]),
                    target=None if dataset.targets is None else float(dataset.targets[sample]),
                )
            )
    ids = np.array([sample for sample, _, _ in found], dtype=np.int64)
    points = np.stack([point for _, point, _ in found]) if found else np.zeros((0, *run.inputs.shape[1:]), np.float32)
    predicted = np.array([prediction for _, _, prediction in found], dtype=np.int64)
    counterexamples = Counterexamples(ids, points, run.inputs[ids], run.labels[ids], predicted)
    stored = proofs_bytes(proofs) if proofs else None
    used = {claim.method for claim in claims if claim.pieces}
    return Certificate(
        model=reference,
        property=question.perturbation,
        contract=question.contract.as_dict(),
        data=DataReference(
            name=data_name,
            split=split,
            samples=len(claims),
            inputs_sha256=samples_sha256(run.inputs, hashed_beside(dataset, run.labels)),
            classes=dataset.classes,
        ),
        settings={
            **settings.model_dump(mode="json", include={"methods", "branch_domains", "attack_steps", "attack_restarts", "batch_size"}),
            **({"branch_batch": settings.branch_batch} if settings.branch_batch else {}),
            **settings.model_dump(mode="json", include={"memory", "refine_work"}),
            "seed": question.seed,
        },
        device=run.plan.get("device"),
        replay=describe_replay(model.levels[-1]),
        derivations=_derivations(question, {*settings.methods, *used}),
        summary=summarise(claims, dataset.classes),
        counterexamples_sha256=counterexamples.sha256(),
        proofs_sha256=None if stored is None else sha256_bytes(stored),
        proofs_bytes=0 if stored is None else len(stored),
        void="",
        note=REAL if question.contract.exact else "",
        claims=tuple(claims),
        counterexamples=counterexamples,
        proofs=stored,
    )
