"""Certifying files of networks that store float16: margins attacked over contracts and operators, refusals, artifact, engine layers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from test_export_certify_onnx import HostileGemm, OtherHostileGemm, changed, mlp
from twin_attack import KINDS, Tally, attack, certify, random_graph, random_net, sessions

from engine_nets import BUILDERS, case
from vsparse.artifact.device import DeviceResults
from vsparse.artifact.device_folder import DeviceTiming
from vsparse.artifact.document import read_document
from vsparse.artifact.models import CERTIFYING_OF, CertifyingRecord, CertifyingRefusal
from vsparse.bounds import Rounding, ball, crown, interval
from vsparse.bounds.last_layers import last_layer_folding, last_layers
from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.errors import GateError, InputError
from vsparse.graph import FakeQuant, Gemm, Graph, Relu, from_onnx, to_onnx, validate
from vsparse.graph.ir import BatchNorm, Reshape
from vsparse.perturbation import PerturbationSet
from vsparse.stages.export import CertifiedModel, write_device_folder, write_onnx
from vsparse.stages.export.certify_onnx import certifying_model, charges, margins, operators, stored_sums
from vsparse.stages.export.certify_onnx.affine import ChargedSum
from vsparse.stages.export.certify_onnx.check import MarginBounds, check_certifying
from vsparse.stages.export.certify_onnx.stage import stamped_certifying, write_certifying, write_further_certifying
from vsparse.stages.export.certifying_folder import CertifyingFile
from vsparse.stages.export.device.engine_layers import certifying_faults
from vsparse.stages.export.half import half
from vsparse.stages.profile.contradictions import contradiction
from vsparse.target import load_target
from vsparse_check import certifying, device
from vsparse_check.certifying import check_certifying as check_independently
from vsparse_check.claims import content_sha256
from vsparse_check.limits import ResourceBudget
from vsparse_check.refusal import Refuted

CLIP = (0.0, 1.0)
CONTRACTS = ("fp16", "fp16-tensorrt")
QUICK = {"samples": 2, "points": 3, "radii": (0.0, 0.01)}


def half_file(graph: Graph, name: str = "fp16") -> onnx.ModelProto:
    return to_onnx(half(graph, wide_sums=name == "fp16-tensorrt"))


# Attacks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTRACTS)
def test_no_margin_of_random_networks_is_broken_by_any_execution(name: str):
    rng, tally = np.random.default_rng(23), Tally()
    for i in range(10):
        graph = random_graph(rng, "fp16", spread=float(rng.choice([1.0, 30.0]))) if i % 2 else random_net(rng, "fp16")
        attack(graph, rng, tally, rational=i % 5 == 0, contract=name, **QUICK)
    assert tally.certified > 50
    assert tally.executions > 1000


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"normal"}))
def test_no_margin_is_broken_by_weights_that_make_sums_go_wrong(kind: str, name: str):
    rng, tally = np.random.default_rng(5), Tally()
    for _ in range(2):
        attack(random_net(rng, "fp16", kind=kind), rng, tally, rational=True, contract=name, **QUICK)
    assert tally.margins or tally.refused


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if kind not in (FakeQuant, BatchNorm)], ids=lambda kind: kind.__name__)
def test_every_operator_has_an_interval_that_holds(kind: type, tail: bool, name: str):
    rng, tally = np.random.default_rng(7), Tally()
    graph = case(kind, tail).graph
    last = graph.shape_of(graph.output)
    if len(last) > 1:
        flat = Reshape(name="flattened", inputs=(graph.output,), shape=(int(np.prod(last)),))
        graph = replace(graph, nodes=(*graph.nodes, flat), output="flattened")
    attack(validate(graph), rng, tally, samples=2, points=2, radii=(0.0, 0.02), contract=name)
    assert tally.margins
    assert kind.__name__ in tally.kinds or kind is Reshape


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize(
    "ways", [{"BLOCK_MACS": 0}, {"BLOCK_MACS": 0, "MOST_RATIO": 1.0}, {"ALL_PAIRS": 0}, {"BLOCK_MACS": 0, "ALL_PAIRS": 0}], ids=str
)
def test_the_other_ways_to_the_same_bounds_hold_too(monkeypatch: pytest.MonkeyPatch, ways: dict[str, float], name: str):
    for key, value in ways.items():
        monkeypatch.setattr(margins if key == "ALL_PAIRS" else stored_sums, key, value)
    rng, tally = np.random.default_rng(11), Tally()
    for i in range(4):
        graph = random_graph(rng, "fp16") if i % 2 else random_net(rng, "fp16")
        attack(graph, rng, tally, rational=i == 0, contract=name, **QUICK)
    assert tally.certified > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTRACTS)
def test_no_margin_is_broken_at_length(name: str):
    rng, tally = np.random.default_rng(29), Tally()
    for i in range(200):
        graph = random_graph(rng, "fp16", spread=float(rng.choice([1.0, 30.0]))) if i % 2 else random_net(rng, "fp16")
        attack(graph, rng, tally, rational=i % 5 == 0, contract=name)
    assert tally.certified > 2000


@pytest.mark.parametrize("executor", [HostileGemm, OtherHostileGemm], ids=["descending", "smallest-first"])
@pytest.mark.parametrize("block_macs", [2**18, 0])
def test_no_order_of_the_file_s_own_sums_breaks_a_margin(monkeypatch: pytest.MonkeyPatch, executor: type, block_macs: int):
    monkeypatch.setattr(stored_sums, "BLOCK_MACS", block_macs)
    rng = np.random.default_rng(17)
    for trial in range(4):
        made_of = half_file(mlp(trial, inputs=40, hidden=30), "fp16-tensorrt")
        made = certifying_model(made_of, CLIP, contract_name="fp16-tensorrt")
        hostile = ReferenceEvaluator(made, new_ops=[executor])
        bounds = MarginBounds(from_onnx(made_of.SerializeToString()), made, CLIP, "fp16-tensorrt")
        x = rng.random((4, 40), dtype=np.float32)
        for epsilon in (0.0, 1e-4, 0.01):
            _, classes, found = hostile.run(None, {"input": x, "epsilon": np.array(epsilon, np.float32)})
            assert (found <= bounds.host(x, Fraction(float(np.float32(epsilon))), classes) + bounds.room).all()


def test_a_margin_by_hand():
    """z = (x0 + x1, x1): the margin is x0 − ε, less what storing inputs, two layers and logits may cost, 2⁻¹¹ and 2⁻¹⁴ each."""
    params = {"w": np.eye(2, dtype=np.float32), "v": np.array([[1, 1], [0, 1]], np.float32)}
    nodes = (
        Gemm(name="h", inputs=("x",), shape=(2,), weight="w", bias=None),
        Relu(name="r", inputs=("h",), shape=(2,)),
        Gemm(name="z", inputs=("r",), shape=(2,), weight="v", bias=None),
    )
    model = certifying_model(half_file(Graph("x", (2,), nodes, "z", params)), CLIP, contract_name="fp16")
    x = np.array([[0.5, 0.25], [0.75, 0.0]], np.float32)
    for session in sessions(model.SerializeToString()).values():
        for epsilon in (0.0, 0.125):
            _, classes, found = certify(session, x, epsilon)
            exact = x[:, 0].astype(np.float64) - epsilon
            assert (classes == 0).all()
            assert (found <= exact - 2.0**-11 * exact).all()
            assert (found >= exact - 16 * (2.0**-11 + 2.0**-14)).all()


@pytest.mark.parametrize("left_out", ["unit", "floor", "input", "logits", "errors of sums"])
def test_a_charge_that_is_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch, left_out: str):
    """At ε = 0 nothing but charges stands between a margin and the host's bound."""
    wanted = charges.Charges.sum_of

    def without_errors(self: charges.Charges, node: Gemm) -> ChargedSum:
        one = wanted(self, node)
        return replace(one, slope=one.slope * 0.9, constant=one.constant * 0.9)

    if left_out in ("unit", "floor"):
        real = stored_sums.StorageRounding
        share = {"unit": (0.9, 1.0), "floor": (1.0, 0.9)}[left_out]
        monkeypatch.setattr(charges, "StorageRounding", lambda unit, floor: real(unit * share[0], floor * share[1]))
    elif left_out == "input":
        monkeypatch.setattr(operators, "of_unstored", lambda one, storage: one)
    elif left_out == "logits":
        monkeypatch.setattr(margins._Chosen, "least_stored", lambda self, found, errors: self.least(found))
    else:
        monkeypatch.setattr(charges.Charges, "sum_of", without_errors)
    graphs, rng = [mlp(trial) for trial in range(6)], np.random.default_rng(31)

    def attack_all() -> None:
        for graph in graphs:
            attack(graph, rng, Tally(), contract="fp16", **QUICK)

    with pytest.raises(AssertionError):
        attack_all()


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name", "told"),
    [
        (lambda: half(mlp()), "fp16-accumulate", "not about fp16-accumulate"),
        (lambda: half(mlp()), "fp16-chain", "not about fp16-chain"),
        (lambda: half(mlp()), "fp32", "fp16 or fp16-tensorrt, and not about fp32"),
        (lambda: half(mlp()), "fp16-tensorrt", "between casts"),
        (mlp, "fp16", "contract fp32, and not about fp16"),
        (lambda: case(FakeQuant, False).graph, "fp16", "network in int8 is about the contract int8"),
        (lambda: half(mlp().with_params({k: v * np.float32(600) for k, v in mlp().params.items()})), "fp16", "may overflow in fp16"),
    ],
)
def test_forms_and_contracts_without_such_a_file_are_refused_by_name(make, name: str, told: str):
    with pytest.raises(InputError, match=told):
        certifying_model(to_onnx(make()), CLIP, contract_name=name)


@pytest.mark.parametrize("name", CONTRACTS)
def test_inputs_and_radii_that_are_none_get_no_bound(name: str):
    for session in sessions(certifying_model(half_file(mlp(), name), CLIP, contract_name=name).SerializeToString()).values():
        for value in (np.nan, np.inf, -np.inf, -1e-45, np.nextafter(np.float32(1), np.float32(2))):
            x = np.full((2, 6), 0.5, np.float32)
            x[1, 3] = value
            found = certify(session, x, 0.0)[2]
            assert np.isfinite(found[0])
            assert found[1] == -np.inf
        for epsilon in (np.nan, np.inf, -1e-45, np.nextafter(np.float32(1), np.float32(2))):
            assert (certify(session, np.full((2, 6), 0.5, np.float32), epsilon)[2] == -np.inf).all()


def test_the_last_layers_are_not_charged_for_storing_what_they_read():
    """Of the same box, storing costs u·m + η of each element more; the checker derives the tighter bound by itself."""
    graph = from_onnx(half_file(mlp()).SerializeToString())
    rounding = Rounding(graph, contract("fp16"))
    x = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    boxes = interval(graph, rounding.params, ball(x, Fraction(1, 100), CLIP), rounding)
    rows = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    end = last_layers(graph)
    folded = last_layer_folding(graph, rounding.params, rows, boxes, rounding)[:, 0]
    twice = crown(end, rounding.params, boxes[end.input], rows, boxes, rounding)[:, 0]
    more = ((rows @ rounding.params[end.nodes[-1].params[0]]).abs() * rounding.input_error(boxes[end.input])).sum(1)
    assert torch.allclose(folded - twice, more, rtol=1e-9)


# In an artifact -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ of a network in float16 and its certifying file."""
    folder = tmp_path_factory.mktemp("half") / "artifact"
    (folder / "model").mkdir(parents=True)
    write_onnx(half(mlp()), folder / "model/model.fp16.onnx", 17, {"recipe": "test"})
    write_further_certifying(folder / "model/model.fp16.onnx", "test", PerturbationSet(epsilon="0.02"), training(), "fp16", "fp16")
    return folder


def training() -> Dataset:
    pixels = np.random.default_rng(0).random((40, 1, 1, 6), dtype=np.float32)
    return Dataset(pixels, 1.0, np.zeros(40, np.int64), ("a", "b", "c"), None)


def certificates(name: str = "fp16") -> dict[str, dict[str, dict[str, object]]]:
    about = {"property": {"clip": [0.0, 1.0], "epsilon": "0.02"}, "contract": {"name": name}}
    return {"certificate": about, "certificate/fp16": about}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_stage_writes_what_can_be_written_again_and_its_record(made: Path):
    network = onnx.load(made / "model/model.fp16.onnx")
    again = stamped_certifying(network, "test", CLIP, "fp16", "fp16").SerializeToString(deterministic=True)
    assert again == (made / CERTIFYING_OF["fp16"].file).read_bytes()
    record = read_document(CertifyingRecord, made / CERTIFYING_OF["fp16"].record)
    assert record.contract == "fp16"
    assert all(row.certified <= row.by_intervals for row in record.radii)
    assert record.radii[0].certified > 0


@pytest.mark.parametrize(("form", "name"), [("fp16", "fp16-accumulate"), ("int8", "int8")])
def test_a_form_without_such_a_file_leaves_its_reason(tmp_path: Path, form: str, name: str):
    graph = half(mlp()) if form == "fp16" else case(FakeQuant, False).graph
    write_onnx(graph, tmp_path / f"model.{form}.onnx", 17, {"recipe": "test"})
    write_further_certifying(tmp_path / f"model.{form}.onnx", "test", PerturbationSet(epsilon="0.02"), training(), form, name)
    refused = read_document(CertifyingRefusal, tmp_path / Path(CERTIFYING_OF[form].refusal).name)
    assert refused.contract == name
    assert name in refused.reason or "FakeQuant" in refused.reason
    assert not (tmp_path / Path(CERTIFYING_OF[form].file).name).exists()


@pytest.mark.parametrize("tampered", ["", "certify.margin.bias", "certify.h.both.bias", "certify.logits.both.bias", "certify.h.unit"])
def test_the_checker_confirms_the_file_and_no_other(made: Path, tmp_path: Path, tampered: str):
    folder = Path(shutil.copytree(made, tmp_path / "artifact"))
    if not tampered:
        check_independently(folder, files_of(folder), certificates(), ResourceBudget())
        with pytest.raises(Refuted, match="no such file"):
            check_independently(folder, files_of(folder), certificates("fp16-accumulate"), ResourceBudget())
        return
    other = changed(onnx.load(folder / CERTIFYING_OF["fp16"].file), tampered, lambda value: value * np.float32(0.8) - np.float32(0.05))
    if tampered == "certify.h.both.bias":  # centres stay and radii are too small, by so much that every draw shows it
        smaller = np.repeat(np.float32([0, -0.3]), 5)
        other = changed(onnx.load(folder / CERTIFYING_OF["fp16"].file), tampered, lambda value: value + smaller)
    if tampered == "certify.margin.bias":
        other = changed(onnx.load(folder / CERTIFYING_OF["fp16"].file), tampered, lambda value: value + np.float32(0.05))
    (folder / CERTIFYING_OF["fp16"].file).write_bytes(other.SerializeToString(deterministic=True))
    record = read_document(CertifyingRecord, folder / CERTIFYING_OF["fp16"].record)
    told = record.model_copy(update={"content_sha256": content_sha256(other)}).model_dump_json()
    (folder / CERTIFYING_OF["fp16"].record).write_text(told)
    with pytest.raises(Refuted, match=r"does not bound|no margin|other class"):
        check_independently(folder, files_of(folder), certificates(), ResourceBudget())


def test_a_file_that_computes_something_else_is_noticed():
    file = half_file(mlp())
    graph, made = from_onnx(file.SerializeToString()), certifying_model(file, CLIP, contract_name="fp16")
    samples = np.random.default_rng(0).random((3, 6), dtype=np.float32)
    check_certifying(made, graph, CLIP, samples, [np.float32(0), np.float32(0.1)], "fp16")
    other = changed(made, "certify.margin.bias", lambda value: value + 0.05)
    with pytest.raises(GateError, match="margin"):
        check_certifying(other, graph, CLIP, samples, [np.float32(0), np.float32(0.1)], "fp16")


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("opset", [13, 17, 21])
def test_files_of_every_network_are_built_so_at_every_opset(opset: int, name: str):
    rng, built = np.random.default_rng(19), 0
    for _ in range(8):
        network = to_onnx(half(random_graph(rng, "fp16"), wide_sums=name == "fp16-tensorrt"), opset)
        made = certifying_model(network, CLIP, contract_name=name)
        certifying._check_built(certifying.FILES["certificate/fp16"], made, network)
        x = rng.random((2, *from_onnx(network.SerializeToString()).input_shape), dtype=np.float32)
        built += sum(np.isfinite(certify(session, x, 0.01)[2]).all() for session in sessions(made.SerializeToString()).values())
    assert built == 32


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_device_folder_audits_and_times_it(tmp_path: Path, name: str):
    model = tmp_path / "model"
    model.mkdir()
    write_onnx(mlp(), model / "model.fp32.onnx", 17, {"recipe": "test"})
    write_onnx(half(mlp(), wide_sums=name == "fp16-tensorrt"), model / "model.fp16.onnx", 17, {"recipe": "test"})
    write_certifying(model / "model.fp32.onnx", "test", PerturbationSet(epsilon="0.02"), training())
    write_further_certifying(model / "model.fp16.onnx", "test", PerturbationSet(epsilon="0.02"), training(), "fp16", name)
    inputs = np.random.default_rng(1).random((2, 6), dtype=np.float32)
    first = CertifyingFile(model / "model.certify.onnx", model / "model.fp32.onnx", inputs, Fraction(1, 50), CLIP)
    further = replace(
        first,
        path=model / "model.fp16.certify.onnx",
        network=model / "model.fp16.onnx",
        role="certifying-fp16",
        contract=name,
        certificate_sha256="d" * 64,
    )
    manifest = write_device_folder(
        tmp_path / "device",
        {"packed": model / "model.fp32.onnx", "fp16": model / "model.fp16.onnx"},
        load_target("local"),
        "c" * 64,
        timing=DeviceTiming(runs=20, seconds=0.05, warmup_ms=10),
        certified={"fp16": CertifiedModel("fp16", name, "d" * 64)},
        certifying=first,
        further_certifying=[further],
    )
    assert [one.role for one in manifest.certifying_files] == ["certifying", "certifying-fp16"]
    assert manifest.further_certifying[0].unrounded == manifest.models[1].unrounded
    assert bool(manifest.models[1].unrounded) is (name == "fp16-tensorrt")
    content = json.loads((tmp_path / "device/manifest.json").read_text())
    device._check_further(content)
    run = [sys.executable, str(tmp_path / "device/agent.py"), "--any-device", "--runtime", "onnxruntime"]
    subprocess.run(run, capture_output=True, timeout=120, check=False)
    results = json.loads((tmp_path / "device/results.json").read_text())
    (entry,) = (one for one in results["further"] if one["role"] == "certifying-fp16")
    assert {one["name"]: one["passed"] for one in entry["gates"]} == {"audit": True, "refusal": True}
    assert (entry["contract"], entry["precision"]) == (name, "fp16")
    assert not contradiction(read_document(DeviceResults, tmp_path / "device/results.json"), manifest)
    # A bound that the device exceeds, were it stated lower, is a failed gate.
    for probe in content["further_certifying"][0]["probes"]:
        probe["margin_upper"] = [value - 1 for value in probe["margin_upper"]]
    (tmp_path / "device/manifest.json").write_text(json.dumps(content))
    subprocess.run(run, capture_output=True, timeout=120, check=False)
    results = json.loads((tmp_path / "device/results.json").read_text())
    (entry,) = (one for one in results["further"] if one["role"] == "certifying-fp16")
    assert not next(one for one in entry["gates"] if one["name"] == "audit")["passed"]
    content["further_certifying"][0]["contract"] = "fp16-accumulate"
    with pytest.raises(Refuted, match="says otherwise of"):
        device._check_further(content)
    (tmp_path / "device/manifest.json").write_text(json.dumps(content))
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "no form that this script knows" in done.stderr + done.stdout


# What an engine must show ---------------------------------------------------------------------------------------------


def layer(nodes: list[str], kind: str = "Fp16", tactic: str = "", of: str = "PointWise") -> dict[str, object]:
    tensor = {"Name": "t", "Format/Datatype": f"Row major linear {kind}"}
    told = "".join(f"[ONNX Layer: {name}]" for name in nodes)
    return {"Name": " + ".join(nodes), "LayerType": of, "TacticName": tactic, "Metadata": told, "Inputs": [tensor], "Outputs": [tensor]}


def test_layers_that_certify_must_show_float32():
    good = [layer(["relu"]), layer(["certify.h.upper"], "FP32"), layer(["certify.h.lower", "certify.r.low"], "FP32")]
    assert not certifying_faults(good, "fp16-tensorrt")
    assert "reduced precision" in certifying_faults([*good, layer(["certify.h.size"])], "fp16-tensorrt")[0]
    assert "together with the network" in certifying_faults([*good, layer(["relu", "certify.h.size"], "FP32")], "fp16-tensorrt")[0]
    assert "no layer is named" in certifying_faults([layer(["relu"])], "fp16-tensorrt")[0]
    half_sum = layer(["certify.h.both"], "FP32", "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x64x32", "Gemm")
    assert certifying_faults([*good, half_sum], "fp16-tensorrt")
    unnamed = {**layer([]), "Name": "Reformatting CopyNode for Input Tensor 0 to certify.h.both"}
    assert "reduced precision" in certifying_faults([*good, unnamed], "fp16-tensorrt")[0]
