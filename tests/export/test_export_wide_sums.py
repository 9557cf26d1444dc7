"""Float16 files that type their sums as float32, for TensorRT: what is written, how it is read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from precision_nets import random_net

from vsparse.bounds import Rounding, interval
from vsparse.contract import CONTRACTS, contract
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph import Graph, from_onnx, run, to_onnx
from vsparse.graph.ir import Conv, Gemm, Relu, Reshape
from vsparse.perturbation import PerturbationSet
from vsparse.reading import check_written
from vsparse.recipe import Verify
from vsparse.stages.export import as_convolutions, check_runtime_graph, write_onnx
from vsparse.stages.export.half import half
from vsparse.stages.verify.audit import audit
from vsparse.stages.verify.certify import certify
from vsparse.stages.verify.deployed import Runtime, read_model, session_variants
from vsparse_check.contracts import CONTRACTS as CHECKED
from vsparse_check.errors import ErrorTerms
from vsparse_check.model import Model
from vsparse_check.refusal import NotConfirmed

NAME = "fp16-tensorrt"
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Returns the element type of each tensor, by shape inference."""
    known = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {one.name: one.type.tensor_type.elem_type for one in [*known.value_info, *known.input, *known.output]}


@pytest.mark.parametrize("seed", range(6))
def test_sums_are_float32_between_casts_and_every_execution_is_inside_the_bounds(seed, tmp_path):
    rng = np.random.default_rng(seed)
    graph, path = half(random_net(rng), wide_sums=True), tmp_path / "model.fp16.onnx"
    write_onnx(graph, path, 17, {})
    file = onnx.load(path)
    types, made = kinds(file), {name: node for node in file.graph.node for name in node.output}
    readers = [name for node in file.graph.node for name in node.input]
    for node in file.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul", "AveragePool", "GlobalAveragePool"):
            assert types[node.output[0]] == FLOAT
            assert node.input[0] == "input" or (made[node.input[0]].op_type, types[made[node.input[0]].input[0]]) == ("Cast", HALF)
        if node.op_type in ("Add", "Mul", "MaxPool", "LeakyRelu"):
            assert types[node.output[0]] == HALF
        if types.get(node.output[0]) == FLOAT and node.op_type != "Cast":
            assert readers.count(node.output[0]) + (node.output[0] == "logits") == 1
    assert check_written(path, graph).contract == NAME
    assert check_runtime_graph(path).foldable == ()
    model = read_model(path)
    assert (model.graph.storage, model.graph.wide_sums, model.executes) == ("fp16", True, NAME)
    rounding = Rounding(model.graph, contract(NAME))
    x = rng.random((16, 1, 6, 6), dtype=np.float32)
    inputs = torch.from_numpy(x).double()
    low, high = interval(model.graph, rounding.params, (inputs, inputs), rounding)[model.graph.output]
    for level, threads, batch in session_variants():
        logits = Runtime(model.data, level, threads, batch).logits(x)
        assert (logits >= low.numpy()).all(), level
        assert (logits <= high.numpy()).all(), level
    checked = Model(file)
    assert checked.wide_sums
    assert (checked.input in checked.unrounded) == (model.graph.input in model.graph.unrounded)
    assert (checked.output in checked.unrounded) == bool(model.graph.unrounded - {model.graph.input})
    rounds = any(node.op_type == "Cast" and node.input[0] == "input" for node in file.graph.node)
    assert rounds == (model.graph.input not in model.graph.unrounded)


def test_the_contract_is_that_of_float32_sums_and_about_these_files_alone(tmp_path):
    same = {key: value for key, value in CONTRACTS[NAME].as_dict().items() if key != "name"}
    assert same == {key: value for key, value in CONTRACTS["fp16"].as_dict().items() if key != "name"}
    net = random_net(np.random.default_rng(1))
    plain, wide = half(net), half(net, wide_sums=True)
    with pytest.raises(InputError, match="leaves them to the kernels; choose fp16-accumulate"):
        Rounding(plain, contract(NAME))
    with pytest.raises(InputError, match="about sums in float16; choose fp16-tensorrt"):
        Rounding(wide, contract("fp16-chain"))
    for name in ("fp16", "fp16-accumulate", "real", NAME):
        Rounding(wide, contract(name))
    read_plain, read_wide = Model(to_onnx(plain)), Model(to_onnx(wide))
    assert not read_plain.wide_sums
    with pytest.raises(NotConfirmed, match="leaves its sums to kernels"):
        ErrorTerms(read_plain, CHECKED[NAME])
    with pytest.raises(NotConfirmed, match="types its sums as float32"):
        ErrorTerms(read_wide, CHECKED["fp16-chain"])
    ErrorTerms(read_wide, CHECKED[NAME])


def test_such_a_file_is_certified_on_any_processor(tmp_path, monkeypatch):
    rng, path = np.random.default_rng(2), tmp_path / "model.fp16.onnx"
    graph = half(random_net(rng), wide_sums=True)
    write_onnx(graph, path, 17, {})
    pixels = rng.random((8, 1, 6, 6), dtype=np.float32)
    labels = run(graph, graph.tensors(), torch.from_numpy(pixels)).argmax(dim=1).numpy().astype(np.int64)
    data = Dataset(pixels, 1.0, labels, ("a", "b", "c"), None)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("platform.machine", lambda: "aarch64")
        certificate = certify(path, data, PerturbationSet(epsilon="0.001"), contract(NAME), Verify(attack_restarts=1))
    assert certificate.summary.certified > 0
    found = audit(path, data, certificate)
    assert found.passed, found.reason


def network(change: Callable[[list[onnx.NodeProto]], None] = lambda nodes: None, *, bias: type = np.float32) -> onnx.ModelProto:
    """Returns a small file of this form with two products, changed before it is written."""
    tensors = {"w": np.ones((3, 3), np.float16), "b": np.ones(3, bias), "v": np.eye(3, dtype=np.float32), "c": np.ones(3, np.float32)}
    nodes = [
        helper.make_node("Cast", ["w"], ["w.wide"], to=FLOAT),
        helper.make_node("Cast", ["x"], ["h"], to=HALF),
        helper.make_node("Cast", ["h"], ["h.wide"], to=FLOAT),
        helper.make_node("Gemm", ["h.wide", "w.wide", "b"], ["g"]),
        helper.make_node("Relu", ["g"], ["r"]),
        helper.make_node("Cast", ["r"], ["r.half"], to=HALF),
        helper.make_node("Cast", ["r.half"], ["r.wide"], to=FLOAT),
        helper.make_node("Gemm", ["r.wide", "v"], ["y"], transB=1),
    ]
    change(nodes)
    ends = [helper.make_tensor_value_info(name, FLOAT, ["n", 3]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    return helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], stored), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


def both(model: onnx.ModelProto) -> list[bool]:
    """Returns whether the toolchain and the checker read a file."""
    found = []
    for read, refusal in ((lambda: from_onnx(model.SerializeToString()), InputError), (lambda: Model(model), NotConfirmed)):
        try:
            read()
            found.append(True)
        except refusal:
            found.append(False)
    return found


def test_the_form_is_read_by_both():
    assert both(network()) == [True, True]
    graph = from_onnx(network().SerializeToString())
    assert graph.wide_sums
    assert Model(network()).wide_sums

    def narrow(nodes: list[onnx.NodeProto]) -> None:  # the second product in float16: the kernels' choice again
        nodes[6:] = [helper.make_node("Gemm", ["r.half", "w"], ["n"]), helper.make_node("Cast", ["n"], ["y"], to=FLOAT)]

    assert both(network(narrow)) == [True, True]
    assert not from_onnx(network(narrow).SerializeToString()).wide_sums
    assert not Model(network(narrow)).wide_sums


def _two_values(nodes):  # one reader rounds the first sum to float16, another does not
    nodes[6].input[0] = "r"


def _twice_unrounded(nodes):
    nodes[7:] = [
        helper.make_node("Gemm", ["r", "v"], ["one"]),
        helper.make_node("Gemm", ["r.wide", "v"], ["two"]),
        helper.make_node("Concat", ["one", "two"], ["y"], axis=1),
    ]


def _addition(nodes):
    nodes[4] = helper.make_node("Add", ["g", "c"], ["r"])


def _sigmoid(nodes):
    nodes[4] = helper.make_node("Sigmoid", ["g"], ["r"])


def _input(nodes):  # the input as it is, which another reader rounds
    nodes[7:] = [
        helper.make_node("Gemm", ["x", "v"], ["one"]),
        helper.make_node("Gemm", ["r.wide", "v"], ["two"]),
        helper.make_node("Concat", ["one", "two"], ["y"], axis=1),
    ]


def _function_of_the_input(nodes):
    nodes[1:3] = [helper.make_node("Relu", ["x"], ["h.wide"])]


def _half_bias(nodes):
    nodes[3].input[2] = "w"


def _mixed(nodes):
    nodes[3].input[1] = "w"


def _rounded_weight(nodes):
    nodes[0] = helper.make_node("Cast", ["v"], ["w.wide"], to=HALF)


@pytest.mark.parametrize(
    "change",
    [_two_values, _twice_unrounded, _addition, _sigmoid, _input, _function_of_the_input, _half_bias, _mixed, _rounded_weight],
    ids=lambda one: one.__name__,
)
def test_what_bounds_do_not_cover_is_read_by_neither(change):
    assert both(network(change)) == [False, False]


def test_a_value_without_a_cast_between_two_sums_errs_less_and_is_read():
    def straight(nodes: list[onnx.NodeProto]) -> None:
        nodes[5:7] = []
        nodes[-1].input[0] = "r"

    assert both(network(straight)) == [True, True]
    model = network(straight)
    graph = from_onnx(model.SerializeToString())
    rounding, x = Rounding(graph, contract(NAME)), np.random.default_rng(0).random((8, 3), dtype=np.float32)
    inputs = torch.from_numpy(x).double()
    low, high = interval(graph, rounding.params, (inputs, inputs), rounding)[graph.output]
    logits = Runtime(model.SerializeToString()).logits(x)
    assert ((logits >= low.numpy()) & (logits <= high.numpy())).all()


def test_a_parameter_that_is_no_float16_number_is_refused():
    graph = replace(random_net(np.random.default_rng(0)), storage="fp16", wide_sums=True)
    with pytest.raises(InputError, match="no float16 number"):
        to_onnx(graph)


def ends(model: onnx.ModelProto) -> tuple[bool, bool]:
    """Returns whether input and output stay in float32, in which both readings agree."""
    graph, checked = from_onnx(model.SerializeToString()), Model(model)
    found = (graph.input in graph.unrounded, bool(graph.unrounded - {graph.input}))
    assert found == (checked.input in checked.unrounded, checked.output in checked.unrounded)
    return found


def _straight_in(nodes):
    nodes[1:3] = [helper.make_node("Identity", ["x"], ["h.wide"])]


def _rounded_out(nodes):
    nodes[-1].output[0] = "z"
    nodes += [helper.make_node("Cast", ["z"], ["z.half"], to=HALF), helper.make_node("Cast", ["z.half"], ["y"], to=FLOAT)]


def _function_out(nodes):
    nodes[-1].output[0] = "z"
    nodes.append(helper.make_node("Relu", ["z"], ["y"]))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda nodes: None, (False, True)),
        (_straight_in, (True, True)),
        (_rounded_out, (False, False)),
        (_function_out, (False, False)),
    ],
)
def test_what_is_never_rounded_is_charged_no_rounding(change, found):
    model = network(change)
    assert ends(model) == found
    graph = from_onnx(model.SerializeToString())
    x = torch.rand(4, 3, dtype=torch.float64) + 0.5
    one, other = (Rounding(graph, contract(name)) for name in (NAME, "fp16"))
    assert (one.input_error((x, x)) < 1e-30).all() == found[0]
    assert (other.input_error((x, x)) > 2.0**-12).all()
    widths = []
    for rounding in (one, other):
        low, high = interval(graph, rounding.params, (x, x), rounding)[graph.output]
        widths.append(float((high - low).max()))
    assert widths[0] <= widths[1]
    low, high = interval(graph, one.params, (x.float().double(), x.float().double()), one)[graph.output]
    logits = Runtime(model.SerializeToString()).logits(x.float().numpy())
    assert ((logits >= low.numpy()) & (logits <= high.numpy())).all()


def test_the_file_of_a_network_of_convolutions_keeps_its_ends():
    rng = np.random.default_rng(3)
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in (("w", (4, 1, 3, 3)), ("v", (3, 64)))}
    nodes = (
        Conv(name="c", inputs=("x",), shape=(4, 4, 4), weight="w", bias=None),
        Relu(name="r", inputs=("c",), shape=(4, 4, 4)),
        Reshape(name="f", inputs=("r",), shape=(64,)),
        Gemm(name="g", inputs=("f",), shape=(3,), weight="v", bias=None),
    )
    graph = Graph("x", (1, 6, 6), nodes, "g", params)
    for one in (graph, as_convolutions(graph)):
        model = to_onnx(half(one, wide_sums=True))
        assert ends(model) == (True, True)
        assert sum(node.op_type == "Cast" and node.attribute[0].i == HALF for node in model.graph.node) == 1
    one_sum = replace(graph, nodes=(replace(nodes[2], inputs=("x",), shape=(36,)), nodes[3]), params={"v": params["v"][:, :36].copy()})
    assert ends(to_onnx(half(one_sum, wide_sums=True))) == (False, True)


@pytest.mark.parametrize("move", ["Flatten", "Identity"])
def test_a_result_that_is_moved_in_float32_after_it_was_rounded_is_charged_the_rounding(move):
    weight = np.full((3, 3, 1, 1), 2.0**-8, np.float32)
    tensors = {"w": weight, "b": np.full(3, 1000, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Cast", ["c"], ["c.half"], to=HALF),
        helper.make_node("Cast", ["c.half"], ["c.wide"], to=FLOAT),
        helper.make_node("Conv", ["c.wide", "w", "b"], ["z"]),
        helper.make_node("Cast", ["z"], ["z.half"], to=HALF),
        helper.make_node("Cast", ["z.half"], ["z.wide"], to=FLOAT),
        helper.make_node(move, ["z.wide"], ["moved"]),
        helper.make_node("Flatten", ["moved"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, FLOAT, ["n", *shape]) for name, shape in (("x", (3, 1, 1)), ("y", (3,)))]
    stored = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ports[:1], ports[1:], stored), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    assert ends(model) == (True, False)
    graph = from_onnx(model.SerializeToString())
    rounding, x = Rounding(graph, contract(NAME)), np.random.default_rng(0).random((8, 3, 1, 1), dtype=np.float32) * 255
    inputs = torch.from_numpy(x).double()
    low, high = interval(graph, rounding.params, (inputs, inputs), rounding)[graph.output]
    logits = Runtime(model.SerializeToString(), "disable").logits(x)
    assert ((logits >= low.numpy()) & (logits <= high.numpy())).all()
