"""Damaged inputs: each gives one sentence on stderr and the right exit code, and never a traceback."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vsparse.artifact import MANIFEST
from vsparse.cli import run

Case = Callable[[Path, Path], list[str]]
CASES: dict[str, tuple[int, str, Case]] = {}


def case(code: int, says: str) -> Callable[[Case], Case]:
    """Registers a damaged input with the exit code it must give and a word its sentence must hold."""

    def register(function: Case) -> Case:
        CASES[function.__name__] = (code, says, function)
        return function

    return register


def recipe(folder: Path, text: str) -> list[str]:
    path = folder / "my.toml"
    path.write_text(text)
    return ["build", str(path), "--out", str(folder / "out")]


# --- recipes -----------------------------------------------------------------------------------------------------------


@case(2, "did you mean")
def recipe_of_no_such_name(folder: Path, artifact: Path) -> list[str]:
    return ["build", "digit", "--out", str(folder / "out")]


@case(2, "not there")
def recipe_file_absent(folder: Path, artifact: Path) -> list[str]:
    return ["build", str(folder / "none.toml")]


@case(2, "recipe")
def recipe_is_a_directory(folder: Path, artifact: Path) -> list[str]:
    (folder / "dir.toml").mkdir()
    return ["build", str(folder / "dir.toml")]


@case(2, "not valid TOML")
def recipe_with_bad_syntax(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[train\nepochs = ")


@case(2, "UTF-8")
def recipe_in_another_encoding(folder: Path, artifact: Path) -> list[str]:
    (folder / "my.toml").write_bytes(b'description = "\xff\xfe"\n')
    return ["build", str(folder / "my.toml")]


@case(2, "bytes")
def recipe_too_large(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "# " + "x" * 2**21)


@case(2, 'did you mean "sparsity"')
def recipe_with_a_misspelt_key(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[train]\nsparsty = 0.9")


@case(2, 'did you mean "train"')
def recipe_with_a_misspelt_section(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[trian]\nepochs = 3")


@case(2, "train.epochs")
def recipe_with_a_value_of_the_wrong_type(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, '[train]\nepochs = "many"')


@case(2, "train.sparsity")
def recipe_with_a_value_out_of_range(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[train]\nsparsity = 1.0")


@case(2, "train.learning_rate")
def recipe_with_nan(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[train]\nlearning_rate = nan")


@case(2, "property.epsilon")
def recipe_with_a_negative_radius(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, '[property]\nepsilon = "-8/255"')


@case(2, "property.epsilon")
def recipe_with_a_radius_over_zero(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, '[property]\nepsilon = "1/0"')


@case(2, "mean")
def recipe_whose_mean_and_std_differ(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[data]\nmean = [0.5]\nstd = [0.2, 0.2]")


@case(2, "channel")
def recipe_with_the_normalisation_of_other_data(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[data]\nmean = [0.5, 0.5, 0.5]\nstd = [0.2, 0.2, 0.2]")


@case(2, "ramp")
def recipe_that_never_reaches_full_epsilon(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[train]\nwarmup = 0.5\nramp = 0.5")


@case(2, "engine")
def recipe_with_an_engine_that_cannot_do_it(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, '[train]\nobjective = "ibp"\nengine = "auto_lirpa"')


@case(2, "baseline")
def recipe_whose_gates_need_a_baseline(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[train]\nbaseline = false\n[gates]\ncertified_loss = 0.03")


@case(2, "architecture")
def recipe_with_an_unknown_network(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, '[network]\narchitecture = "cnn44"')


@case(2, "cannot be imported")
def recipe_with_a_network_that_is_not_there(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, '[network]\narchitecture = "no_such_package.nets:make"')


@case(2, "GELU")
def recipe_with_an_operator_nobody_can_verify(folder: Path, artifact: Path) -> list[str]:
    (folder / "gelu_net.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes, width):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, classes))\n"
    )
    return recipe(folder, '[network]\narchitecture = "gelu_net:make"')


@case(2, "schema_version")
def recipe_of_a_later_version(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "schema_version = 2")


@case(2, "section.key=value")
def setting_without_a_value(folder: Path, artifact: Path) -> list[str]:
    return ["build", "digits", "--set", "train.epochs"]


@case(2, "contract")
def contract_that_does_not_exist(folder: Path, artifact: Path) -> list[str]:
    return ["build", "digits", "--contract", "fp33"]


@case(2, "honour")
def contract_the_target_does_not_honour(folder: Path, artifact: Path) -> list[str]:
    return ["build", "digits", "--contract", "bf16"]


@case(2, "such option")
def option_that_does_not_exist(folder: Path, artifact: Path) -> list[str]:
    return ["build", "digits", "--sparsity", "0.9"]


# --- targets -----------------------------------------------------------------------------------------------------------


@case(2, "did you mean")
def target_of_no_such_name(folder: Path, artifact: Path) -> list[str]:
    return ["build", "digits", "--target", "jetson-orin-nan"]


@case(2, "device")
def target_without_a_device(folder: Path, artifact: Path) -> list[str]:
    (folder / "t.toml").write_text('[runtime]\nname = "onnxruntime"\n[precisions.fp32]\ncontract = "fp32"\n')
    return ["build", "digits", "--target", str(folder / "t.toml")]


@case(2, "contract")
def target_with_an_unknown_contract(folder: Path, artifact: Path) -> list[str]:
    (folder / "t.toml").write_text('[device]\nkind = "host"\n[runtime]\nname = "onnxruntime"\n[precisions.fp32]\ncontract = "real"\n')
    return ["build", "digits", "--target", str(folder / "t.toml")]


# --- data --------------------------------------------------------------------------------------------------------------


def idx(folder: Path, images: bytes | None = None, labels: bytes | None = None) -> list[str]:
    """A folder of two IDX splits of 40 images of 8x8, with the training images or labels replaced."""
    pixels = np.arange(40 * 64, dtype=np.int64).astype(np.uint8).tobytes()
    good_images = struct.pack(">IIII", 2051, 40, 8, 8) + pixels
    good_labels = struct.pack(">II", 2049, 40) + bytes(i % 10 for i in range(40))
    for split in ("train", "t10k"):
        mine = split == "train"
        (folder / f"{split}-images-idx3-ubyte").write_bytes(images if mine and images is not None else good_images)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels if mine and labels is not None else good_labels)
    (folder / "my.toml").write_text('[data]\nname = "mine"\nformat = "idx"\n[train]\nepochs = 1\n')
    return ["build", str(folder / "my.toml"), "--data", str(folder), "--out", str(folder / "out")]


@case(2, "--data")
def data_not_given(folder: Path, artifact: Path) -> list[str]:
    return ["build", "mnist"]


@case(2, "mnist")
def data_folder_empty(folder: Path, artifact: Path) -> list[str]:
    return ["build", "mnist", "--data", str(folder)]


@case(2, "train-images")
def data_truncated(folder: Path, artifact: Path) -> list[str]:
    return idx(folder, images=struct.pack(">IIII", 2051, 40, 8, 8) + bytes(100))


@case(2, "train-images")
def data_of_the_wrong_magic(folder: Path, artifact: Path) -> list[str]:
    return idx(folder, images=struct.pack(">IIII", 9999, 40, 8, 8) + bytes(40 * 64))


@case(2, "train-images")
def data_whose_header_claims_too_much(folder: Path, artifact: Path) -> list[str]:
    return idx(folder, images=struct.pack(">IIII", 2051, 2**31 - 1, 2**15, 2**15) + bytes(100))


@case(2, "label")
def data_with_fewer_labels_than_images(folder: Path, artifact: Path) -> list[str]:
    return idx(folder, labels=struct.pack(">II", 2049, 39) + bytes(i % 10 for i in range(39)))


@case(2, "train")
def data_whose_gzip_is_cut(folder: Path, artifact: Path) -> list[str]:
    arguments = idx(folder)
    path = folder / "train-images-idx3-ubyte"
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    path.unlink()
    return arguments


def npz(folder: Path, **arrays: np.ndarray) -> list[str]:
    np.savez(folder / "mine.npz", **arrays)
    (folder / "my.toml").write_text('[data]\nname = "mine"\nformat = "npz"\n[train]\nepochs = 1\n')
    return ["build", str(folder / "my.toml"), "--data", str(folder), "--out", str(folder / "out")]


@case(2, "y")
def data_without_labels(folder: Path, artifact: Path) -> list[str]:
    return npz(folder, x=np.zeros((20, 8, 8, 1), np.uint8))


@case(2, "mine.npz")
def data_with_python_objects(folder: Path, artifact: Path) -> list[str]:
    return npz(folder, x=np.array([{"a": 1}] * 20, dtype=object), y=np.arange(20) % 2)


@case(2, "mine.npz")
def data_with_nan_pixels(folder: Path, artifact: Path) -> list[str]:
    return npz(folder, x=np.full((20, 1, 8, 8), np.nan, np.float32), y=np.arange(20) % 2)


@case(2, "label")
def data_with_negative_labels(folder: Path, artifact: Path) -> list[str]:
    return npz(folder, x=np.zeros((20, 8, 8, 1), np.uint8), y=np.arange(20) % 2 - 1)


@case(2, "mine.npz")
def data_that_is_a_bomb(folder: Path, artifact: Path) -> list[str]:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000, 3), }"
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    with zipfile.ZipFile(folder / "mine.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(2**20))
        buffer = io.BytesIO()
        np.save(buffer, np.arange(20) % 2)
        archive.writestr("y.npy", buffer.getvalue())
    (folder / "my.toml").write_text('[data]\nname = "mine"\nformat = "npz"\n')
    return ["build", str(folder / "my.toml"), "--data", str(folder)]


@case(2, "png")
def data_with_a_broken_image(folder: Path, artifact: Path) -> list[str]:
    for name in ("a", "b"):
        (folder / "mine" / name).mkdir(parents=True)
        for i in range(4):
            (folder / "mine" / name / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (folder / "my.toml").write_text('[data]\nname = "mine"\nformat = "folder"\n')
    return ["build", str(folder / "my.toml"), "--data", str(folder)]


# --- ONNX --------------------------------------------------------------------------------------------------------------


def model(folder: Path, nodes: list[onnx.NodeProto] | None = None, weight: np.ndarray | None = None, **changes: object) -> Path:
    """A linear classifier of the digits, with its nodes or its weight replaced."""
    weight = np.zeros((10, 64), np.float32) if weight is None else weight
    standard = [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("Gemm", ["flat", "w"], ["logits"], transB=1)]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, changes.get("shape", ["n", 1, 8, 8]))]
    if changes.get("second_input"):
        inputs.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["n", 1]))
    graph = helper.make_graph(
        nodes or standard,
        "g",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


def verify(path: Path) -> list[str]:
    return ["verify", str(path), "--data", "digits", "--epsilon", "0.01", "--samples", "2"]


@case(2, "none.onnx")
def model_absent(folder: Path, artifact: Path) -> list[str]:
    return verify(folder / "none.onnx")


@case(2, "model.onnx")
def model_empty(folder: Path, artifact: Path) -> list[str]:
    (folder / "model.onnx").write_bytes(b"")
    return verify(folder / "model.onnx")


@case(2, "model.onnx")
def model_of_random_bytes(folder: Path, artifact: Path) -> list[str]:
    (folder / "model.onnx").write_bytes(np.random.default_rng(0).bytes(4096))
    return verify(folder / "model.onnx")


@case(2, "model.onnx")
def model_truncated(folder: Path, artifact: Path) -> list[str]:
    path = model(folder)
    path.write_bytes(path.read_bytes()[:-500])
    return verify(path)


@case(2, "w")
def model_with_nan_weights(folder: Path, artifact: Path) -> list[str]:
    return verify(model(folder, weight=np.full((10, 64), np.nan, np.float32)))


@case(2, "Sin")
def model_with_an_unknown_operator(folder: Path, artifact: Path) -> list[str]:
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Sin", ["flat"], ["s"]),
        helper.make_node("Gemm", ["s", "w"], ["logits"], transB=1),
    ]
    return verify(model(folder, nodes))


@case(2, "input")
def model_with_two_inputs(folder: Path, artifact: Path) -> list[str]:
    return verify(model(folder, second_input=True))


@case(2, "model")
def model_with_a_cycle(folder: Path, artifact: Path) -> list[str]:
    nodes = [
        helper.make_node("Add", ["input", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["logits"]),
    ]
    return verify(model(folder, nodes))


@case(2, "external")
def model_with_data_elsewhere(folder: Path, artifact: Path) -> list[str]:
    path = model(folder)
    proto = onnx.load(str(path))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    path.write_bytes(proto.SerializeToString())
    return verify(path)


@case(2, "8")
def model_for_other_inputs(folder: Path, artifact: Path) -> list[str]:
    return verify(model(folder, weight=np.zeros((10, 784), np.float32), shape=["n", 1, 28, 28]))


@case(2, "epsilon")
def radius_that_is_no_number(folder: Path, artifact: Path) -> list[str]:
    return ["verify", str(model(folder)), "--data", "digits", "--epsilon", "eight/255"]


@case(2, "model.onnx")
def model_to_compress_of_random_bytes(folder: Path, artifact: Path) -> list[str]:
    (folder / "model.onnx").write_bytes(b"onnx" * 100)
    return ["compress", str(folder / "model.onnx")]


@case(2, "model.onnx")
def model_to_profile_of_random_bytes(folder: Path, artifact: Path) -> list[str]:
    (folder / "model.onnx").write_bytes(b"onnx" * 100)
    return ["profile", str(folder / "model.onnx")]


# --- artifacts ---------------------------------------------------------------------------------------------------------


def copy(artifact: Path, folder: Path) -> Path:
    return Path(shutil.copytree(artifact, folder / "artifact"))


@case(2, "artifact")
def artifact_that_is_a_file(folder: Path, artifact: Path) -> list[str]:
    (folder / "file").write_text("x")
    return ["report", str(folder / "file")]


@case(2, "manifest")
def artifact_without_a_manifest(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    (copied / MANIFEST).unlink()
    return ["report", str(copied)]


@case(2, "JSON")
def artifact_whose_manifest_is_cut(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    (copied / MANIFEST).write_bytes((copied / MANIFEST).read_bytes()[:100])
    return ["report", str(copied)]


@case(2, "outside")
def artifact_whose_manifest_names_other_places(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    content = json.loads((copied / MANIFEST).read_text())
    content["files"]["../../etc/passwd"] = "0" * 64
    (copied / MANIFEST).write_text(json.dumps(content))
    return ["report", str(copied)]


@case(1, "changed")
def artifact_whose_history_was_edited(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    (copied / "train" / "history.json").write_text("{}")
    return ["report", str(copied)]


@case(1, "lacks")
def artifact_with_a_file_missing(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    (copied / "model" / "model.fp32.onnx").unlink()
    return ["profile", str(copied)]


@case(1, "certificate")
def artifact_whose_certificate_was_edited(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    path = copied / "certificate" / "certificate.json"
    path.write_text(path.read_text().replace('"unknown"', '"certified"').replace('"falsified"', '"certified"'))
    return ["check", str(copied)]


@case(1, "model")
def artifact_with_another_model(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    shutil.copyfile(copied / "model" / "dense.fp32.onnx", copied / "model" / "model.fp32.onnx")
    return ["check", str(copied)]


@case(2, "none")
def artifact_to_check_absent(folder: Path, artifact: Path) -> list[str]:
    return ["check", str(folder / "none")]


@case(2, "no artifact")
def output_that_is_not_ours(folder: Path, artifact: Path) -> list[str]:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter1.txt").write_text("years of work")
    return ["build", "digits", "--out", str(folder / "thesis")]


@case(2, "directory")
def output_that_is_a_file(folder: Path, artifact: Path) -> list[str]:
    (folder / "thesis.txt").write_text("years of work")
    return ["build", "digits", "--out", str(folder / "thesis.txt")]


@pytest.mark.parametrize("name", CASES)
def test_damaged_input_gives_one_sentence_and_the_right_code(
    name: str, tmp_path: Path, tiny_artifact: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VSPARSE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    code, says, make = CASES[name]
    arguments = make(tmp_path, tiny_artifact)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    capfd.readouterr()
    assert run(arguments) == code, capfd.readouterr().err
    out, err = capfd.readouterr()
    sentences = [line for line in err.splitlines() if line.strip()]
    assert len(sentences) == 1 or code == 1, err
    assert says in err + out
    assert "Traceback" not in err
    assert "bug in vsparse" not in err
    after = [path for path in tmp_path.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sorted(after) == before, "a refused command must leave nothing behind"


def test_there_are_at_least_forty_cases() -> None:
    assert len(CASES) >= 40
