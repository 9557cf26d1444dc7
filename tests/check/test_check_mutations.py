"""Hundreds of damaged and forged artifacts: none ends in a traceback, none confirms a false claim."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import shutil
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from check_artifacts import build, save_inputs, sign

from vsparse.artifact.certificate import Claim, summarise
from vsparse.bounds import Rounding, ball, crown, interval, lowest_margin, margin_rows, refine
from vsparse.contract import contract
from vsparse.graph import from_onnx
from vsparse_check import check
from vsparse_check.artifact import content_sha256
from vsparse_check.certificate import digest
from vsparse_check.refusal import NotConfirmed

STRUCTURES = 120
CERTIFICATE, INPUTS, MODEL = "certificate/certificate.json", "certificate/inputs.npz", "model/model.fp32.onnx"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """An artifact with claims of every method; it is never changed."""
    return build(tmp_path_factory.mktemp("original"), "residual", epsilon="0.03")


@pytest.fixture
def artifact(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "artifact"))


def forge(folder: Path, content: dict) -> None:
    """Writes a certificate as a forger would: summary, hash and manifest are made to fit."""
    with contextlib.suppress(Exception):  # what has no summary is left without one
        claims = [Claim.model_validate(claim) for claim in content["claims"]]
        content["summary"] = summarise(claims, content["data"]["classes"]).model_dump(mode="json")
    with contextlib.suppress(NotConfirmed):  # a content that has no hash cannot be forged better
        content["certificate_sha256"] = digest(content)
    (folder / CERTIFICATE).write_text(json.dumps(content))
    sign(folder)


def every_claim_is_true(folder: Path) -> bool:
    """Decides with the toolchain's own bounds whether what a certificate claims is so."""
    content = json.loads((folder / CERTIFICATE).read_text())
    model = onnx.load(folder / MODEL)
    for node in model.graph.node:  # any number but 0 transposes, for the checker as for ONNX Runtime; the toolchain wants 0 or 1
        for attribute in node.attribute:
            attribute.i = int(bool(attribute.i)) if attribute.name == "transB" else attribute.i
    graph = from_onnx(model.SerializeToString())
    rounding, params = Rounding(graph, contract(content["contract"]["name"])), graph.tensors(torch.float64)
    with np.load(folder / INPUTS) as arrays:
        inputs = dict(zip(arrays["ids"].tolist(), arrays["inputs"], strict=True))
    for claim in content["claims"]:
        if claim["verdict"] == "certified":
            x = torch.from_numpy(inputs[claim["id"]].reshape(1, *graph.input_shape))
            box = ball(x, Fraction(claim["property"]["epsilon"].replace(" ", "")), tuple(claim["property"]["clip"]))
            boxes = interval(graph, params, box, rounding)
            rows = margin_rows(torch.tensor([claim["label"]]), graph.node(graph.output).size)
            lower = max(
                float(lowest_margin(crown(graph, params, box, rows, kind, rounding)))
                for kind in (boxes, refine(graph, params, box, boxes, rounding))
            )
            if not (lower > 0 and claim["margin_lower"] <= lower + 1e-9):
                return False
    return True


def test_the_original_is_confirmed_and_has_what_the_mutations_need(original):
    found = check(original)
    assert (found.status, found.problem) == (0, "")
    assert found.confirmed == found.certified > 5
    content = json.loads((original / CERTIFICATE).read_text())
    assert {claim["verdict"] for claim in content["claims"]} >= {"certified", "falsified"}
    assert every_claim_is_true(original)


def places(value, path=()):
    """Yields the path of every leaf and container of a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def mutate(content: dict, rng: random.Random) -> dict:
    content = copy.deepcopy(content)
    path = rng.choice(list(places(content)))
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    value = parent[path[-1]]
    choices = [None, "", [], {}, -1, 0, 1e300, float("nan"), "certified", "interval", "1/3", True, "\ud800", 2**80]
    if isinstance(value, int | float) and not isinstance(value, bool):
        choices += [value + 1, value * 2, -value, value * 1.5 + 0.1, str(value)] * 3
    if isinstance(value, str):
        choices += [value[:-1], value + "0", value.swapcase(), value[::-1]] * 3
    if rng.random() < 0.1:
        del parent[path[-1]]
    else:
        parent[path[-1]] = rng.choice(choices)
    return content


@pytest.mark.parametrize("seed", range(300))
def test_random_changes_of_the_certificate(artifact, seed):
    rng = random.Random(seed)
    before = json.loads((artifact / CERTIFICATE).read_text())
    after = before
    while after == before:
        after = mutate(before, rng)
    if seed % 3 == 0:  # a careless forger: the certificate's hash stays
        (artifact / CERTIFICATE).write_text(json.dumps(after))
        sign(artifact)
        # Times are not part of what is certified, and not hashed.
        assert not check(artifact).passed or digest(before) == digest(after)
    else:
        forge(artifact, after)
        if check(artifact).passed:
            assert every_claim_is_true(artifact)


FORGERIES = {
    "larger radius": lambda c, claim: [part["property"].update(epsilon="0.2") for part in (c, *c["claims"])],
    "larger margin": lambda c, claim: claim.update(margin_lower=claim["margin_lower"] + 0.01),
    "other label": lambda c, claim: claim.update(label=(claim["label"] + 1) % 4, predicted=(claim["label"] + 1) % 4),
    "label of no class": lambda c, claim: claim.update(label=4, predicted=4),
    "other sample": lambda c, claim: claim.update(id=100),
    "other input": lambda c, claim: claim.update(input_sha256="0" * 64),
    "other contract": lambda c, claim: [c["contract"].update(name="fp16"), [part.update(contract="fp16") for part in c["claims"]]],
    "weaker contract under its name": lambda c, claim: c["contract"].update(order="sequential"),
    "other model": lambda c, claim: [part["model"].update(sha256="1" * 64) for part in (c, *c["claims"])],
    "other file": lambda c, claim: [part["model"].update(file="../model.onnx") for part in (c, *c["claims"])],
    "falsified to certified": lambda c, claim: next(part for part in c["claims"] if part["verdict"] == "falsified").update(
        verdict="certified", method="interval", margin_lower=0.1
    ),
    "negative margin": lambda c, claim: claim.update(margin_lower=-0.1),
    "unknown method": lambda c, claim: claim.update(method="attack"),
    "void": lambda c, claim: c.update(void="the audit found a violation"),
    "claim twice": lambda c, claim: c["claims"].append(dict(claim)),
    "no claims": lambda c, claim: c.update(claims=[]),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_certificates_are_not_confirmed(artifact, name):
    content = json.loads((artifact / CERTIFICATE).read_text())
    claim = next(part for part in content["claims"] if part["verdict"] == "certified")
    FORGERIES[name](content, claim)
    forge(artifact, content)
    found = check(artifact)
    assert found.status == 1
    assert found.problem


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda summary: summary.update(certified=summary["certified"] + 1), "summary"),
        (lambda summary: summary.update(certified_accuracy=1.0), "accuracies"),
        (lambda summary: summary.update(attacked_accuracy=1.0), "accuracies"),
        (lambda summary: summary["classes"][0].update(certified=99), "summary"),
        (lambda summary: summary["classes"].pop(), "summary"),
    ],
)
def test_a_summary_that_says_more_than_the_claims_is_not_confirmed(artifact, change, word):
    content = json.loads((artifact / CERTIFICATE).read_text())
    change(content["summary"])
    content["certificate_sha256"] = digest(content)
    (artifact / CERTIFICATE).write_text(json.dumps(content))
    assert word in check(sign(artifact)).problem


@pytest.mark.parametrize("file", [CERTIFICATE, INPUTS, MODEL, "manifest.json"])
@pytest.mark.parametrize("seed", range(40))
def test_random_bytes_changed_cut_or_added(artifact, file, seed):
    rng = random.Random(f"{file}{seed}")
    before = (artifact / file).read_bytes()
    data = bytearray(before)
    kind = seed % 4
    if kind == 0:
        data = data[: rng.randrange(len(data))]
    elif kind == 1:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        at = rng.randrange(len(data))
        data[at : at + 8] = rng.randbytes(8)
    else:
        data = data + rng.randbytes(5)
    (artifact / file).write_bytes(data)
    if file != "manifest.json":
        assert data == before or not check(artifact).passed
        sign(artifact)
    found = check(artifact)
    if found.passed and file in (INPUTS, MODEL):
        # Only bytes that carry nothing may have changed: the content hash or the inputs' hashes still hold.
        assert every_claim_is_true(artifact)
    elif found.passed and file == CERTIFICATE:
        assert digest(json.loads(before)) == digest(json.loads(data))  # times are not hashed
    elif found.passed:
        assert json.loads(before)["files"] == json.loads(data)["files"]


@pytest.mark.parametrize("seed", range(30))
def test_another_model_under_a_fitting_certificate_is_judged_by_what_it_computes(artifact, seed):
    rng = np.random.default_rng(seed)
    model = onnx.load(artifact / MODEL)
    tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values = values + rng.normal(0, 10.0 ** rng.integers(-4, 2), values.shape).astype(np.float32)
    if seed % 10 == 0:
        values.reshape(-1)[0] = rng.choice([np.nan, np.inf, 3e38])
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, artifact / MODEL)
    content = json.loads((artifact / CERTIFICATE).read_text())
    sha256 = content_sha256(model)
    for part in (content, *content["claims"]):
        part["model"]["sha256"] = sha256
    forge(artifact, content)
    assert not check(artifact).passed or every_claim_is_true(artifact)


def restructure(model: onnx.ModelProto, rng: random.Random) -> None:
    """Changes one thing of the structure: an attribute, an operator, an edge, a shape, a tensor's type, or the opset."""
    graph, kind = model.graph, rng.randrange(8)
    node = rng.choice(list(graph.node))
    if kind <= 1 and node.attribute:
        attribute = rng.choice(list(node.attribute))
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice([-1, 0, 1, 2, 3, 5, 100, 2**40])
        else:
            attribute.i = rng.choice([-1, 0, 1, 2, 3, 4])
    elif kind == 2:
        name = rng.choice(["alpha", "auto_pad", "ceil_mode", "group", "transA", "count_include_pad", "axis", "strides"])
        node.attribute.append(onnx.helper.make_attribute(name, rng.choice([0, 1, 2, 0.5, "SAME_UPPER", [2, 2]])))
    elif kind == 3:
        node.op_type = rng.choice(
            ["Relu", "Add", "Mul", "Conv", "Gemm", "Flatten", "Identity", "MaxPool", "AveragePool", "Sigmoid", "Neg", "Abs"]
        )
    elif kind == 4 and node.input:
        names = [name for other in graph.node for name in [*other.input, *other.output]] + ["", "nothing"]
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif kind == 5:
        tensor = rng.choice(list(graph.initializer))
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice([0, 1, 2, 7, 2**33, -1])
    elif kind == 6:
        tensor = rng.choice(list(graph.initializer))
        tensor.data_type = rng.choice([onnx.TensorProto.INT32, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, 99])
    else:
        rng.choice([lambda: graph.node.pop(), lambda: model.opset_import[0].__setattr__("version", 9), lambda: graph.initializer.pop()])()


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_models_of_another_structure_confirm_no_false_claim(tmp_path, kind):
    folder = build(tmp_path / "artifact", kind, epsilon="0.02", count=8)
    before, text = onnx.load(folder / MODEL), (folder / CERTIFICATE).read_text()
    passed = 0
    for seed in range(STRUCTURES):
        rng, model = random.Random(seed), onnx.ModelProto()
        model.CopyFrom(before)
        restructure(model, rng)
        (folder / MODEL).write_bytes(model.SerializeToString())
        content = json.loads(text)
        for part in (content, *content["claims"]):
            part["model"]["sha256"] = content_sha256(model)
        forge(folder, content)
        found = check(folder)
        assert found.status in (0, 1)
        if found.passed:
            passed += 1
            assert every_claim_is_true(folder)
    assert passed < STRUCTURES / 4


def test_swapped_inputs_are_seen(artifact):
    with np.load(artifact / INPUTS) as arrays:
        ids, inputs = arrays["ids"], arrays["inputs"]
    save_inputs(artifact, ids, inputs[::-1])
    found = check(sign(artifact))
    assert found.status == 1
    assert "input" in found.problem
    save_inputs(artifact, ids, np.full_like(inputs, np.nan))
    assert check(sign(artifact)).status == 1
    save_inputs(artifact, ids[1:], inputs[1:])
    found = check(sign(artifact))
    assert (found.confirmed, found.certified) == (len(ids) - 1, len(ids))
    assert f"sample {ids[0]}" in found.problem
    save_inputs(artifact, ids.astype(object), inputs)
    assert "npz" in check(sign(artifact)).problem


def test_an_input_file_that_would_not_fit_into_memory_is_refused(artifact):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 1, 6, 6)})
    ids = io.BytesIO()
    np.lib.format.write_array(ids, np.arange(3))
    with zipfile.ZipFile(artifact / INPUTS, "w") as archive:
        archive.writestr("inputs.npy", header.getvalue())
        archive.writestr("ids.npy", ids.getvalue())
    found = check(sign(artifact))
    assert found.status == 1
    assert "npz" in found.problem


def test_files_missing_added_linked_or_outside_are_seen(artifact, tmp_path):
    (artifact / "extra").write_text("x")
    assert "extra is not listed" in check(artifact).problem
    (artifact / "extra").unlink()
    (artifact / "link").symlink_to(artifact / MODEL)
    assert "link" in check(artifact).problem
    (artifact / "link").unlink()
    (tmp_path / "outside").write_text("x")
    manifest = json.loads((artifact / "manifest.json").read_text())
    for name in ("../outside", str(tmp_path / "outside"), "model/../model/model.fp32.onnx", "a\\b", ""):
        changed_files = {**manifest["files"], name: "0" * 64}
        (artifact / "manifest.json").write_text(json.dumps({**manifest, "files": changed_files}))
        assert check(artifact).status == 1
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    assert check(artifact).passed
    (artifact / INPUTS).unlink()
    assert "missing" in check(artifact).problem


def test_a_stamp_of_another_certificate_is_seen(artifact):
    model = onnx.load(artifact / MODEL)
    sha256 = json.loads((artifact / CERTIFICATE).read_text())["certificate_sha256"]
    onnx.helper.set_model_props(model, {"vsparse.certificate": sha256})
    onnx.save(model, artifact / MODEL)
    assert check(sign(artifact)).passed
    onnx.helper.set_model_props(model, {"vsparse.certificate": "0" * 64})
    onnx.save(model, artifact / MODEL)
    assert "another certificate" in check(sign(artifact)).problem


def test_the_dense_parent_is_derived_where_its_inputs_are_there_and_counted_where_not(artifact):
    folder = artifact / "certificate" / "dense"
    folder.mkdir()
    shutil.copy(artifact / MODEL, artifact / "model" / "dense.fp32.onnx")
    content = json.loads((artifact / CERTIFICATE).read_text())
    assert check(sign(artifact)).status == 1  # a folder without a certificate
    for part in (content, *content["claims"]):
        part["model"]["file"] = "model/dense.fp32.onnx"
    content["certificate_sha256"] = digest(content)
    (folder / "certificate.json").write_text(json.dumps(content))
    found, count = check(sign(artifact)), content["summary"]["certified"]
    assert (found.status, found.verdict, found.confirmed, found.not_derived) == (1, "cannot be checked", count, count)
    assert "does not hold the inputs" in found.problem
    for name in ("inputs.npz", "counterexamples.npz"):
        shutil.copy(artifact / "certificate" / name, folder / name)
    found = check(sign(artifact))
    assert (found.status, found.confirmed, found.not_derived) == (0, 2 * count, 0)
    next(claim for claim in content["claims"] if claim["verdict"] == "certified")["margin_lower"] = 99.0
    content["certificate_sha256"] = digest(content)
    (folder / "certificate.json").write_text(json.dumps(content))
    found = check(sign(artifact))
    assert (found.status, found.confirmed) == (1, 2 * count - 1)
