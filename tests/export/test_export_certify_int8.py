"""Certifying files of quantised networks: margins attacked over contracts and operators, ties, charges left out, refusals, artifact."""

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
from test_export_certify_onnx import changed, mlp
from twin_attack import Tally, attack, certify, quantised_net, sessions

from engine_nets import case
from vsparse.artifact.device import DeviceResults
from vsparse.artifact.device_folder import DeviceTiming
from vsparse.artifact.document import read_document
from vsparse.artifact.models import CERTIFYING_OF, CertifyingRecord
from vsparse.data import Dataset
from vsparse.errors import GateError, InputError
from vsparse.graph import FakeQuant, Gemm, Graph, from_onnx, to_onnx
from vsparse.graph.ir import AddConstant, Concat, LeakyRelu, QuantisedParameter
from vsparse.perturbation import PerturbationSet
from vsparse.stages.export import CertifiedModel, write_device_folder, write_onnx
from vsparse.stages.export.certify_onnx import affine, certifying_model, charges, margins, operators, quantised
from vsparse.stages.export.certify_onnx.affine import ChargedSum
from vsparse.stages.export.certify_onnx.build import network_of
from vsparse.stages.export.certify_onnx.check import MarginBounds, check_certifying
from vsparse.stages.export.certify_onnx.stage import stamped_certifying, write_certifying, write_further_certifying
from vsparse.stages.export.certifying_folder import CertifyingFile
from vsparse.stages.export.device.engine_layers import certifying_faults
from vsparse.stages.export.quantise import quantise
from vsparse.stages.profile.contradictions import contradiction
from vsparse.target import load_target
from vsparse_check import certifying, device
from vsparse_check.certifying import check_certifying as check_independently
from vsparse_check.claims import content_sha256
from vsparse_check.limits import ResourceBudget
from vsparse_check.refusal import Refuted

CLIP = (0.0, 1.0)
CONTRACTS = ("int8", "int8-tensorrt")
QUICK = {"samples": 2, "points": 3, "radii": (0.0, 0.01, 0.1)}
ROLE = "certifying-int8"


def whole(graph: Graph, name: str = "int8") -> Graph:
    """Returns a network on integers, calibrated on inputs drawn from the data range."""
    return quantise(graph, np.random.default_rng(3).random((64, *graph.input_shape), dtype=np.float32), name)


def int8_file(graph: Graph, name: str = "int8") -> onnx.ModelProto:
    return to_onnx(whole(graph, name))


# Attacks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTRACTS)
def test_no_margin_of_random_networks_is_broken_by_any_execution(name: str):
    rng, tally = np.random.default_rng(23), Tally()
    for _ in range(14):
        attack(quantised_net(rng, name), rng, tally, contract=name, **QUICK)
    assert not tally.refused
    assert 50 < tally.certified < tally.margins
    assert tally.executions > 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTRACTS)
def test_no_margin_is_broken_at_length(name: str):
    rng, tally = np.random.default_rng(29), Tally()
    for _ in range(200):
        attack(quantised_net(rng, name), rng, tally, contract=name)
    assert 2000 < tally.certified < tally.margins
    # Every operator that may stand in such a network was there.
    assert {"Add", "Sub", "Concat", "AveragePool", "MaxPool", "LeakyRelu", "Clip", "Pad", "Slice", "Conv", "Gemm"} <= tally.kinds


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("ways", [{"BLOCK_MACS": 0}, {"ALL_PAIRS": 0}, {"BLOCK_MACS": 0, "ALL_PAIRS": 0}], ids=str)
def test_the_other_ways_to_the_same_bounds_hold_too(monkeypatch: pytest.MonkeyPatch, ways: dict[str, int], name: str):
    for key, value in ways.items():
        monkeypatch.setattr(margins if key == "ALL_PAIRS" else affine, key, value)
    rng, tally = np.random.default_rng(11), Tally()
    for _ in range(4):
        attack(quantised_net(rng, name), rng, tally, contract=name, **QUICK)
    assert tally.certified > 5


def staircase(scale: float = 0.25) -> Graph:
    """z = (q, 3·scale/2): one input on a grid of int8 steps, against a constant."""
    weight = QuantisedParameter(np.array([[1], [0]], np.int8), np.float32(1))
    bias = QuantisedParameter(np.array([0, 1], np.int32), np.float32(scale))
    nodes = (
        FakeQuant(name="q", inputs=("x",), shape=(1,), scale=scale, zero_point=0, lowest=0, highest=255),
        Gemm(name="z", inputs=("q",), shape=(2,), weight="w", bias="b"),
    )
    params = {"w": weight.floats(), "b": bias.floats()}
    return Graph("x", (1,), nodes, "z", params, integers={"w": weight, "b": bias})


def test_a_margin_by_hand():
    """Of x = 0.75 it is 3 steps less 1: 0.5; with ε = 0.1 it is the same; with ε = 0.125 a tie may take the step below."""
    model = certifying_model(to_onnx(staircase()), CLIP, contract_name="int8")
    x = np.array([[0.75]], np.float32)
    for session in sessions(model.SerializeToString()).values():
        for epsilon, wanted in ((0.0, 0.5), (0.1, 0.5), (0.125, 0.25), (0.37, 0.25), (0.376, 0.0)):
            _, classes, found = certify(session, x, epsilon)
            assert classes[0] == 0
            assert wanted - 1e-5 < found[0] <= wanted, (epsilon, found)


def test_a_network_of_two_quantised_layers_takes_three_operators_a_layer():
    """Product, Round and Clip: scales, τ and ReLU are in the weights and in the clip."""
    made = certifying_model(int8_file(mlp()), CLIP, contract_name="int8")
    own = [node.op_type for node in made.graph.node if node.name.startswith("certify.")]
    assert own.count("Gemm") == 2
    assert own.count("Round") == own.count("Clip") - 3 == 2
    assert own.count("Relu") == 0


@pytest.mark.parametrize("left_out", ["reach", "errors of sums", "scale"])
def test_a_charge_that_is_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch, left_out: str):
    """At a tie, and at ε = 0, nothing but charges stands between a margin and the host's bound."""
    wanted = charges.Charges.sum_of

    def without_errors(self: charges.Charges, node: Gemm) -> ChargedSum:
        one = wanted(self, node)
        return replace(one, slope=-one.slope, constant=-one.constant)

    graph = staircase()
    if left_out == "reach":
        monkeypatch.setattr(quantised, "REACH", 0.0)
    elif left_out == "scale":
        monkeypatch.setattr(margins, "of_steps", lambda one, scale: one)
    else:
        monkeypatch.setattr(charges.Charges, "sum_of", without_errors)
    model = certifying_model(to_onnx(graph), CLIP, contract_name="int8")
    x = np.array([[0.625], [0.75], [0.375 + 2.0**-13]], np.float32)  # the last one half a τ above a tie
    with pytest.raises(GateError, match=r"returns the margin|must return none"):
        check_certifying(model, graph, CLIP, x, [np.float32(0)], "int8")


def signed_grid() -> FakeQuant:
    return FakeQuant(name="q", inputs=("x",), shape=(3,), scale=float(np.float32(1 / 127)), zero_point=0, lowest=-128, highest=127)


def within_bounds(graph: Graph) -> bool:
    """Whether all margins of samples at ε 0, where charges alone are between, are those that the file stands for."""
    file, clip = to_onnx(graph), (-1.0, 1.0)
    graph, model = from_onnx(file.SerializeToString()), certifying_model(file, clip, contract_name="int8")
    x, bounds = np.random.default_rng(0).uniform(*clip, (4, 3)).astype(np.float32), MarginBounds(graph, model, clip, "int8")
    _, classes, found = certify(sessions(model.SerializeToString())["all"], x, 0.0)
    low, high = bounds.range_of(x, np.float32(0), classes)
    return bool(((low - bounds.room <= found) & (found <= high + bounds.room)).all())


def test_a_constant_added_to_steps_is_charged_what_kernels_on_integers_lose(monkeypatch: pytest.MonkeyPatch):
    nodes = (signed_grid(), AddConstant(name="a", inputs=("q",), shape=(3,), constant="c"))
    graph = Graph("x", (3,), nodes, "a", {"c": np.array([0.1, -0.2, 0.03], np.float32)})
    assert within_bounds(graph)
    monkeypatch.setattr(operators, "step_errors", lambda scales, node: 0.0)
    assert not within_bounds(graph)


def test_a_leaky_relu_reads_steps_beside_floats():
    nodes = (
        signed_grid(),
        Gemm(name="f", inputs=("x",), shape=(3,), weight="w", bias="b"),
        Concat(name="k", inputs=("q", "f"), shape=(6,), axis=0),
        LeakyRelu(name="a", inputs=("k",), shape=(6,), slope=0.125),
    )
    assert within_bounds(Graph("x", (3,), nodes, "a", {"w": np.eye(3, dtype=np.float32), "b": np.zeros(3, np.float32)}))


def test_what_may_be_a_step_lower_in_float32_is_no_fault():
    """The lower end of what a runtime may return pays four times: ties of inputs and sums do not refuse a sound file."""
    rng = np.random.default_rng(41)
    for trial in range(6):
        graph = whole(mlp(trial))
        grid = next(node for node in graph.nodes if isinstance(node, FakeQuant))
        made = certifying_model(to_onnx(graph), CLIP, contract_name="int8")
        ties = (rng.integers(0, int(1 / grid.scale), (8, 6)) + 0.5) * grid.scale
        x = ties.astype(np.float32).clip(*CLIP)
        check_certifying(made, from_onnx(to_onnx(graph).SerializeToString()), CLIP, x, [np.float32(v) for v in (0, 1e-6, 0.02)], "int8")


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name", "told"),
    [
        (lambda: whole(mlp()), "fp32", "int8 or int8-tensorrt or int8-exact, and not about fp32"),
        (lambda: whole(mlp()), "fp16", "not about fp16"),
        (mlp, "int8", "contract fp32, and not about int8"),
        (lambda: case(FakeQuant, False).graph, "int8", "FakeQuant|integers|quantised"),
        (lambda: staircase(2.0**-20), "int8", "too many steps"),
    ],
)
def test_forms_and_contracts_without_such_a_file_are_refused_by_name(make, name: str, told: str):
    with pytest.raises(InputError, match=told):
        certifying_model(to_onnx(make()), (0.0, 1.0) if told != "too many steps" else (0.0, 1e9), contract_name=name)


@pytest.mark.parametrize("name", CONTRACTS)
def test_inputs_and_radii_that_are_none_get_no_bound(name: str):
    for session in sessions(certifying_model(int8_file(mlp(), name), CLIP, contract_name=name).SerializeToString()).values():
        for value in (np.nan, np.inf, -np.inf, -1e-45, np.nextafter(np.float32(1), np.float32(2))):
            x = np.full((2, 6), 0.5, np.float32)
            x[1, 3] = value
            found = certify(session, x, 0.0)[2]
            assert np.isfinite(found[0])
            assert found[1] == -np.inf
        for epsilon in (np.nan, np.inf, -1e-45, np.nextafter(np.float32(1), np.float32(2))):
            assert (certify(session, np.full((2, 6), 0.5, np.float32), epsilon)[2] == -np.inf).all()


# In an artifact -------------------------------------------------------------------------------------------------------


def training() -> Dataset:
    pixels = np.random.default_rng(0).random((40, 1, 1, 6), dtype=np.float32)
    return Dataset(pixels, 1.0, np.zeros(40, np.int64), ("a", "b", "c"), None)


@pytest.fixture(scope="module", params=CONTRACTS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with model/ of a quantised network and its certifying file, and their contract."""
    folder, name = tmp_path_factory.mktemp("int8") / "artifact", str(request.param)
    (folder / "model").mkdir(parents=True)
    write_onnx(whole(mlp(), name), folder / "model/model.int8.onnx", 17, {"recipe": "test"})
    write_further_certifying(folder / "model/model.int8.onnx", "test", PerturbationSet(epsilon="0.02"), training(), "int8", name)
    return folder, name


def certificates(name: str) -> dict[str, dict[str, dict[str, object]]]:
    about = {"property": {"clip": [0.0, 1.0], "epsilon": "0.02"}, "contract": {"name": name}}
    return {"certificate": about, "certificate/int8": about}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_stage_writes_what_can_be_written_again_and_its_record(made: tuple[Path, str]):
    folder, name = made
    network = onnx.load(folder / "model/model.int8.onnx")
    again = stamped_certifying(network, "test", CLIP, "int8", name)
    assert again.SerializeToString(deterministic=True) == (folder / CERTIFYING_OF["int8"].file).read_bytes()
    record = read_document(CertifyingRecord, folder / CERTIFYING_OF["int8"].record)
    assert record.contract == name
    assert all(row.certified <= row.by_intervals for row in record.radii)
    assert record.radii[0].certified > 0
    inside = network_of(again).graph
    for part in ("node", "initializer", "input", "output"):
        ours, theirs = ({one.SerializeToString() for one in getattr(graph, part)} for graph in (inside, network.graph))
        assert ours == theirs, part


@pytest.mark.parametrize("tampered", ["", "certify.margin.bias", "certify.margin.weight", "certify.nothing", "network"])
def test_the_checker_confirms_the_file_and_no_other(made: tuple[Path, str], tmp_path: Path, tampered: str):
    folder, name = Path(shutil.copytree(made[0], tmp_path / "artifact")), made[1]
    if not tampered:
        check_independently(folder, files_of(folder), certificates(name), ResourceBudget())
        with pytest.raises(Refuted, match="no such file"):
            check_independently(folder, files_of(folder), certificates("fp16-accumulate"), ResourceBudget())
        return
    there = onnx.load(folder / CERTIFYING_OF["int8"].file)
    if tampered == "network":
        other = there
        next(node for node in other.graph.node if node.op_type == "DequantizeLinear").name = "another"
    else:
        change = {"certify.margin.bias": lambda v: v + 0.05, "certify.margin.weight": np.abs, "certify.nothing": np.zeros_like}[tampered]
        other = changed(there, tampered, change)
    (folder / CERTIFYING_OF["int8"].file).write_bytes(other.SerializeToString(deterministic=True))
    record = read_document(CertifyingRecord, folder / CERTIFYING_OF["int8"].record)
    told = record.model_copy(update={"content_sha256": content_sha256(other)}).model_dump_json()
    (folder / CERTIFYING_OF["int8"].record).write_text(told)
    with pytest.raises(Refuted, match=r"does not bound|no margin|nothing is proved|as they stand"):
        check_independently(folder, files_of(folder), certificates(name), ResourceBudget())


def test_a_file_that_computes_something_else_is_noticed():
    file = int8_file(mlp())
    graph, model = from_onnx(file.SerializeToString()), certifying_model(file, CLIP, contract_name="int8")
    samples, radii = np.random.default_rng(0).random((3, 6), dtype=np.float32), [np.float32(0), np.float32(0.1)]
    check_certifying(model, graph, CLIP, samples, radii, "int8")
    for shift in (0.5, -0.5):  # above the bound, and far below what the file says
        other = changed(model, "certify.margin.bias", lambda value, shift=shift: value + np.float32(shift))
        bounds = MarginBounds(graph, model, CLIP, "int8")
        _, classes, found = certify(sessions(other.SerializeToString())["all"], samples, 0.1)
        low, high = bounds.range_of(samples, np.float32(0.1), classes)
        assert ((found > high) if shift > 0 else (found < low)).all()


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("opset", [13, 17, 21])
def test_files_of_every_network_are_built_so_at_every_opset(opset: int, name: str):
    rng, built = np.random.default_rng(19), 0
    for _ in range(6):
        network = to_onnx(quantised_net(rng, name), opset)
        model = certifying_model(network, CLIP, contract_name=name)
        certifying._check_built(certifying.FILES["certificate/int8"], model, network)
        x = rng.random((2, *from_onnx(network.SerializeToString()).input_shape), dtype=np.float32)
        built += sum(np.isfinite(certify(session, x, 0.01)[2]).all() for session in sessions(model.SerializeToString()).values())
    assert built == 24


def test_the_device_folder_audits_and_times_it(tmp_path: Path):
    name, model = "int8", tmp_path / "model"
    model.mkdir()
    write_onnx(mlp(), model / "model.fp32.onnx", 17, {"recipe": "test"})
    write_onnx(whole(mlp()), model / "model.int8.onnx", 17, {"recipe": "test"})
    write_certifying(model / "model.fp32.onnx", "test", PerturbationSet(epsilon="0.02"), training())
    write_further_certifying(model / "model.int8.onnx", "test", PerturbationSet(epsilon="0.02"), training(), "int8", name)
    inputs = np.random.default_rng(1).random((2, 6), dtype=np.float32)
    first = CertifyingFile(model / "model.certify.onnx", model / "model.fp32.onnx", inputs, Fraction(1, 50), CLIP)
    paths = {"path": model / "model.int8.certify.onnx", "network": model / "model.int8.onnx"}
    further = replace(first, **paths, role=ROLE, contract=name, certificate_sha256="d" * 64)
    manifest = write_device_folder(
        tmp_path / "device",
        {"packed": model / "model.fp32.onnx", "int8": model / "model.int8.onnx"},
        load_target("local"),
        "c" * 64,
        timing=DeviceTiming(runs=20, seconds=0.05, warmup_ms=10),
        certified={"int8": CertifiedModel("int8", name, "d" * 64)},
        certifying=first,
        further_certifying=[further],
    )
    assert [one.role for one in manifest.certifying_files] == ["certifying", ROLE]
    content = json.loads((tmp_path / "device/manifest.json").read_text())
    device._check_further(content)
    run = [sys.executable, str(tmp_path / "device/agent.py"), "--any-device", "--runtime", "onnxruntime"]
    subprocess.run(run, capture_output=True, timeout=120, check=False)
    results = json.loads((tmp_path / "device/results.json").read_text())
    (entry,) = (one for one in results["further"] if one["role"] == ROLE)
    assert {one["name"]: one["passed"] for one in entry["gates"]} == {"audit": True, "refusal": True}
    assert (entry["contract"], entry["precision"]) == (name, "int8")
    assert not contradiction(read_document(DeviceResults, tmp_path / "device/results.json"), manifest)
    content["further_certifying"][0]["contract"] = "fp16"
    with pytest.raises(Refuted, match="says otherwise of"):
        device._check_further(content)
    (tmp_path / "device/manifest.json").write_text(json.dumps(content))
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "no form that this script knows" in done.stderr + done.stdout


# What an engine must show ---------------------------------------------------------------------------------------------


def layer(nodes: list[str], kind: str = "Int8", tactic: str = "", of: str = "PointWise") -> dict[str, object]:
    tensor = {"Name": "t", "Format/Datatype": f"Row major linear {kind}"}
    told = "".join(f"[ONNX Layer: {name}]" for name in nodes)
    return {"Name": " + ".join(nodes), "LayerType": of, "TacticName": tactic, "Metadata": told, "Inputs": [tensor], "Outputs": [tensor]}


def test_layers_that_certify_must_show_float32():
    good = [layer(["relu"]), layer(["certify.h.rounded"], "FP32"), layer(["certify.h.steps", "certify.r.low"], "FP32")]
    assert not certifying_faults(good, "int8-tensorrt")
    assert "reduced precision" in certifying_faults([*good, layer(["certify.h.steps"])], "int8-tensorrt")[0]
    assert "together with the network" in certifying_faults([*good, layer(["relu", "certify.h.steps"], "FP32")], "int8-tensorrt")[0]
    assert "no layer is named" in certifying_faults([layer(["relu"])], "int8-tensorrt")[0]
