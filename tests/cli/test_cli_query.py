"""`vsparse verify --property`: the verdict on the first line, exit code 0; and --vnnlib."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from vsparse.cli import run
from vsparse.graph import Gemm, Graph, Relu, to_onnx
from vsparse.vnnlib import read_vnnlib

TEXT = """(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= X_1 0))(assert (<= X_1 1))
(assert (or (and (<= Y_0 LIMIT)) (and (<= Y_1 LIMIT))))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y0 = ReLU(x0 + x1), y1 = ReLU(x0 + 2·x1)."""
    nodes = (
        Gemm(name="z", inputs=("x",), shape=(2,), weight="w", bias=None),
        Relu(name="a", inputs=("z",), shape=(2,)),
        Gemm(name="y", inputs=("a",), shape=(2,), weight="v", bias=None),
    )
    params = {"w": np.array([[1, 1], [1, 2]], np.float32), "v": np.eye(2, dtype=np.float32)}
    path = tmp_path / "model.onnx"
    path.write_bytes(to_onnx(Graph("x", (2,), nodes, "y", params)).SerializeToString())
    return path


def asked(tmp_path: Path, limit: str) -> str:
    path = tmp_path / "p.vnnlib.gz"
    path.write_bytes(gzip.compress(TEXT.replace("LIMIT", limit).encode()))
    return str(path)


def test_unsat_is_one_line(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(model), "--property", asked(tmp_path, "-0.5")]) == 0
    assert capfd.readouterr() == ("unsat\n", "")


def test_real_says_so_in_every_output(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "answer.txt"
    arguments = ["verify", str(model), "--property", asked(tmp_path, "-0.5"), "--contract", "real", "--out", str(out)]
    assert run(arguments) == 0
    text = capfd.readouterr().out
    assert text.splitlines()[0] == "unsat"
    assert "real arithmetic" in text.splitlines()[1]
    assert out.read_text() == text
    assert run([*arguments, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["verdict"], result["contract"], result["witness"]) == ("unsat", "real", None)
    assert "real arithmetic" in result["note"]


def test_sat_has_the_witness_after_it(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(model), "--property", asked(tmp_path, "0.25"), "--out", str(tmp_path / "a")]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "sat"
    assert [line.strip("(").split()[0] for line in lines[1:]] == ["X_0", "X_1", "Y_0", "Y_1"]
    assert (tmp_path / "a").read_text().splitlines() == lines


def test_no_time_is_timeout(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(model), "--property", asked(tmp_path, "-0.5"), "--timeout", "0"]) == 0
    assert capfd.readouterr().out == "timeout\n"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        *(
            ([option, value], f"{option} has no meaning with --property; leave it out, it goes with {others}")
            for option, value, others in (
                ("--data", "digits", "--smoothing or --data with --epsilon"),
                ("--epsilon", "0.1", "--data with --epsilon"),
                ("--norm", "l2", "--data with --epsilon"),
                ("--brightness", "0.5", "--data with --epsilon"),
                ("--contrast", "0", "--data with --epsilon"),
                ("--samples", "3", "--smoothing or --data with --epsilon"),
                ("--vnnlib", "x", "--data with --epsilon"),
                ("--n", "5", "--smoothing"),
                ("--n0", "5", "--smoothing"),
                ("--alpha", "0.1", "--smoothing"),
                ("--smoothing", "0.1", "--smoothing"),
            )
        ),
        (["--contract", "fp31"], "no numeric contract"),
        (["--memory", "4"], "such as 4GiB or 500MB"),
        (["--timeout", "nan"], "greater than or equal to 0"),
    ],
)
def test_options_that_do_not_go_together(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert run(["verify", str(model), "--property", asked(tmp_path, "0"), *extra]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err


def test_neither_data_nor_property(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(model)]) == 2
    assert "--data and --epsilon, or a VNN-LIB file" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("question", "extra"),
    [
        (["--epsilon", "0.1"], ["--timeout", "3"]),
        (["--epsilon", "0.1"], ["--memory", "1GB"]),
        (["--epsilon", "0.1"], ["--n", "100"]),
        (["--epsilon", "0.1"], ["--n0", "100"]),
        (["--epsilon", "0.1"], ["--alpha", "0.001"]),
        (["--smoothing", "0.1"], ["--epsilon", "0.1"]),
        (["--smoothing", "0.1"], ["--norm", "linf"]),
        (["--smoothing", "0.1"], ["--brightness", "0.1"]),
        (["--smoothing", "0.1"], ["--contrast", "0.1"]),
        (["--smoothing", "0.1"], ["--contract", "fp32"]),
        (["--smoothing", "0.1"], ["--vnnlib", "x"]),
        (["--smoothing", "0.1"], ["--jobs", "2"]),
        (["--smoothing", "0.1"], ["--timeout", "2"]),
    ],
)
def test_no_option_is_ignored_in_silence(model: Path, capfd: pytest.CaptureFixture[str], question: list[str], extra: list[str]) -> None:
    assert run(["verify", str(model), "--data", "digits", *question, *extra]) == 2
    named = question[0] if question[0] == "--smoothing" else "--data"
    assert f"{extra[0]} has no meaning with {named}; leave it out" in capfd.readouterr().err


@pytest.mark.parametrize("option", ["--epsilon", "--brightness", "--contrast"])
@pytest.mark.parametrize("number", ["1e999999999", "1e-999999999", "1E+9_999_999", "1e٩٩٩٩٩٩٩٩٩", "1/1e999999999"])
def test_numbers_that_would_fill_the_memory_are_refused(model: Path, capfd: pytest.CaptureFixture[str], option: str, number: str) -> None:
    epsilon = [] if option == "--epsilon" else ["--epsilon", "0.1"]
    assert run(["verify", str(model), "--data", "digits", *epsilon, option, number]) == 2
    err = capfd.readouterr().err
    assert f"{option[2:]}: " in err
    assert len(err.splitlines()) == 1


def test_damaged_property_is_a_sentence(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").write_text("(assert (<= X_0 1))")
    assert run(["verify", str(model), "--property", str(tmp_path / "bad")]) == 2
    assert "line 1: X_0 is not declared" in capfd.readouterr().err


def test_each_claim_is_written_and_answered_alike(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A linear classifier of the digits: the verdict on each written property is that of the certificate."""
    from vsparse.data import load
    from vsparse.standalone import dataset_spec

    spec, root = dataset_spec("digits")
    train = load(spec, root, 0).train
    x, labels = train.inputs(slice(0, len(train))).reshape(len(train), -1), train.labels
    targets = np.eye(10)[labels] - 0.1
    weight = np.linalg.lstsq(np.c_[x, np.ones(len(x))], targets, rcond=None)[0].T
    params = {"w": np.ascontiguousarray(weight[:, :-1], np.float32), "b": weight[:, -1].astype(np.float32)}
    graph = Graph("x", (64,), (Gemm(name="y", inputs=("x",), shape=(10,), weight="w", bias="b"),), "y", params)
    model = tmp_path / "linear.onnx"
    model.write_bytes(to_onnx(graph).SerializeToString())
    folder = tmp_path / "claims"
    arguments = ["verify", str(model), "--data", "digits", "--epsilon", "1/50", "--samples", "6"]
    assert run([*arguments, "--out", str(tmp_path / "c"), "--vnnlib", str(folder)]) == 0
    capfd.readouterr()
    claims = json.loads((tmp_path / "c" / "certificate.json").read_text())["claims"]
    files = sorted(folder.iterdir())
    assert len(files) == len(claims) == 6
    verdicts = set()
    for claim, path in zip(claims, files, strict=True):
        assert read_vnnlib(path).inputs == 64
        assert f"vsparse says: {claim['verdict']}" in path.read_text()
        assert run(["verify", str(model), "--property", str(path), "--timeout", "20"]) == 0
        answer = capfd.readouterr().out.splitlines()[0]
        verdicts.add(claim["verdict"])
        if claim["verdict"] != "unknown":
            assert answer == {"certified": "unsat", "falsified": "sat"}[claim["verdict"]]
    assert "certified" in verdicts
