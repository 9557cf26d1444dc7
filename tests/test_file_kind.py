"""A file of the wrong kind is told what it is and which command takes it, in one sentence with exit code 2."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors.numpy import save as save_safetensors

from vsparse.cli import run
from vsparse.file_kind import FileKind, file_kind, kind_of_file


def onnx_bytes() -> bytes:
    value = helper.make_tensor_value_info
    relu = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([relu], "g", [value("x", TensorProto.FLOAT, [1, 2])], [value("y", TensorProto.FLOAT, [1, 2])])
    data: bytes = helper.make_model(graph).SerializeToString()
    return data


def torch_bytes(legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.ones(3)}, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def image_bytes(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, kind)
    return stream.getvalue()


def script_bytes() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl", "net/code/net.py"):
            archive.writestr(name, b"")
    return stream.getvalue()


def npz_bytes() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=np.zeros(3))
    return stream.getvalue()


FILES: dict[str, tuple[FileKind, bytes]] = {
    "my.onnx": ("onnx", onnx_bytes()),
    "net.pt": ("torch", torch_bytes()),
    "old.pth": ("torch", torch_bytes(legacy=True)),
    "script.pt": ("torchscript", script_bytes()),
    "sklearn.pkl": ("pickle", pickle.dumps({"a": 1})),
    "weights.safetensors": ("safetensors", save_safetensors({"a": np.zeros(3, np.float32)})),
    "data.npz": ("npz", npz_bytes()),
    "keras.h5": ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(64)),
    "sign.png": ("image", image_bytes("PNG")),
    "sign.jpg": ("image", image_bytes("JPEG")),
    "own.toml": ("text", "[train]\nepochs = 3 # größer\n".encode()),
    "noise.bin": ("unknown", bytes(range(256))),
    "empty": ("unknown", b""),
}


@pytest.mark.parametrize("name", list(FILES))
def test_a_file_is_known_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    kind, data = FILES[name]
    path = tmp_path / "some.file"
    path.write_bytes(data)
    assert kind_of_file(path) == kind


def test_text_is_not_cut_in_the_middle_of_a_character() -> None:
    assert file_kind(("x" + "ö" * 4000).encode()[:4096]) == "text"
    assert file_kind(b"x" * 4000 + b"\xff" + b"x" * 95) == "unknown"


@pytest.mark.parametrize(
    ("arguments", "name", "said"),
    [
        (["build"], "net.pt", "is a file of PyTorch's torch.save"),
        (["build"], "net.pt", 'train.start = "net.pt"'),
        (["build"], "old.pth", "is a file of PyTorch's torch.save"),
        (["train"], "weights.safetensors", 'train.start = "weights.safetensors"'),
        (["build"], "sign.png", "vsparse predict ARTIFACT IMAGE"),
        (["build"], "data.npz", "give its folder with --data"),
        (["build", "digits", "--target"], "my.onnx", "is an ONNX file"),
        (["export"], "net.pt", "dynamo=True, external_data=False"),
        (["compress"], "script.pt", "is a TorchScript archive"),
        (["export"], "sklearn.pkl", "is a Python pickle, which is never read"),
        (["profile"], "keras.h5", "tf2onnx"),
        (["export"], "own.toml", "a recipe (.toml) is for `vsparse build`"),
        (["verify", "--data", "digits", "--epsilon", "0.1"], "net.pt", "dynamo=True, external_data=False"),
    ],
)
def test_the_command_says_what_it_is_and_what_takes_it(
    tmp_path: Path, arguments: list[str], name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name][1])
    assert run([*arguments, str(path)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert said in told
    assert str(path) in told
    assert "Traceback" not in told
