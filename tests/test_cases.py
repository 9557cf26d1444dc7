"""Small networks that were once answered falsely: each gives the answer that its execution in ONNX Runtime shows to be right."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import monotonic

import numpy as np
import onnxruntime
import pytest

from vsparse.cli import run
from vsparse.errors import InputError
from vsparse.graph import from_onnx
from vsparse.graph import run as execute

CASES = Path(__file__).with_name("cases")
EPSILON = 0.05

# Either the answer, or a refusal (exit code 1 or 2) that names the node.
VERDICTS = {
    "squeeze": ("sat", True),
    "squeeze_const": ("sat", True),
    "autopad": ("sat", True),
    "matmul_scale": ("sat", True),
    "tail_tanh": ("unsat", False),
    "tail_sigmoid": ("unsat", False),
    "tail_concat": ("unsat", False),
    "tail_leaky": ("unsat", False),
    "tail_slice": ("unsat", False),
    "tail_sub_act": ("unsat", False),
}


def session(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def logits(runtime: onnxruntime.InferenceSession, x: np.ndarray) -> np.ndarray:
    name = runtime.get_inputs()[0].name
    return np.stack([runtime.run(None, {name: one[None].astype(np.float32)})[0].ravel() for one in x])


@pytest.mark.parametrize("name", sorted(VERDICTS))
def test_the_verdict_is_that_of_the_execution(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    right, refusable = VERDICTS[name]
    code = run(["verify", str(CASES / f"{name}.onnx"), "--property", str(CASES / f"{name}.vnnlib"), "--timeout", "30"])
    printed = capsys.readouterr()
    if code in (1, 2) and refusable:
        assert "node" in printed.err or "ONNX Runtime" in printed.err, printed.err
    else:
        assert code == 0, printed.err
        assert printed.out.split()[0] == right


@pytest.mark.parametrize(("contract", "right"), [("fp32", "unknown"), ("real", "unsat")])
def test_what_rounding_alone_leaves_open_is_unknown_at_once(contract: str, right: str, capsys: pytest.CaptureFixture[str]) -> None:
    began = monotonic()
    code = run(["verify", str(CASES / "order2_fc.onnx"), "--property", str(CASES / "order2_fc.vnnlib"), "--contract", contract])
    assert code == 0
    assert capsys.readouterr().out.split()[0] == right
    assert monotonic() - began < 60


@pytest.mark.parametrize(("name", "contract"), [("conv_conv", "fp32"), ("qlinear_add", "int8")])
def test_no_certified_sample_is_broken_by_an_input_of_its_ball(name: str, contract: str, tmp_path: Path) -> None:
    model, out = CASES / f"{name}.onnx", tmp_path / "certificate"
    arguments = ["verify", str(model), "--data", "digits", "--epsilon", str(EPSILON), "--contract", contract, "--samples", "120"]
    code = run([*arguments, "--out", str(out)])
    assert code in (0, 1, 2)
    if code:
        return  # refused as a whole
    certificate = json.loads((out / "certificate.json").read_text())
    certified = [claim for claim in certificate["claims"] if claim["verdict"] == "certified"]
    from vsparse.data import load
    from vsparse.standalone import dataset_spec

    test = load(dataset_spec("digits")[0], None, 0).test
    dice, runtime = np.random.default_rng(0), session(model)
    for claim in certified:
        x = test.inputs(slice(claim["id"], claim["id"] + 1))[0]
        signs = np.concatenate([np.ones((1, *x.shape)), -np.ones((1, *x.shape)), dice.choice([-1, 1], (60, *x.shape))])
        column = np.zeros((1, *x.shape))
        column[..., :3, 0] = 1
        points = np.clip(x + 0.0499 * np.concatenate([column, -column, signs]), 0, 1)
        assert (logits(runtime, points).argmax(1) == claim["label"]).all(), f"sample {claim['id']} is certified and broken"


def test_a_squeeze_as_torch_writes_it_is_read_as_the_runtime_reads_it_or_refused() -> None:
    model = CASES / "torch_squeeze_mean.onnx"
    graph, refusal = None, ""
    try:
        graph = from_onnx(model)
    except InputError as error:
        refusal = str(error)
    if graph is None:
        assert "Squeeze" in refusal or "ReduceMean" in refusal
        return
    x = np.random.default_rng(0).random((4, *graph.input_shape)).astype(np.float32)
    import torch

    ours = execute(graph, graph.tensors(torch.float64), torch.from_numpy(x).double())
    assert np.abs(ours.numpy() - logits(session(model), x)).max() < 1e-4


def test_a_symmetric_signed_qdq_file_is_read_or_refused_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    model = CASES / "qdq_s8s8.onnx"
    code = run(["verify", str(model), "--data", "digits", "--epsilon", "0.01", "--contract", "int8", "--samples", "2"])
    printed = capsys.readouterr()
    assert code in (0, 1, 2)
    if code:
        assert "vsparse export" not in printed.err, "export refuses this file too"


def test_fixed_inputs_that_no_float32_equals_are_attacked(capsys: pytest.CaptureFixture[str]) -> None:
    data = os.environ.get("VSPARSE_DATA", "")
    cases = Path(data).parent / "cases" if data else Path("-")
    model = cases / "rul_small_window_20.onnx"
    if not model.exists():
        pytest.skip("needs rul_small_window_20.onnx (VNN-COMP's collins_rul_cnn) in `cases` beside the folder that VSPARSE_DATA names")
    code = run(["verify", str(model), "--property", str(cases / "rul_delta20_eps10.vnnlib.gz"), "--timeout", "60"])
    assert code == 0
    assert capsys.readouterr().out.split()[0] == "sat"
