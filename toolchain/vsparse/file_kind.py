"""What a file is, by its first bytes, and which command takes it: for files that were given where another kind was wanted."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

FileKind = Literal["onnx", "torch", "torchscript", "pickle", "safetensors", "npz", "zip", "hdf5", "image", "text", "unknown"]

HEAD_BYTES = 4096
# Entries of a zip archive that are looked at.
MAX_NAMES = 100_000
_STARTS: tuple[tuple[bytes, FileKind], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "torch"),  # the magic number of torch.save before zip archives
    *((bytes((0x80, protocol)), "pickle") for protocol in range(2, 6)),
)
# After ir_version, field 1 of ONNX's ModelProto: a tag of another of its fields.
_ONNX_TAGS = frozenset((0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72))

EXPORT = 'torch.onnx.export(network.eval(), (torch.zeros(1, *SHAPE),), "model.onnx", dynamo=True, external_data=False)'
WHAT: dict[FileKind, str] = {
    "onnx": "an ONNX file",
    "torch": "a file of PyTorch's torch.save",
    "torchscript": "a TorchScript archive",
    "pickle": "a Python pickle, which is never read since it may hold code",
    "safetensors": "a safetensors file, which holds weights and no network",
    "npz": "an archive of NumPy arrays",
    "zip": "a zip archive",
    "hdf5": "an HDF5 file, such as Keras writes",
    "image": "an image",
    "text": "a text file",
}
_TRAIN = 'a recipe with network.architecture and train.start = "{name}" trains on from it (docs/how-to-own-network.md)'
_RECIPE_WAYS: dict[FileKind, str] = {
    "onnx": f"{_TRAIN}; `vsparse build`, `verify`, `compress`, `export` and `profile` take the network as it is",
    "torch": f"{_TRAIN}; for `vsparse verify`, `compress` and `export` write the network as ONNX: {EXPORT}",
    "torchscript": f"write the network as ONNX: {EXPORT}",
    "pickle": f"write the network as ONNX: {EXPORT}",
    "safetensors": _TRAIN,
    "npz": "give its folder with --data, and the name of a recipe",
    "zip": "give its folder with --data, and the name of a recipe",
    "hdf5": "convert the network with tf2onnx, and see `vsparse verify --help`",
    "image": "`vsparse predict ARTIFACT IMAGE` classifies one; the folder of many is given with --data, beside the name of a recipe",
}
_NETWORK_WAYS: dict[FileKind, str] = {
    "torch": f"write the network as ONNX: {EXPORT}; or train on from its weights: {_TRAIN}",
    "torchscript": f"write the network as ONNX: {EXPORT}",
    "pickle": f"write the network as ONNX: {EXPORT}",
    "safetensors": f"load it into its network and write that as ONNX: {EXPORT}; or train on from it: {_TRAIN}",
    "npz": "give the ONNX file of the network; data are given with --data",
    "zip": "give the ONNX file of the network; data are given with --data",
    "hdf5": "convert the network to ONNX with tf2onnx",
    "image": "give the ONNX file of the network; `vsparse predict ARTIFACT IMAGE` classifies an image",
    "text": "give the ONNX file of the network; a recipe (.toml) is for `vsparse build` and `vsparse train`",
}


def file_kind(head: bytes, path: Path | None = None) -> FileKind:
    """Returns what a file is by its first bytes (`HEAD_BYTES` are enough); of a zip archive at `path` by the names in it.

    Nothing is decoded, and nothing in the file is executed.
    """
    if head.startswith(b"PK\x03\x04"):
        return "zip" if path is None else _archive(path)
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if len(head) > 8 and 2 <= int.from_bytes(head[:8], "little") <= 2**27 and head[8:9] == b"{":
        return "safetensors"
    if len(head) > 2 and head[0] == 0x08 and 0 < head[1] < 32 and head[2] in _ONNX_TAGS:
        return "onnx"
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < HEAD_BYTES:
            return "unknown"
        text = head[: error.start].decode()
    return "text" if text and not any(ord(character) < 32 and character not in "\t\n\r\f" for character in text) else "unknown"


def kind_of_file(path: Path) -> FileKind:
    """Returns what the file at `path` is; "unknown" where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return file_kind(stream.read(HEAD_BYTES), path)
    except OSError:
        return "unknown"


def no_recipe(path: Path) -> str:
    """Returns why a file is no recipe or target, and which command takes it, as the end of a sentence; empty for text and unknown kinds."""
    return _told(path, _RECIPE_WAYS, "a text file in TOML")


def no_network(path: Path) -> str:
    """Returns why a file is no network, and what to do with it, as the end of a sentence; empty where it may be ONNX."""
    return _told(path, _NETWORK_WAYS, "an ONNX file")


def _told(path: Path, ways: dict[FileKind, str], wanted: str) -> str:
    kind = kind_of_file(path)
    way = ways.get(kind)
    return "" if way is None else f"is {WHAT[kind]}, and {wanted} is wanted here; {way.replace('{name}', path.name)}"


def _archive(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:MAX_NAMES]
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return "zip"
    ends = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in ends:
        return "torchscript" if "constants.pkl" in ends else "torch"
    return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"
