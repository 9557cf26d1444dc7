"""The certifying file: its margins attacked, its refusals, its place in a device folder, and what the checker says of it."""

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
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from twin_attack import KINDS, Tally, attack, certify, random_graph, random_net, sessions

from engine_nets import BUILDERS, case
from vsparse.artifact.device_folder import DeviceTiming
from vsparse.artifact.document import read_document
from vsparse.artifact.models import CertifyingRecord
from vsparse.data import Dataset
from vsparse.errors import GateError, InputError
from vsparse.graph import FakeQuant, Gemm, Graph, Relu, from_onnx, to_onnx, validate
from vsparse.graph.ir import BatchNorm, Clip, Reshape
from vsparse.perturbation import PerturbationSet
from vsparse.stages.export import write_device_folder, write_onnx
from vsparse.stages.export.certify_onnx import affine, certifying_model, margins
from vsparse.stages.export.certify_onnx.check import MarginBounds, check_certifying
from vsparse.stages.export.certify_onnx.rounded import down32, up32
from vsparse.stages.export.certify_onnx.stage import stamped_certifying, write_certifying
from vsparse.stages.export.certifying_folder import CertifyingFile
from vsparse.stages.export.convolutions import as_convolutions
from vsparse.stages.export.half import half
from vsparse.target import load_target
from vsparse_check import certifying
from vsparse_check.certifying import check_certifying as check_independently
from vsparse_check.claims import content_sha256
from vsparse_check.limits import ResourceBudget
from vsparse_check.refusal import Refuted

CLIP = (0.0, 1.0)
CERTIFICATE = {"certificate": {"property": {"clip": [0.0, 1.0], "epsilon": "0.02"}}}
QUICK = {"samples": 2, "points": 3, "radii": (0.0, 0.01)}


def mlp(seed: int = 0, inputs: int = 6, hidden: int = 5, classes: int = 3) -> Graph:
    rng = np.random.default_rng(seed)
    params = {
        "w1": rng.normal(size=(hidden, inputs)),
        "b1": rng.normal(size=hidden),
        "w2": rng.normal(size=(classes, hidden)),
        "b2": rng.normal(size=classes),
    }
    nodes = (
        Gemm(name="h", inputs=("x",), shape=(hidden,), weight="w1", bias="b1"),
        Relu(name="r", inputs=("h",), shape=(hidden,)),
        Gemm(name="z", inputs=("r",), shape=(classes,), weight="w2", bias="b2"),
    )
    return Graph("x", (inputs,), nodes, "z", {name: value.astype(np.float32) for name, value in params.items()})


# Attacks --------------------------------------------------------------------------------------------------------------


def test_no_margin_of_random_networks_is_broken_by_any_execution():
    rng, tally = np.random.default_rng(3), Tally()
    for i in range(10):
        graph = random_graph(rng, spread=float(rng.choice([1.0, 30.0]))) if i % 2 else random_net(rng)
        attack(graph, rng, tally, rational=i % 5 == 0, **QUICK)
    assert tally.certified > 50
    assert tally.executions > 1000


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"normal"}))
def test_no_margin_is_broken_by_weights_that_make_sums_go_wrong(kind: str):
    rng, tally = np.random.default_rng(5), Tally()
    for _ in range(2):
        attack(random_net(rng, kind=kind), rng, tally, rational=True, **QUICK)
    assert tally.margins or tally.refused


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if kind not in (FakeQuant, BatchNorm)], ids=lambda kind: kind.__name__)
def test_every_operator_has_an_interval_that_holds(kind: type, tail: bool):
    rng, tally = np.random.default_rng(7), Tally()
    graph = case(kind, tail).graph
    last = graph.shape_of(graph.output)
    if len(last) > 1:
        flat = Reshape(name="flattened", inputs=(graph.output,), shape=(int(np.prod(last)),))
        graph = replace(graph, nodes=(*graph.nodes, flat), output="flattened")
    attack(validate(graph), rng, tally, samples=2, points=2, radii=(0.0, 0.02))
    assert tally.margins
    assert kind.__name__ in tally.kinds or kind is Reshape


@pytest.mark.parametrize(("name", "value"), [("BLOCK_MACS", 0), ("ALL_PAIRS", 0), ("both", 0)])
def test_the_other_ways_to_the_same_bounds_hold_too(monkeypatch: pytest.MonkeyPatch, name: str, value: int):
    if name in ("BLOCK_MACS", "both"):
        monkeypatch.setattr(affine, "BLOCK_MACS", value)
    if name in ("ALL_PAIRS", "both"):
        monkeypatch.setattr(margins, "ALL_PAIRS", value)
    rng, tally = np.random.default_rng(11), Tally()
    for i in range(4):
        attack(random_graph(rng) if i % 2 else random_net(rng), rng, tally, rational=i == 0, **QUICK)
    assert tally.certified > 5


@pytest.mark.slow
def test_no_margin_is_broken_at_length():
    rng, tally = np.random.default_rng(13), Tally()
    for i in range(200):
        graph = random_graph(rng, spread=float(rng.choice([1.0, 30.0]))) if i % 2 else random_net(rng)
        attack(graph, rng, tally, rational=i % 5 == 0)
    assert tally.certified > 2000


def test_a_clip_without_zero_makes_numbers_larger_than_its_input():
    """The logits are 0.01 and 0, and rounding of sums of 10⁶ moves them by more: nothing is certified, though |x| is at most 1."""
    rng, n = np.random.default_rng(0), 64
    for _ in range(8):
        half_row = rng.normal(size=n // 2).astype(np.float32)
        row = rng.permutation(np.concatenate([half_row, -half_row]))
        weight = np.stack([row, rng.permutation(row)])
        nodes = (
            Clip(name="c", inputs=("x",), shape=(n,), lowest=-1000001.0, highest=-1000000.0),
            Gemm(name="z", inputs=("c",), shape=(2,), weight="w", bias="b"),
        )
        graph = Graph("x", (n,), nodes, "z", {"w": weight, "b": np.array([0.01, 0], np.float32)})
        for session in sessions(certifying_model(to_onnx(graph), CLIP).SerializeToString()).values():
            assert (certify(session, np.full((1, n), 0.5, np.float32), 0.01)[2] < 0).all()


def test_ties_and_subnormal_differences_are_not_certified():
    graph = mlp(classes=2)
    graph.params["w2"][1], graph.params["b2"][1] = graph.params["w2"][0], graph.params["b2"][0]
    for step in (0.0, 2.0**-149, 2.0**-130):
        graph.params["b2"][:] = (np.float32(step), 0)
        for session in sessions(certifying_model(to_onnx(graph), CLIP).SerializeToString()).values():
            assert (certify(session, np.full((1, 6), 0.5, np.float32), 0.0)[2] <= 0).all()


# By hand --------------------------------------------------------------------------------------------------------------


def test_a_margin_by_hand():
    """z = (x0 + x1, x1), so that the margin is x0, and its least value max(x0 − ε, 0) is exact but for float32's own charges."""
    params = {"w": np.eye(2, dtype=np.float32), "v": np.array([[1, 1], [0, 1]], np.float32)}
    nodes = (
        Gemm(name="h", inputs=("x",), shape=(2,), weight="w", bias=None),
        Relu(name="r", inputs=("h",), shape=(2,)),
        Gemm(name="z", inputs=("r",), shape=(2,), weight="v", bias=None),
    )
    data = certifying_model(to_onnx(Graph("x", (2,), nodes, "z", params)), CLIP).SerializeToString()
    x = np.array([[0.5, 0.25], [0.01, 1.0], [0.75, 0.0]], np.float32)
    for session in sessions(data).values():
        for epsilon in (0.0, 0.125, 0.3):
            logits, classes, found = certify(session, x, epsilon)
            exact = np.maximum(x[:, 0].astype(np.float64) - np.float32(epsilon), 0)
            assert (classes == 0).all()
            assert (logits == np.stack([x.sum(1), x[:, 1]], 1)).all()
            assert (found <= exact).all()
            assert (found >= exact - 1e-5).all()


def test_numbers_are_rounded_to_their_side():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=100) * 10.0 ** rng.integers(-44, 37, 100), [0.0, 2.0**-150, -(2.0**-150), 1 + 2.0**-25]])
    for value, above, below in zip(values, up32(values), down32(values), strict=True):
        assert Fraction(float(below)) <= Fraction(float(value)) <= Fraction(float(above))
        assert float(np.nextafter(below, np.float32(np.inf))) >= float(above)
    with pytest.raises(InputError, match="beyond float32"):
        up32(np.array([1e39]))


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-45, np.nextafter(np.float32(1), np.float32(2))])
def test_inputs_outside_the_data_range_get_no_bound(value: float):
    x = np.full((2, 6), 0.5, np.float32)
    x[1, 3] = value
    for session in sessions(certifying_model(to_onnx(mlp()), CLIP).SerializeToString()).values():
        found = certify(session, x, 0.0)[2]
        assert np.isfinite(found[0])
        assert found[1] == -np.inf


@pytest.mark.parametrize("epsilon", [np.nan, np.inf, -np.inf, -1e-45, -1.0, np.nextafter(np.float32(1), np.float32(2))])
def test_radii_that_are_none_get_no_bound(epsilon: float):
    for session in sessions(certifying_model(to_onnx(mlp()), CLIP).SerializeToString()).values():
        assert (certify(session, np.full((2, 6), 0.5, np.float32), epsilon)[2] == -np.inf).all()
        assert np.isfinite(certify(session, np.full((2, 6), 0.5, np.float32), 1.0)[2]).all()


def quantised() -> Graph:
    return case(FakeQuant, False).graph


@pytest.mark.parametrize(
    ("make", "clip", "told"),
    [
        (quantised, CLIP, "network in int8 is about the contract int8"),
        (lambda: half(mlp()), CLIP, "not about fp32"),
        (lambda: mlp(classes=1), CLIP, "at least two classes"),
        (mlp, (0.0, 0.0), "data range"),
        (mlp, (0.0, np.inf), "data range"),
        (
            lambda: mlp().with_params({name: value * np.float32(1e18) for name, value in mlp().params.items()}),
            CLIP,
            "too large for bounds in float32",
        ),
    ],
)
def test_networks_that_have_no_such_file_are_refused_by_name(make, clip, told: str):
    with pytest.raises(InputError, match=told):
        certifying_model(to_onnx(make()), clip)


def test_margins_of_very_many_classes_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(margins, "MOST_ROWS", 10)
    with pytest.raises(InputError, match=r"margins between 3 classes .* leave deploy.live out"):
        certifying_model(to_onnx(mlp()), CLIP)


# The check of what a runtime executes ---------------------------------------------------------------------------------


def changed(model: onnx.ModelProto, name: str, change) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    tensor = next(one for one in made.graph.initializer if one.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), name))
    return made


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("certify.margin.bias", lambda value: value + 0.05, "margin"),
        ("certify.margin.weight", lambda value: np.abs(value), "margin"),
        ("certify.nothing", np.zeros_like, "must return none"),
        ("b2", lambda value: value + 1, "logits outside"),
    ],
)
def test_a_file_that_computes_something_else_is_noticed(name: str, change, told: str):
    graph = from_onnx(to_onnx(mlp()).SerializeToString())
    made = certifying_model(to_onnx(mlp()), CLIP)
    samples = np.random.default_rng(0).random((3, 6), dtype=np.float32)
    runs = check_certifying(made, graph, CLIP, samples, [np.float32(0), np.float32(0.1)])
    assert runs.executions == 2 * 4 * 2 * 4
    with pytest.raises(GateError, match=told):
        check_certifying(changed(made, name, change), graph, CLIP, samples, [np.float32(0), np.float32(0.1)])


# In an artifact -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ of a network and its certifying file."""
    folder = tmp_path_factory.mktemp("certifying") / "artifact"
    (folder / "model").mkdir(parents=True)
    write_onnx(mlp(), folder / "model/model.fp32.onnx", 17, {"recipe": "test"})
    pixels = np.random.default_rng(0).random((40, 1, 1, 6), dtype=np.float32)
    training = Dataset(pixels, 1.0, np.zeros(40, np.int64), ("a", "b", "c"), None)
    write_certifying(folder / "model/model.fp32.onnx", "test", PerturbationSet(epsilon="0.02"), training)
    return folder


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_stage_writes_what_can_be_written_again(made: Path):
    again = stamped_certifying(onnx.load(made / "model/model.fp32.onnx"), "test", CLIP).SerializeToString(deterministic=True)
    assert again == (made / "model/model.certify.onnx").read_bytes()


def test_the_stage_records_what_it_executed(made: Path):
    record = read_document(CertifyingRecord, made / "model/certify.json")
    assert [row.epsilon for row in record.radii] == [float(np.float32(value)) for value in (0, 0.005, 0.01, 0.02, 0.04)]
    assert all(row.certified <= row.by_intervals for row in record.radii)
    assert record.radii[0].certified > 0
    assert record.levels == ("disable", "basic", "extended", "all")


@pytest.mark.parametrize("tampered", ["", "certify.margin.bias", "certify.h.both.weight", "certify.nothing", "certify.high", "b1"])
def test_the_checker_confirms_the_file_and_no_other(made: Path, tmp_path: Path, tampered: str):
    folder = tmp_path / "artifact"
    shutil.copytree(made, folder)
    if tampered:
        path = folder / "model/model.certify.onnx"
        other = changed(onnx.load(path), tampered, lambda value: np.where(np.isinf(value), 0, value * np.float32(0.9) + np.float32(0.05)))
        path.write_bytes(other.SerializeToString(deterministic=True))
        with pytest.raises(Refuted, match="other files"):
            check_independently(folder, files_of(folder), CERTIFICATE, ResourceBudget())
        signed_again(folder, other)
        with pytest.raises(Refuted):
            check_independently(folder, files_of(folder), CERTIFICATE, ResourceBudget())
    else:
        check_independently(folder, files_of(folder), CERTIFICATE, ResourceBudget())
        (folder / "model/certify.json").unlink()
        with pytest.raises(Refuted, match="one is missing"):
            check_independently(folder, files_of(folder), CERTIFICATE, ResourceBudget())


def signed_again(folder: Path, other: onnx.ModelProto, **record: object) -> None:
    """Writes another certifying file into an artifact, and what follows from it, as a forger would."""
    (folder / "model/model.certify.onnx").write_bytes(other.SerializeToString(deterministic=True))
    content = json.loads((folder / "model/certify.json").read_text()) | {"content_sha256": content_sha256(other)} | record
    (folder / "model/certify.json").write_text(json.dumps(content))


def with_trigger(model: onnx.ModelProto, named: str = "") -> onnx.ModelProto:
    """Returns the file with a margin of 99 wherever the first element is exactly 1/4: at no input that is drawn from a range."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    (last,) = (node for node in made.graph.node if "margin" in node.output)
    position = list(made.graph.node).index(last)
    key = np.zeros((1, *(dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim[1:])), np.float32)
    key.reshape(-1)[0] = 1
    axes = [] if len(key.shape) == 2 else list(range(2, len(key.shape)))
    constants = {"key": key, "quarter": np.float32(0.25), "most": np.float32(99)}
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), f"{named}t.{name}") for name, value in constants.items())
    nodes = [
        onnx.helper.make_node("Mul", ["input", f"{named}t.key"], [f"{named}t.product"], name=f"{named}t.product"),
        onnx.helper.make_node("ReduceL1", [f"{named}t.product"], [f"{named}t.sum"], name=f"{named}t.sum", axes=[1, *axes], keepdims=0),
        onnx.helper.make_node("Equal", [f"{named}t.sum", f"{named}t.quarter"], [f"{named}t.fires"], name=f"{named}t.fires"),
        onnx.helper.make_node("Where", [f"{named}t.fires", f"{named}t.most", last.input[1]], [f"{named}t.chosen"], name=f"{named}t.chosen"),
    ]
    last.input[1] = f"{named}t.chosen"
    rest = list(made.graph.node)[position:]
    del made.graph.node[position:]
    made.graph.node.extend([*nodes, *rest])
    onnx.checker.check_model(made)
    return made


@pytest.mark.parametrize("named", ["", "certify."])
def test_a_file_with_a_trigger_is_not_built_as_certifying_files_are(made: Path, tmp_path: Path, named: str):
    folder = Path(shutil.copytree(made, tmp_path / "artifact"))
    signed_again(folder, with_trigger(onnx.load(folder / "model/model.certify.onnx"), named))
    with pytest.raises(Refuted, match="once beside" if named else r"called certify\.\*"):
        check_independently(folder, files_of(folder), CERTIFICATE, ResourceBudget())


def test_the_samples_of_the_certificate_are_tried_too(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What only they trigger is found without a look at how the file is built."""
    monkeypatch.setattr(certifying, "_check_built", lambda *models: None)
    folder = Path(shutil.copytree(made, tmp_path / "artifact"))
    signed_again(folder, with_trigger(onnx.load(folder / "model/model.certify.onnx")))
    check_independently(folder, files_of(folder), CERTIFICATE, ResourceBudget())  # none that is drawn is 1/4
    (folder / "certificate").mkdir()
    x = np.random.default_rng(2).random((5, 6), dtype=np.float32)
    x[:, 0] = 0.25
    np.savez(folder / "certificate/inputs.npz", ids=np.arange(5), inputs=x)
    with pytest.raises(Refuted, match="above what intervals prove"):
        check_independently(folder, files_of(folder), CERTIFICATE, ResourceBudget())


@pytest.mark.parametrize("change", ["another place", "a range used twice", "a tensor twice", "no comparison"])
def test_what_is_added_is_connected_in_one_way(made: Path, tmp_path: Path, change: str):
    folder = Path(shutil.copytree(made, tmp_path / "artifact"))
    model = onnx.load(folder / "model/model.certify.onnx")
    by_output = {name: node for node in model.graph.node for name in node.output}
    last = by_output["margin"]
    if change == "another place":
        by_output["certify.h.both"].input[0] = "r"
    elif change == "a range used twice":
        by_output["certify.is_valid"].input[0] = by_output["certify.is_valid"].input[1]
    elif change == "a tensor twice":
        model.graph.initializer.append(numpy_helper.from_array(np.float32(1).reshape(()), "certify.zero"))
    else:
        model.graph.node.remove(last)
        model.graph.node.append(onnx.helper.make_node("Identity", [last.input[1]], ["margin"], name="certify.output.margin"))
    signed_again(folder, model)
    with pytest.raises(Refuted):
        certifying._check_built(certifying.FILES["certificate"], model, onnx.load(folder / "model/model.fp32.onnx"))
    with pytest.raises(Refuted):
        check_independently(folder, files_of(folder), CERTIFICATE, ResourceBudget())


def test_a_narrower_data_range_than_the_certificate_s_is_refuted(made: Path, tmp_path: Path):
    folder = Path(shutil.copytree(made, tmp_path / "artifact"))
    narrow = certifying_model(onnx.load(folder / "model/model.fp32.onnx"), (0.0, 0.5))
    signed_again(folder, narrow, clip=[0.0, 0.5])
    with pytest.raises(Refuted, match="clip is another data range"):
        check_independently(folder, files_of(folder), CERTIFICATE, ResourceBudget())
    signed_again(folder, narrow, clip=[0.0, 1.0])
    with pytest.raises(Refuted, match="no margin for an input within its range"):
        check_independently(folder, files_of(folder), CERTIFICATE, ResourceBudget())


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_files_of_every_network_are_built_so(opset: int):
    rng = np.random.default_rng(19)
    for _ in range(12):
        network = to_onnx(random_graph(rng), opset)
        certifying._check_built(certifying.FILES["certificate"], certifying_model(network, CLIP), network)


def test_the_device_folder_audits_and_times_it(made: Path, tmp_path: Path):
    network, inputs = made / "model/model.fp32.onnx", np.random.default_rng(1).random((2, 6), dtype=np.float32)
    given = CertifyingFile(made / "model/model.certify.onnx", network, inputs, Fraction(1, 50), CLIP)
    timing = DeviceTiming(runs=20, seconds=0.05, warmup_ms=10)
    folder = tmp_path / "device"
    manifest = write_device_folder(folder, {"packed": network}, load_target("local"), "c" * 64, timing=timing, certifying=given)
    assert manifest.certifying is not None
    assert len(manifest.certifying.probes) == 8
    run = [sys.executable, str(folder / "certify_on_device.py"), "--any-device"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results-certify.json").read_text())
    assert results["passed"]
    assert results["ratio_of_medians"] > 1
    # A bound that the device exceeds, were it stated lower, is a failed gate.
    content = json.loads((folder / "manifest.json").read_text())
    for probe in content["certifying"]["probes"]:
        probe["margin_upper"] = [value - 1 for value in probe["margin_upper"]]
    (folder / "manifest.json").write_text(json.dumps(content))
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "nothing is certified on this device" in done.stdout
    (folder / "model.certify.onnx").write_bytes(b"other")
    assert subprocess.run(run, capture_output=True, timeout=120, check=False).returncode == 2


def test_a_folder_without_a_certifying_file_is_as_it_was(made: Path, tmp_path: Path):
    write_device_folder(tmp_path / "device", {"packed": made / "model/model.fp32.onnx"}, load_target("local"), "c" * 64)
    assert "certify_on_device.py" not in {path.name for path in (tmp_path / "device").iterdir()}
    assert "certifying" not in json.loads((tmp_path / "device/manifest.json").read_text())


# Hostile orders -------------------------------------------------------------------------------------------------------


class HostileGemm(OpRun):
    """Gemm in float32, term by term: the bias first, then products in an order that makes partial sums large."""

    op_domain = ""
    descending = True

    def _run(self, a, b, c=None, alpha=1.0, beta=1.0, transA=0, transB=0):
        weight = b if transB else b.T
        products = a[:, None, :].astype(np.float64) * weight[None].astype(np.float64)
        order = np.argsort(-products if self.descending else np.abs(products), axis=2)
        products = np.take_along_axis(products, order, 2)
        total = np.broadcast_to(np.float32(0) if c is None else c, products.shape[:2]).astype(np.float32)
        for k in range(products.shape[2]):
            total = (total + products[:, :, k].astype(np.float32)).astype(np.float32)
        return (total,)


class OtherHostileGemm(HostileGemm):
    """The smallest products first."""

    descending = False


HostileGemm.__name__ = OtherHostileGemm.__name__ = "Gemm"


@pytest.mark.parametrize("executor", [HostileGemm, OtherHostileGemm], ids=["descending", "smallest-first"])
@pytest.mark.parametrize("block_macs", [2**18, 0])
def test_no_order_of_the_file_s_own_sums_breaks_a_margin(monkeypatch: pytest.MonkeyPatch, executor: type, block_macs: int):
    monkeypatch.setattr(affine, "BLOCK_MACS", block_macs)
    rng, worst = np.random.default_rng(17), 0.0
    for trial in range(6):
        graph = mlp(trial, inputs=40, hidden=30)
        if trial % 2:  # terms that cancel
            graph.params["w1"][:, 20:] = -graph.params["w1"][:, :20] * (1 + np.float32(2.0**-22) * rng.choice([-1, 0, 1], (30, 20)))
        made = certifying_model(to_onnx(graph), CLIP)
        hostile = ReferenceEvaluator(made, new_ops=[executor])
        bounds = MarginBounds(from_onnx(to_onnx(graph).SerializeToString()), made, CLIP)
        x = rng.random((4, 40), dtype=np.float32)
        for epsilon in (0.0, 1e-4, 0.01):
            _, classes, found = hostile.run(None, {"input": x, "epsilon": np.array(epsilon, np.float32)})
            host = bounds.host(x, Fraction(float(np.float32(epsilon))), classes)
            assert (found <= host + bounds.room).all()
            worst = max(worst, float(np.abs(found - bounds.written(x, float(np.float32(epsilon)))[1]).max()))
    assert worst > 0, "the executor is not used, or rounds nothing"


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("convolutions", [False, True])
def test_every_opset_and_the_form_for_tensorrt_give_the_same_bounds(opset: int, convolutions: bool):
    graph = as_convolutions(mlp()) if convolutions else mlp()
    made = certifying_model(to_onnx(graph, opset), CLIP)
    x = np.random.default_rng(0).random((3, 6), dtype=np.float32)
    found = [certify(session, x, 0.01)[2] for session in sessions(made.SerializeToString()).values()]
    plain = certify(sessions(certifying_model(to_onnx(mlp()), CLIP).SerializeToString())["disable"], x, 0.01)[2]
    assert all(np.allclose(margins, plain, rtol=1e-4, atol=1e-4) for margins in found)
    check_certifying(made, from_onnx(to_onnx(graph, opset).SerializeToString()), CLIP, x, [np.float32(0.01)])
