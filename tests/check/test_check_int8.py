"""Quantised models: the checker's bounds against the toolchain's, against rationals and against integers, its claims, its refusals."""

from __future__ import annotations

import json
from fractions import Fraction
from math import ceil, floor, prod
from pathlib import Path

import numpy as np
import onnx
import pytest
from check_artifacts import build, graph_of, samples, sign
from onnx import helper, numpy_helper
from test_check_bounds import by_the_toolchain, derive, property_of

from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.graph import to_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.export import write_onnx
from vsparse.stages.export.quantise import layers_in_float, quantise
from vsparse.stages.verify import certify, write_certificate
from vsparse_check import check
from vsparse_check.arrays import Interval
from vsparse_check.artifact import content_sha256
from vsparse_check.bounds import Bounds
from vsparse_check.certificate import digest
from vsparse_check.contracts import CONTRACTS
from vsparse_check.errors import ErrorTerms
from vsparse_check.model import Model
from vsparse_check.op import Op, QuantisedGrid
from vsparse_check.operators import RULES
from vsparse_check.operators.quantised import quantise_backward, quantise_interval
from vsparse_check.refusal import NotConfirmed
from vsparse_check.region import ClaimedRegion, SampleRegions
from vsparse_check.rules import BackwardContext

KINDS = ("plain", "residual")
EPSILON = "0.02"
MODEL, CERTIFICATE = "model/model.int8.onnx", "certificate/int8/certificate.json"


def quantised(kind, seed):
    """Returns a quantised graph, inputs and its own predictions."""
    graph = quantise(graph_of(kind, seed), samples(graph_of(kind, seed), 64, seed + 1)[0])
    return graph, *samples(graph, 12, seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rules", ["int8", "real"])
@pytest.mark.parametrize("epsilon", ["1/500", "1/50"])
def test_two_derivations_of_a_margin_agree(kind, rules, epsilon):
    graph, x, labels = quantised(kind, 1)
    for method, values in by_the_toolchain(graph, x, labels, rules, PerturbationSet(epsilon=Fraction(epsilon))).items():
        found = derive(graph, x, labels, epsilon, method, rules=rules)
        assert np.isfinite(found).all()
        assert np.allclose(found, values.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("floats", [("first",), ("last",), ("first", "last")])
def test_two_derivations_agree_where_layers_stay_in_float(floats):
    plain = graph_of("residual", 1)
    graph = quantise(plain, samples(plain, 64, 2)[0], floats=layers_in_float(plain, floats))
    x, labels = samples(graph, 12, 1)
    for method, values in by_the_toolchain(graph, x, labels, "int8", PerturbationSet(epsilon=Fraction("1/200"))).items():
        found = derive(graph, x, labels, "1/200", method, rules="int8")
        assert np.isfinite(found).all()
        assert np.allclose(found, values.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_output_costs_its_conversion(kind):
    graph, x, labels = quantised(kind, 1)
    model = to_onnx(graph)
    name = model.graph.output[0].name
    model.graph.node[-1].output[0] = "last"
    pair = [numpy_helper.from_array(np.float32(0.01), "s"), numpy_helper.from_array(np.uint8(128), "z")]
    model.graph.initializer.extend(pair)
    model.graph.node.append(helper.make_node("QuantizeLinear", ["last", "s", "z"], ["q"]))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], [name]))
    network = Model(model)
    with np.errstate(all="ignore"):
        region = SampleRegions(property_of("0"), x[:1].reshape(1, -1).astype(np.float64))
        bounds = Bounds(network, ErrorTerms(network, CONTRACTS["int8"]), region, True)
        largest = np.abs(bounds.boxes[network.output]).max(axis=0)
        assert (bounds.costs[network.output] >= 2.0**-23 * largest).all()
        assert (bounds.margins(labels[:1], False)[1] > -10).all()
    model.graph.node.append(helper.make_node("Relu", [name], ["moved"]))
    model.graph.output[0].name = "moved"
    with pytest.raises(NotConfirmed, match="moves quantised values"):
        Model(model)


@pytest.mark.parametrize("fold_only", [True, False])
def test_no_margin_of_a_quantised_output_exceeds_that_of_the_floats_a_device_returns(fold_only):
    """The logits are s·k in the network and fl(s·k) on the device: each may be wrong by a rounding, which the margin must allow for."""
    s, size = np.float32(0.0123), 3
    tensors = {"w": np.eye(size, dtype=np.float32), "s": s, "z": np.uint8(7)}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
        helper.make_node("QuantizeLinear", ["y", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size]) for name in ("x", "logits")]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "quantised", ends[:1], ends[1:], initializers)
    network = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    everything = ClaimedRegion("linf", Fraction(0), Fraction(0), Fraction(0), (-10.0, 10.0))
    for k in range(-7, 200, 3):
        steps = np.array([k + 20, k, k + 5])
        x = (steps * float(s)).astype(np.float32)[None].astype(np.float64)
        bounds = Bounds(network, ErrorTerms(network, CONTRACTS["int8"]), SampleRegions(everything, x), False)
        _, found = bounds.margins(np.array([0]), fold_only)
        executed = [Fraction(float(np.float32(step) * s)) for step in steps.tolist()]
        margins = [executed[0] - executed[j] for j in (1, 2)]
        assert all(Fraction(float(bound)) <= margin for bound, margin in zip(found, margins, strict=True)), k
        assert (found > 4 * float(s)).all()


def test_lines_hold_for_every_step_a_device_may_take():
    rng, near = np.random.default_rng(2), Fraction(1, 2) + Fraction(1, 2**11)
    for _ in range(400):
        s, least = float(np.float32(2.0 ** rng.uniform(-6, 3))), (0, -128)[int(rng.integers(2))]
        first = least - int(rng.integers(least, least + 256))
        op = Op("quantise", "y", ("x",), (1,), grid=QuantisedGrid(s, first, first + 255, least))
        l, u = sorted(s * (rng.uniform(first - 20, first + 275) + rng.uniform(-1, 1, 2) * 10.0 ** rng.uniform(-3, 2.7)))
        if rng.random() < 0.2:
            l = s * (round(l / s) + 0.5)
            u = max(l, u)
        box = Interval(np.array([[l]]), np.array([[u]]))
        lines = []
        for a in (1.0, -1.0):  # the line below, and the negative of the one above
            found = quantise_backward(op, np.array([[a]]), BackwardContext({"x": box}, {}))
            slope = float(found.rows[0].item())
            lines.append((Fraction(slope * a), Fraction(float(sum(found.constants).item() * a))))
            assert 0 <= slope * a <= 1
        low, high = (float(end.item()) for end in quantise_interval(op, [box]))
        lo, hi = Fraction(float(l)), Fraction(float(u))
        steps = [min(max(k, first), first + 255) for k in (ceil(lo / Fraction(s) - near), floor(hi / Fraction(s) + near))]
        for k in range(steps[0], steps[1] + 1):
            y = Fraction(s) * k
            assert low <= y <= high
            left = lo if k == first else max(lo, Fraction(s) * (k - near))
            right = hi if k == first + 255 else min(hi, Fraction(s) * (k + near))
            for x in (left, right) if left <= right else ():
                (below, under), (above, over) = lines
                assert below * x + under <= y <= above * x + over


class Device:
    """Executes what the checker read: sums in int32 or in float32 in random order, ties either way."""

    def __init__(self, network, rng):
        self.network, self.rng = network, rng

    def run(self, x):
        values = {self.network.input: x.astype(np.float64)}
        for op in self.network.ops:
            values[op.output] = self.one(op, [values[name] for name in op.inputs], self.network.grids.get(op.inputs[0]))
        return values

    def scales(self, op):
        """The scales of an operator's stored weight, one for each output channel."""
        for q, s in self.network.tensors.quantised.stored.values():
            floats = (q.astype(np.float32) * s.astype(np.float32)).reshape(-1)
            if q.dtype == np.int8 and np.array_equal(floats, op.weight.reshape(-1)):
                return s.reshape(-1)
        raise AssertionError

    def one(self, op, inputs, grid):
        x, rng = inputs[0], self.rng
        if op.kind == "quantise":
            s, first, last = op.grid[:3]
            t = (np.float32(x) / np.float32(s)).astype(np.float64)
            steps = np.where(t % 1 == 0.5, np.floor(t) + rng.integers(2), np.rint(t))
            return np.clip(steps, first, last) * s
        if op.kind in ("relu", "maxpool"):
            return RULES[op.kind].interval(op, [Interval(x[None], x[None])]).lower[0]
        if op.kind == "add":
            return (np.float32(x) + np.float32(inputs[1])).astype(np.float64)
        dense = op.times(op.weight, np.eye(x.size)).T if op.kind in ("affine", "average") else np.diag(op.weight)
        if grid and op.kind == "affine" and rng.random() < 0.6:  # an exact sum of integers, then one product with both scales
            scale = np.repeat(self.scales(op), prod(op.shape[1:]))
            q, bias = np.rint(dense / scale[:, None]), np.rint(op.bias / (scale * grid[0]))
            total = q.astype(np.int64) @ np.rint(x / grid[0]).astype(np.int64) + bias.astype(np.int64)
            assert np.abs(q).max() == 64
            return (total.astype(np.float32) * (np.float32(grid[0]) * scale.astype(np.float32))).astype(np.float64)
        out = []
        for row, bias in zip(dense.astype(np.float32), op.bias.astype(np.float32), strict=True):
            parts, total = [*(row * x.astype(np.float32)), bias], np.float32(0)
            for i in rng.permutation(len(parts)):
                total = np.float32(total + parts[i])
            out.append(float(total))
        return np.array(out)


@pytest.mark.parametrize("kind", KINDS)
def test_executions_are_inside_the_boxes_and_above_the_margins(kind):
    for seed in range(3):
        graph, x, labels = quantised(kind, seed)
        network, rng, radius = Model(to_onnx(graph)), np.random.default_rng(seed), 1 / 200
        for i in range(3):
            region, found = SampleRegions(property_of("1/200"), x[i].reshape(1, -1).astype(np.float64)), []
            with np.errstate(all="ignore"):
                bounds = Bounds(network, ErrorTerms(network, CONTRACTS["int8"]), region, True)
                lower = bounds.margins(labels[i : i + 1], False)[1]
            for _ in range(6):
                noise = rng.choice([-radius, radius, 0.0], x[i].size) * 0.9999
                point = np.clip(x[i].reshape(-1) + noise, 0, 1).astype(np.float32)
                found.append(Device(network, rng).run(point))
            for values in found:
                for name, (low, high) in bounds.boxes.items():
                    assert (values[name] >= low[0]).all()
                    assert (values[name] <= high[0]).all()
                logits = values[network.output]
                assert (logits[labels[i]] - np.delete(logits, labels[i]) >= lower).all()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """An artifact with claims about an int8 and an fp16 contract beside those of fp32."""
    folder = build(tmp_path_factory.mktemp("int8"), "residual", epsilon="0.01")
    graph, _, _ = quantised("residual", 0)
    write_onnx(graph, folder / MODEL, 17, {})
    pixels, labels = samples(graph, 24, 0)
    methods = ("interval", "alpha-crown", "branch-and-bound")
    settings = Verify(contract="int8", methods=methods, attack_steps=2, attack_restarts=1, branch_domains=8)
    data = Dataset(pixels, 1.0, labels, tuple("abcd"), None)
    made = certify(folder / MODEL, data, PerturbationSet(epsilon=EPSILON), contract("int8"), settings, file=MODEL, data_name="random")
    write_certificate(folder / CERTIFICATE, made)
    ids = np.array([claim.id for claim in made.claims if claim.verdict != "falsified"])
    np.savez(folder / "certificate/int8/inputs.npz", ids=ids, inputs=pixels[ids])
    return sign(folder)


def claims_of(content):
    return [claim for claim in content["claims"] if claim["verdict"] == "certified"]


def test_real_claims_are_confirmed_with_their_proofs(artifact):
    content = json.loads((artifact / CERTIFICATE).read_text())
    methods = {claim["method"] for claim in claims_of(content)}
    assert methods & {"alpha-crown", "branch-and-bound"}
    found = check(artifact)
    assert (found.status, found.problem) == (0, "")
    assert found.confirmed == found.certified > len(claims_of(content)) > 5


def forged(artifact, name, change):
    """Changes the int8 certificate and makes its hash and the manifest fit; returns what the checker says, and puts everything back."""
    before = {path: path.read_bytes() for path in (artifact / CERTIFICATE, artifact / MODEL)}
    content, model = json.loads(before[artifact / CERTIFICATE]), onnx.load_from_string(before[artifact / MODEL])
    try:
        change(content, model)
        (artifact / MODEL).write_bytes(model.SerializeToString(deterministic=True))
        content["model"]["sha256"] = content_sha256(model)
        for claim in content["claims"]:
            claim["model"] = content["model"]
        content["certificate_sha256"] = digest(content)
        (artifact / CERTIFICATE).write_text(json.dumps(content))
        return check(sign(artifact))
    finally:
        for path, data in before.items():
            path.write_bytes(data)
        sign(artifact)


def of_contract(name):
    def change(content, model):
        content["contract"] = dict(CONTRACTS.get(name, {**CONTRACTS["int8"], "name": name}))
        for claim in content["claims"]:
            claim["contract"] = name

    return change


@pytest.mark.parametrize("name", ["fp32", "fp16", "tf32", "sequential", "int4"])
def test_another_contract_is_refused_and_the_other_claims_still_count(artifact, name):
    certified, found = check(artifact).certified, forged(artifact, name, of_contract(name))
    assert (found.status, found.certified) == (1, certified)
    assert 0 < found.confirmed < certified
    assert "contract" in found.problem
    assert "int8" in found.problem


def test_margins_beyond_what_is_proved_are_refused(artifact):
    def change(content, model):
        for claim in claims_of(content):
            claim["margin_lower"] = float(claim["margin_lower"] + max(1e-4, 0.05 * claim["margin_lower"]))

    sound, found = check(artifact), forged(artifact, "margin", change)
    assert found.status == 1
    assert found.confirmed < sound.confirmed


def edit(model, wanted, change):
    """Replaces the initializers whose names match by what `change` makes of their values."""
    count = 0
    for tensor in model.graph.initializer:
        if wanted(tensor.name):
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor).copy())), tensor.name))
            count += 1
    assert count


def ends(text, which=""):
    return lambda name: name.endswith(text) and which in name


def set_first(*values):
    def change(array):
        array.reshape(-1)[: len(values)] = values
        return array

    return change


def weights(model):
    """Returns the prefix of the names of the first convolution's stored weight, and that of its bias."""
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    return f"{conv.input[1]}.", f"{conv.input[2]}."


REFUSED = {
    "8-bit weights": (lambda m: edit(m, ends("integers", weights(m)[0]), set_first(65, 65)), "7-bit"),
    "zero point of a weight": (lambda m: edit(m, ends("zero", weights(m)[0]), set_first(1)), "zero point 0"),
    "uint8 weights": (lambda m: edit(m, ends("integers", weights(m)[0]), lambda v: v.astype(np.uint8)), "int8 or int32"),
    "weights beyond 8 bits": (lambda m: edit(m, ends("integers", weights(m)[0]), set_first(-128)), "from -127 to 127"),
    "int32 weights": (lambda m: edit(m, ends("integers", weights(m)[0]), lambda v: v.astype(np.int32)), "int8 weights"),
    "int8 bias": (lambda m: edit(m, ends("integers", weights(m)[1]), lambda v: v.astype(np.int8)), "int8 weights"),
    "scale of a bias": (lambda m: edit(m, ends("scale", weights(m)[1]), lambda v: v * np.float32(1 + 2**-20)), "scale of a bias"),
    "scale of a weight": (lambda m: edit(m, ends("scale", weights(m)[0]), lambda v: v * np.float32(1.5)), "scale of a bias"),
    "overflow": (lambda m: edit(m, ends("integers", weights(m)[1]), set_first(2**31 - 1000)), "overflow"),
    "most negative bias": (lambda m: edit(m, ends("integers", weights(m)[1]), set_first(-(2**31))), "overflow"),
    "tiny scale": (lambda m: edit(m, ends("int8.scale"), lambda v: np.float32(2.0**-41)), "scales"),
    "huge scale": (lambda m: edit(m, ends("int8.scale"), lambda v: np.float32(2.0**41)), "scales"),
    "negative scale": (lambda m: edit(m, ends("int8.scale"), lambda v: -v), "scales"),
    "scale that is no number": (lambda m: edit(m, ends("int8.scale"), lambda v: np.float32(np.nan)), "scales"),
    "scales of channels": (lambda m: edit(m, ends("int8.scale"), lambda v: np.repeat(v, 2)), "one scale"),
    "double scale": (lambda m: edit(m, ends("int8.scale"), lambda v: v.astype(np.float64)), "type"),
    "zero points of 16 bits": (lambda m: edit(m, ends("int8.zero"), lambda v: v.astype(np.uint16)), "type"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_integer_kernels_may_do_otherwise_is_refused(name):
    change, reason = REFUSED[name]
    model = to_onnx(quantised("residual", 0)[0])
    Model(model)
    change(model)
    with pytest.raises(NotConfirmed, match=reason), np.errstate(all="ignore"):
        ErrorTerms(Model(model), CONTRACTS["int8"])


def node_of(model, kind, place=0):
    return [node for node in model.graph.node if node.op_type == kind][place]


def pair_behind(model, kind, place, scale="s", unpaired=False):
    """Puts a quantisation behind an operator, which its readers read."""
    node = node_of(model, kind, place)
    old, index = node.output[0], list(model.graph.node).index(node)
    node.output[0] = "before"
    model.graph.initializer.extend([numpy_helper.from_array(np.float32(v), n) for n, v in (("s", 0.03), ("t", 0.04))])
    model.graph.node.insert(index + 1, helper.make_node("QuantizeLinear", ["before", "s"], ["made"]))
    model.graph.node.insert(index + 2, helper.make_node("DequantizeLinear", ["made", scale], [old]))


def unquantised(model, kind):
    """Lets an operator read what is quantised before it is."""
    node = node_of(model, kind)
    back = {n.output[0]: n for n in model.graph.node}
    node.input[0] = back[back[node.input[0]].input[0]].input[0]


def float_weight(model, kind, which):
    """Replaces a stored parameter of an operator by float32 numbers."""
    node = node_of(model, kind)
    value = Model(model).parameters[node.input[which]]
    node.input[which] = "floats"
    model.graph.initializer.append(numpy_helper.from_array(value, "floats"))


def read_twice(model):
    """Dequantises one stored weight once more: a thousand such operators would cost a thousand times its size."""
    node = node_of(model, "DequantizeLinear")
    model.graph.node.append(helper.make_node("DequantizeLinear", list(node.input), ["twice"], axis=0))


STRUCTURES = {
    "weight read twice": (read_twice, "integers"),
    "quantised twice": (lambda m: pair_behind(m, "DequantizeLinear", -1), "quantised already"),
    "another scale on the way back": (lambda m: pair_behind(m, "Relu", 0, "t"), "another scale"),
    "integers read as activations": (
        lambda m: node_of(m, "Conv").input.__setitem__(0, node_of(m, "QuantizeLinear").output[0]),
        "quantised",
    ),
    "float32 weight": (lambda m: float_weight(m, "Conv", 1), "float32 parameters"),
    "float32 bias": (lambda m: float_weight(m, "Conv", 2), "float32 bias"),
    "float32 input": (lambda m: unquantised(m, "Conv"), "float32 parameters"),
    "block of scales": (lambda m: node_of(m, "DequantizeLinear").attribute.append(helper.make_attribute("block_size", 2)), "block_size"),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_other_structures_are_refused(name):
    change, reason = STRUCTURES[name]
    model = to_onnx(quantised("residual", 0)[0])
    change(model)
    with pytest.raises((NotConfirmed, KeyError), match=reason):
        ErrorTerms(Model(model), CONTRACTS["int8"])


def test_scales_along_another_axis_are_refused_and_transposed_weights_read():
    model = to_onnx(quantised("residual", 0)[0])
    gemm = node_of(model, "Gemm")
    stored = next(node for node in model.graph.node if node.output[0] == gemm.input[1])
    before = Model(model)
    edit(model, lambda name: name == stored.input[0], lambda v: v.T.copy())
    for item in gemm.attribute:
        item.i = 0 if item.name == "transB" else item.i
    with pytest.raises(NotConfirmed, match="scales for shape"):
        Model(model)
    next(item for item in stored.attribute if item.name == "axis").i = 1
    assert np.array_equal(Model(model).ops[-1].weight, before.ops[-1].weight)


def test_a_wrong_zero_point_changes_what_is_bounded(artifact):
    """A file that is about other numbers is no refusal as such: its claims must follow from what it then says."""

    def change(content, model):
        edit(model, ends("int8.zero"), lambda v: np.uint8(min(int(v) + 90, 255)))

    found = forged(artifact, "zero", change)
    assert found.status == 1
    assert found.confirmed < found.certified


def test_pairs_that_change_nothing_are_dropped_and_others_count():
    graph, _, _ = quantised("plain", 1)
    model = to_onnx(graph)
    pairs = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    kinds = [op.kind for op in Model(model).ops]
    assert pairs > kinds.count("quantise") == sum(type(node).__name__ == "FakeQuant" for node in graph.nodes)


def test_files_without_quantisation_are_not_about_int8():
    network = Model(to_onnx(graph_of("plain", 0)))
    with pytest.raises(NotConfirmed, match="int8 is not about unquantised"):
        ErrorTerms(network, CONTRACTS["int8"])
    network = Model(to_onnx(quantised("plain", 0)[0]))
    with pytest.raises(NotConfirmed, match="fp32 is not about quantised"):
        ErrorTerms(network, CONTRACTS["fp32"])


@pytest.mark.parametrize("zero", [0, 3])
def test_relu_keeps_the_steps_as_zero_is_one_of_them(zero):
    model = to_onnx(quantised("residual", 0)[0])
    conv = node_of(model, "Conv")
    place = list(model.graph.node).index(conv)
    model.graph.node.insert(place, helper.make_node("Relu", [conv.input[0]], ["above"]))
    node_of(model, "Conv").input[0] = "above"
    edit(model, ends("input.int8.zero"), lambda v: np.uint8(zero))
    Model(model)


def test_sums_of_quantised_values_stay_within_int32():
    graph = quantised("residual", 0)[0]
    Model(to_onnx(graph))
    model = to_onnx(graph)
    added = node_of(model, "Add").output[0]
    reads = next(node for node in model.graph.node if node.op_type in ("Relu", "QuantizeLinear") and added in node.input)
    while reads.op_type != "QuantizeLinear":
        reads = next(node for node in model.graph.node if reads.output[0] in node.input)
    scale = reads.input[1]
    edit(model, lambda name: name == scale, lambda v: np.float32(2.0**-30))
    with pytest.raises(NotConfirmed, match=r"int32|2\^-20"):
        Model(model)


def test_values_that_may_leave_int32_are_quantised_to_any_step():
    op = Op("quantise", "q", ("x",), (2,), grid=QuantisedGrid(2.0**-25, -128, 127, 0))
    box = Interval(np.array([[30.0, 33.0]]), np.array([[31.9, 33.0]]))
    low, high = quantise_interval(op, [box])
    assert low.tolist() == [[127 * 2.0**-25, -128 * 2.0**-25]]
    assert high.tolist() == [[127 * 2.0**-25] * 2]
    found = quantise_backward(op, np.array([[1.0, 1.0], [-1.0, -1.0]]), BackwardContext({"x": box}, {}))
    assert (found.rows[0][:, 1] == 0).all()
    assert sum(found.constants)[0] <= (127 - 128) * 2.0**-25
