"""The cascade and queries on a simulated accelerator: the processor's verdicts, no silent transfer, memory that runs out, resumption."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "check"))

from check_artifacts import save_inputs, sign

from device_engines import KINDS, SETTINGS, Placed, certified_on, contract_of, file_of, same_claims, samples_of, shorten
from engine_nets import Case, case
from simulated_device import simulated_device
from vsparse.ask import verify_property
from vsparse.bounds import paths
from vsparse.compute_device import accelerated
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import InputError, UnavailableError
from vsparse.graph import Node, Relu, Sigmoid
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.verify import Certificate, certify, read_certificate, write_certificate
from vsparse.stages.verify import cascade as cascade_module
from vsparse.stages.verify import query as query_module
from vsparse.stages.verify.query import answer_query
from vsparse.vnnlib import Case as QueryCase
from vsparse.vnnlib import Constraint, InputBox, Query, write_vnnlib
from vsparse_check import check

SOME: tuple[type[Node], ...] = (Relu, Sigmoid)
CASCADES = [kind if kind is Relu else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


def same(here: Certificate, there: Certificate) -> None:
    same_claims(here, there)
    assert here.device is None
    assert there.device == "cuda (simulated)"


def both(one: Case, folder: Path, asked: PerturbationSet, contract: str | None = None) -> Certificate:
    here = certified_on("cpu", one, folder, asked, contract)
    with simulated_device():
        there = certified_on("cuda", one, folder, asked, contract)
    same(here, there)
    return there


@pytest.mark.parametrize("kind", CASCADES)
def test_the_cascade_finds_there_what_it_finds_on_the_processor(kind: type[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    one = case(kind, False)
    for epsilon in ("0.001", "0.03"):
        both(one, tmp_path, PerturbationSet(epsilon=epsilon))


@pytest.mark.parametrize(
    "asked",
    [
        {"norm": "l2", "epsilon": "0.05"},
        {"norm": "l1", "epsilon": "0.1"},
        {"epsilon": "0", "brightness": "0.02", "contrast": "0.02"},
    ],
    ids=["l2", "l1", "photometric"],
)
def test_regions_that_are_no_boxes(asked: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    both(case(Relu, False), tmp_path, PerturbationSet.model_validate(asked))


@pytest.mark.parametrize("contract", ["sequential", "tf32"])
def test_other_contracts(contract: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    both(case(Relu, False), tmp_path, PerturbationSet(epsilon="0.001"), contract)


def test_a_query_whose_memory_is_short_is_answered_in_smaller_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = case(Relu, False)
    model, asked = file_of(one, tmp_path), tmp_path / "p.vnnlib"
    sides = [tuple(Fraction(value) for value in end.flatten().tolist()) for end in one.box]
    unsafe = (Constraint(tuple((j, Fraction(value)) for j, value in enumerate(one.row.tolist())), Fraction(one.lowest - 100)),)
    write_vnnlib(asked, Query(16, len(one.row), (QueryCase(InputBox(*sides), (unsafe,)),)))
    usual, plain, tried = paths.DEVICE_WORKING_SET, query_module.interval, []

    def scarce(*arguments: object) -> object:
        tried.append(paths.DEVICE_WORKING_SET)
        if usual // 4 < paths.DEVICE_WORKING_SET:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(query_module, "interval", scarce)
    with simulated_device():
        assert answer_query(model, asked, CONTRACTS["fp32"], device=torch.device("cuda", 0)).verdict == "unsat"
    assert tried == [usual, usual // 2, usual // 4]


@pytest.mark.parametrize("kind", [kind if kind in SOME else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def test_a_query_is_answered_there(kind: type[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    one = case(kind, False)
    model, asked = file_of(one, tmp_path), tmp_path / "p.vnnlib"
    sides = [tuple(Fraction(value) for value in end.flatten().tolist()) for end in one.box]
    coefficients = tuple((j, Fraction(value)) for j, value in enumerate(one.row.tolist()))
    # What CROWN proves, what a search has to work for, where any answer may come but none may be silent, and what is false.
    for threshold, verdicts in zip(
        Placed(one, "cpu").thresholds(), (("unsat",), ("unsat", "sat", "unknown", "timeout"), ("sat",)), strict=True
    ):
        unsafe = (Constraint(coefficients, Fraction(threshold)),)
        write_vnnlib(asked, Query(16, len(one.row), (QueryCase(InputBox(*sides), (unsafe,)),)))
        with simulated_device():
            found = answer_query(model, asked, CONTRACTS[contract_of(one)], timeout=6, device=torch.device("cuda", 0))
        # A step that either rounding may take is no witness in real arithmetic.
        assert found.verdict in verdicts or (contract_of(one) == "real" and found.verdict in ("unknown", "timeout"))


def test_where_memory_is_short_samples_are_judged_in_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    one, asked = case(Relu, False), PerturbationSet(epsilon="0.001")
    here = certified_on("cpu", one, tmp_path, asked)
    sizes: list[int] = []

    def scarce(graph: object, params: object, box: tuple[torch.Tensor, torch.Tensor], *rest: object) -> object:
        sizes.append(len(box[0]))
        if len(box[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(graph, params, box, *rest)  # type: ignore[arg-type]

    plain = cascade_module.interval
    monkeypatch.setattr(cascade_module, "interval", scarce)
    with simulated_device():
        same(here, certified_on("cuda", one, tmp_path, asked))
    assert max(sizes) > 1
    assert 1 in sizes


def test_a_sample_that_fits_in_no_pieces_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, tried = case(Relu, False), set()

    def full(*arguments: object, **named: object) -> None:
        tried.add(paths.DEVICE_WORKING_SET)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cascade_module, "interval", full)
    usual = paths.DEVICE_WORKING_SET
    with (
        simulated_device(),
        pytest.raises(InputError, match=r'sample 0 does not fit .*; lower verify.branch_batch .* set verify.device = "cpu"'),
    ):
        certified_on("cuda", one, tmp_path, PerturbationSet(epsilon="0.001"))
    assert min(tried) < usual // 64
    assert usual == paths.DEVICE_WORKING_SET


def test_a_run_that_is_resumed_on_another_device_is_judged_anew_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    one, asked, told = case(Relu, False), PerturbationSet(epsilon="0.001"), []
    model, state = file_of(one, tmp_path), tmp_path / "state"

    def judged(device: str) -> Certificate:
        settings = SETTINGS.model_copy(update={"device": device, "methods": ("interval",)})
        return certify(model, samples_of(one), asked, CONTRACTS["fp32"], settings, state_directory=state, tell=told.append)

    here = judged("cpu")
    plan = json.loads((state / "plan.json").read_text())
    assert not {"device", "branch_batch"} & set(plan), "what a run on the processor asks is what it always was"
    judged("cpu")
    assert not told
    with simulated_device():
        same(here, judged("auto"))
    assert told == ["an earlier run was on cpu, this one is on cuda (simulated): every batch is judged anew"]
    # A process that finds the plan, and not the device, does not judge it on another.
    with pytest.raises(UnavailableError, match=r"to be judged on cuda \(simulated\), and here is cpu"):
        _ = cascade_module_run(state)
    judged("cpu")
    assert told[1:] == ["an earlier run was on cuda (simulated), this one is on cpu: every batch is judged anew"]


def cascade_module_run(state: Path) -> object:
    from vsparse.stages.verify.batches import CascadeRun

    return CascadeRun.open(state).cascade


def test_a_device_that_is_not_here_is_refused_before_any_work(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"device": "cuda:7"})
    data = Dataset(np.zeros((1, 1, 4, 4), np.float32), 1.0, np.zeros(1, np.int64), ("0", "1", "2"), None)
    with pytest.raises(UnavailableError, match=r'verify\.device = "cuda:7"'):
        certify(tmp_path / "absent.onnx", data, PerturbationSet(epsilon="0.1"), CONTRACTS["fp32"], settings)


def test_products_that_cublas_would_emulate_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_device():
        monkeypatch.setenv("CUBLAS_EMULATE_DOUBLE_PRECISION", "1")
        with pytest.raises(InputError, match="CUBLAS_EMULATE_DOUBLE_PRECISION is set"), accelerated(torch.device("cuda", 0)):
            pass
        monkeypatch.delenv("CUBLAS_EMULATE_DOUBLE_PRECISION")
        before = torch.are_deterministic_algorithms_enabled()
        with accelerated(torch.device("cuda", 0)):
            assert torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled() == before


def test_a_certificate_from_there_is_confirmed_by_the_independent_checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds, and a proof with optimised slopes or branches, derived again on the processor; the device is part of the hash."""
    shorten(monkeypatch)
    one, name = case(Relu, False), "model/model.fp32.onnx"
    (tmp_path / "model").mkdir()
    (tmp_path / name).write_bytes(file_of(one, tmp_path).read_bytes())
    samples = samples_of(one, 6)
    methods = Verify().methods
    settings = SETTINGS.model_copy(update={"device": "cuda", "methods": methods, "branch_batch": 2})
    with simulated_device():
        found = certify(
            tmp_path / name, samples, PerturbationSet(epsilon="0.01"), CONTRACTS["fp32"], settings, file=name, data_name="points"
        )
    assert found.settings["branch_batch"] == 2
    certificate = tmp_path / "artifact" / "certificate" / "certificate.json"
    certificate.parent.mkdir(parents=True)
    (tmp_path / "model").rename(tmp_path / "artifact" / "model")
    digest = write_certificate(certificate, found)
    assert read_certificate(certificate).device == "cuda (simulated)"
    kept = np.array([claim.id for claim in found.claims if claim.verdict != "falsified"], np.int64)
    save_inputs(certificate.parents[1], kept, samples.pixels[kept])
    answer = check(sign(certificate.parents[1]))
    assert answer.confirmed == answer.certified > 0, answer.problem
    assert digest != found.model_copy(update={"device": None}).digest()


def test_the_command_refuses_a_device_that_is_not_here(tmp_path: Path) -> None:
    for asked in (["--data", "digits", "--epsilon", "0.1"], ["--property", str(tmp_path / "absent.vnnlib")]):
        command = [sys.executable, "-m", "vsparse", "verify", str(file_of(case(Relu, True), tmp_path)), *asked, "--device", "cuda:63"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert found.returncode == 3, found.stderr
        assert '= "cuda:63", but' in found.stderr
        assert "Traceback" not in found.stderr
    with pytest.raises(InputError, match='there is no device "gpu"'):
        verify_property(tmp_path / "absent.onnx", tmp_path / "absent.vnnlib", device="gpu")
